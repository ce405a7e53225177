"""The command line: text and exit codes live here and nowhere else."""

import contextlib
import functools
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ddphub import hub_cli, models_cli
from ddphub.address import HubAddress, check_url
from ddphub.config import DEFAULT_DIR, Credentials
from ddphub.errors import DdphubError, HubError, HubUnavailable, JournalError, SettingsError
from ddphub.hubs.client import HubClient
from ddphub.keys import hub_and_key
from ddphub.session.folder import KEEP_DAYS, RunFolder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reports distributed PyTorch jobs to a model hub: one run, every rank, each checkpoint exactly once.",
)
app.add_typer(models_cli.app, name="models")
app.add_typer(hub_cli.app, name="hub")

Directories = Annotated[
    list[Path] | None,
    typer.Argument(help="Run directories, or folders of them; DDPHUB_DIR or ./.ddphub by default.", show_default=False),
]


_UNCONNECTED: Final = frozenset({"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"})
"""What urllib3, which only the hubs' clients import, raises where no connection came about."""


def main() -> None:
    """Entry point: settings that are wrong end with exit code 2 and one line, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Names are in any script, and a terminal in Latin-1 shows what it can.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except SettingsError as error:
        _fail(str(error), 2)
    except DdphubError as error:
        _fail(_in_words(error), 1)
    except BrokenPipeError:  # `ddphub status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless told otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8765,
    data: Annotated[Path, typer.Option(help="Folder for the database and the checkpoints.")] = Path("ddphub-data"),
    database_url: Annotated[
        str | None,
        typer.Option(
            help="Keep the database in PostgreSQL: postgresql://USER@HOST/DATABASE. A password goes into "
            "DDPHUB_DATABASE_URL, PGPASSWORD or PGPASSFILE.",
            show_default="SQLite in the data folder",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Keep checkpoints in an object storage: s3://BUCKET/PREFIX?endpoint=https://HOST&region=NAME. "
            "Credentials come from the environment or the AWS configuration.",
            show_default="the data folder",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Serve https with this certificate (PEM); SIGHUP loads it anew.", show_default="http"),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its key (PEM, no passphrase), which others may not read.", show_default=False)
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For, -Proto and -Host are believed; several times.",
            show_default="none",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that serve; more than one needs PostgreSQL.")] = 1,
    log_format: Annotated[str, typer.Option(help="text, or json for programs: a line an event, on stderr.")] = "text",
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info (every request), warning or error.", show_default="info; warning on a terminal"),
    ] = None,
    metrics_open: Annotated[
        bool, typer.Option("--metrics-open", help="Answer /metrics without a key; else it needs one that reads all.")
    ] = False,
    rate_limit: Annotated[
        float, typer.Option(help="Requests a second of one key, or of one address without a key; 0: any number.")
    ] = 1000.0,
    max_requests: Annotated[int, typer.Option(help="Requests in progress, of each worker; more get 503.")] = 500,
    max_connections: Annotated[int, typer.Option(help="Connections of each worker; more get 503.")] = 10_000,
    receive_s: Annotated[float, typer.Option(help="Seconds for a request to arrive; a long body gets more.")] = 30.0,
    shutdown_s: Annotated[int, typer.Option(help="Seconds that requests in progress have at the end.")] = 5,
    new_admin_key: Annotated[
        bool, typer.Option("--new-admin-key", help="Make and print one more key that can do everything.")
    ] = False,
    drain_s: Annotated[
        float, typer.Option(help="Seconds to serve on after SIGTERM, while /readyz tells a load balancer to leave.")
    ] = 0.0,
) -> None:
    """Run a hub. Its key is DDPHUB_API_KEY, or one that it makes at the first start and prints once."""
    try:
        from ddphub.server import ServerSettings  # noqa: PLC0415  # the server extra may not be installed
        from ddphub.server import serve as serve_hub  # noqa: PLC0415
        from ddphub.server.settings import given_database_url  # noqa: PLC0415
    except ModuleNotFoundError as error:
        _fail(f"the hub needs the server extra ({error.name} is missing): pip install 'ddphub[server]'", 2)
    serve_hub(
        ServerSettings(
            host=host,
            port=port,
            data=data,
            database_url=given_database_url(database_url, os.environ),
            storage=storage,
            api_key=os.environ.get("DDPHUB_API_KEY"),
            tls_cert=tls_cert,
            tls_key=tls_key,
            trusted_proxies=tuple(trusted_proxy or ()),
            workers=workers,
            log_format=log_format,
            # Who starts a hub by hand should not lose the key that it says under a line for each request.
            log_level=log_level or ("warning" if sys.stderr.isatty() else "info"),
            metrics_open=metrics_open,
            rate_limit=rate_limit,
            max_requests=max_requests,
            max_connections=max_connections,
            receive_s=receive_s,
            shutdown_s=shutdown_s,
            drain_s=drain_s,
            new_admin_key=new_admin_key,
        )
    )


@app.command()
def login(
    url: Annotated[str, typer.Option("--url", envvar="DDPHUB_URL", help="The hub's URL.", prompt="URL of the hub")],
) -> None:
    """Store a hub's API key in a file that only you can read. The key is asked for, or read from standard input."""
    hub = check_url(url, "--url")
    key = (typer.prompt("API key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        _fail("the API key must be printable ASCII without spaces", 2)
    from ddphub.hubs.ddphub import DdphubClient  # noqa: PLC0415  # requests, only where it is used

    client = DdphubClient(hub, key)
    try:
        client.check_key()
    except HubError as error:
        _fail(f"not stored: {_in_words(error)}", 1)
    finally:
        client.close()
    credentials = Credentials.load(os.environ)
    credentials.save(hub, key)
    typer.echo(f"stored in {credentials.path}")


@app.command()
def status(
    directory: Annotated[
        Path | None, typer.Argument(help="A run directory or a folder of them.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a run, one a line.")] = False,
) -> None:
    """Say what every run generated, what the hub has, and what is left on disk. Changes nothing, needs no hub."""
    from ddphub.session.report import report  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.session.sync import find_runs  # noqa: PLC0415

    place = directory or _default_dir()
    found = wrong = 0
    for folder in find_runs(place):
        found += 1
        try:
            summary = report(folder)
        except (JournalError, OSError) as error:
            wrong += 1
            typer.echo(f"{error}", err=True)
            continue
        typer.echo(json.dumps(summary.to_json()) if as_json else "\n".join(summary.lines()))
    if not found:
        typer.echo(f"no run in {place}", err=True)
    raise typer.Exit(1 if wrong or (directory is not None and not found) else 0)


@app.command()
def sync(
    directories: Directories = None,
    *,
    hub: Annotated[str | None, typer.Option(help="Deliver to this hub, whatever run.json says.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what was set aside.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow live runs until all have ended.")] = False,
    linger: Annotated[
        float,
        typer.Option(
            help="With --watch: how long a run that did not finish may come back, and the first run may appear. "
            "Where SLURM knows the run's job, that is followed instead.",
            metavar="SECONDS",
            min=0.0,
        ),
    ] = 60.0,
    keep: Annotated[
        float,
        typer.Option(help="Days that delivered event files of an ended run are kept.", metavar="DAYS", min=0.0),
    ] = KEEP_DAYS,
) -> None:
    """Deliver what is left on disk. Exit code 0 when everything is delivered, 1 when something is left."""
    from ddphub.session.leftovers import remove_empty_folders  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.session.sync import find_runs  # noqa: PLC0415
    from ddphub.session.watch import Watch  # noqa: PLC0415

    override = str(HubAddress.parse(hub, "--hub", os.environ)) if hub else None
    places = directories or [_default_dir()]
    for sentence in (sentence for place in places for sentence in remove_empty_folders(place)):
        typer.echo(sentence)

    def deliver(folder: RunFolder) -> bool:
        try:
            return _sync_one(folder, override, retry=retry, keep_days=keep, shows_progress=not watch)
        except (DdphubError, OSError) as error:
            typer.echo(f"{folder.path}: {error}", err=True)
            return False

    left = 0
    if watch:
        connect = functools.partial(_connect, override=override)
        say = functools.partial(typer.echo, err=True)
        left += not Watch(places, connect=connect, deliver=deliver, say=say, linger=linger).run()
    empty = [place for place in places if not any(find_runs(place))]
    for place in empty:
        typer.echo(f"no run in {place}", err=True)
    left += len(empty) if directories else 0
    if not watch:
        left += sum(not deliver(folder) for place in places for folder in find_runs(place))
    raise typer.Exit(1 if left else 0)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="The model's id, or the URL of its page.", metavar="MODEL")],
    kind: Annotated[str | None, typer.Option(help="epoch, best or final; the newest of any kind by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to; the checkpoint's name, here, by default.")
    ] = None,
    hub: Annotated[str | None, typer.Option(help="The hub that has the model.")] = None,
) -> None:
    """Fetch the newest checkpoint of a model, checked against the hub's checksum."""
    from ddphub.hubs.wire import KINDS  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.pull import pull as pull_checkpoint  # noqa: PLC0415

    try:
        found, path = pull_checkpoint(model, hub=hub, kinds=(kind,) if kind else KINDS, output=output)
    except OSError as error:
        _fail(f"not fetched: {error}", 1)
    typer.echo(f"{path}: {found.kind} checkpoint of epoch {found.epoch}")


@app.command()
def doctor(
    directory: Annotated[
        # No Path: typer looks at one, and waits for a file server that hangs.
        str | None, typer.Argument(help="A folder for run directories; DDPHUB_DIR or ./.ddphub.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Ask each GPU for its name and memory, which starts CUDA.")
    ] = False,
    wait: Annotated[
        float, typer.Option(help="Seconds that rank 0 waits for the other ranks.", min=0.0, max=3600.0)
    ] = 10.0,
) -> None:
    """Say what is wrong with this place; under srun or torchrun, with every rank's. Exit code 1 when something is."""
    from ddphub.doctor import examine  # noqa: PLC0415  # keeps `ddphub --help` quick

    report = examine(Path(directory) if directory else None, ask_gpus=gpu, wait=wait)
    if report.is_spokesman:
        text = json.dumps(report.to_json()) if as_json else "\n".join(report.lines())
        typer.echo(text, err=report.ranks[0].rank != 0)
    raise typer.Exit(1 if report.is_spokesman and not report.is_well else 0)


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    program: Annotated[str, typer.Argument(help="The Python program.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.", show_default=False)] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes.", show_default="1")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs on each node, each with a rank.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks on each node, without GPUs.", show_default="1")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs for each rank.", show_default="1")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, as 12:00:00.", show_default="a day")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.", show_default="the cluster's")] = None,
    array: Annotated[str | None, typer.Option(help="An array of trainings, as 0-15%4, each a run.")] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Save and leave before the time limit, and go on in the queue.")
    ] = False,
    warning: Annotated[int | None, typer.Option(help="How many seconds before.", show_default="120")] = None,
    launcher: Annotated[str | None, typer.Option(help="torchrun or srun.", show_default="torchrun")] = None,
    after: Annotated[str | None, typer.Option(help="Begin when job 17 (17:18) has succeeded; or afterany:17.")] = None,
    project: Annotated[str | None, typer.Option(help="What the program passes to ddphub.init.")] = None,
    name: Annotated[str | None, typer.Option(help="The same.", show_default="the program's name")] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="Another option of sbatch, as --account=me.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Show the file that sbatch would get, and do nothing.")] = False,
) -> None:
    """Submit a training to SLURM. Options come before the program. Prints the model's URL and the job's id."""
    from ddphub import submit as submitting  # noqa: PLC0415  # keeps `ddphub --help` quick

    submission = submitting.Submission(
        program=program,
        arguments=arguments or (),
        nodes=nodes,
        gpus=gpus,
        ranks=ranks,
        cpus=cpus,
        time=time,
        partition=partition,
        array=array,
        requeue=requeue,
        warning=warning,
        launcher=launcher,
        after=after,
        project=project,
        name=name,
        options=sbatch or (),
    )
    if show:
        *_, script = submitting.prepare(submission, os.environ)
        typer.echo(script, nl=False)
    else:
        typer.echo(f"job {submitting.submit(submission, os.environ, typer.echo)}")


def _connect(folder: RunFolder, override: str | None) -> tuple[HubClient, str]:
    """The hub that a run is for, and its URL."""
    from ddphub.hubs.connect import connect  # noqa: PLC0415  # requests, only where it is used
    from ddphub.session.report import hub_of  # noqa: PLC0415

    hub, key = hub_and_key(hub_of(folder), override, os.environ, source="the run")
    return connect(hub, key), hub


def _sync_one(folder: RunFolder, override: str | None, *, retry: bool, keep_days: float, shows_progress: bool) -> bool:
    """Delivers one run and says what came of it; whether nothing is left."""
    from ddphub.session.report import report  # noqa: PLC0415
    from ddphub.session.sync import sync_run  # noqa: PLC0415

    before = report(folder)
    if before.is_delivered and not retry:
        outcome = sync_run(folder, None, hub=before.hub, keep_days=keep_days)
        typer.echo("\n".join([*outcome.repaired, *report(folder).lines()]))
        if outcome.error:
            typer.echo(f"  ! {outcome.error}", err=True)
        return outcome.done or before.in_use
    client, hub = _connect(folder, override)
    try:
        pending = before.events["pending"], before.checkpoints["pending"]
        with _shown_progress(*pending, shows=shows_progress) as progress:
            outcome = sync_run(folder, client, hub=hub, retry_aside=retry, keep_days=keep_days, progress=progress)
    finally:
        client.close()
    if not folder.run_json.exists():
        typer.echo(f"{folder.path}: {outcome.error or outcome.repaired[-1]}")
        return outcome.done
    after = report(folder)
    is_the_runs = after.in_use and outcome.error is not None and "another process delivers" in outcome.error
    rest = "the run is alive and delivers the rest itself: there is nothing to do" if is_the_runs else None
    typer.echo("\n".join([*outcome.repaired, *after.lines(rest)]))
    if outcome.error:
        typer.echo(f"  ! {outcome.error}", err=True)
    return outcome.done and after.is_delivered


@contextlib.contextmanager
def _shown_progress(events: int, checkpoints: int, *, shows: bool) -> Iterator[Callable[[str, int], None]]:
    """A bar on a terminal, nothing elsewhere: the lines that follow say it all."""
    if not (shows and sys.stderr.isatty()):
        yield lambda _kind, _count: None
        return
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks = {
            "events": shown.add_task("events", total=events),
            "checkpoints": shown.add_task("checkpoints", total=checkpoints),
        }
        yield lambda kind, count: shown.advance(tasks[kind], count)


def _in_words(error: DdphubError) -> str:
    """An error for a person: that nothing answers at an address is not told in a library's words."""
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    names = {type(one).__name__ for one in chain}
    url = re.search(r"https?://[^/\s]+", str(error))
    # A proxy that does not answer says nothing of the hub.
    is_connected = "ProxyError" in names or not names & _UNCONNECTED
    if not isinstance(error, HubUnavailable) or url is None or is_connected:
        return str(error)
    why = getattr(chain[-1], "strerror", None) or chain[-1]
    return f"nothing answers at {url.group()}: is the hub running? ddphub doctor says more ({why})"


def _default_dir() -> Path:
    return Path(os.environ.get("DDPHUB_DIR") or DEFAULT_DIR)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"ddphub: {message}", err=True)
    sys.exit(code)
