"""`ddphub models`: what a hub has, for people and for scripts.

What changes something asks first on a terminal, and wants `--yes` where there is none. Exit code 1: the hub does not
have it or does not answer; 2: an option or a setting is wrong.
"""

import os
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from ddphub.reading.hub import Hub
    from ddphub.reading.model import Model

app = typer.Typer(no_args_is_help=True, help="Look at the models of a hub of `ddphub serve`, and tidy up.")

SHOWN: Final = 20
"""Metrics and checkpoints that are shown to people; `--json` has all."""

WELL: Final = frozenset({"ok", "done"})
"""Healths of a rank that need no word."""

ModelArgument = Annotated[str, typer.Argument(help="Its id, or the URL of its page.", metavar="MODEL")]
HubOption = Annotated[str | None, typer.Option("--hub", help="The hub; DDPHUB_URL or the one of `ddphub login`.")]
Json = Annotated[bool, typer.Option("--json", help="JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")]


@app.command("list")
def list_models(
    project: Annotated[str | None, typer.Option(help="Only of this project.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only in this state; or in one of several.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag; or with all of several.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Only with this text in name, run id, project, tags or notes.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many at most; 0 for all.", min=0)] = 100,
    hub: HubOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a model, one a line.")] = False,
) -> None:
    """List models, newest first."""
    from ddphub import models_text as text  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.events import MODEL_STATES  # noqa: PLC0415

    if not set(state or ()) <= set(MODEL_STATES):
        _fail(f"--state: expected one of {', '.join(MODEL_STATES)}", 2)
    found = _hub(hub).models(project=project, state=state or None, tag=tag or None, search=search)
    models = islice(found, limit or None)
    if as_json:
        for model in models:
            text.echo_json(model.to_dict())
    else:
        text.echo_table(text.LIST_HEAD, map(text.listed, models))
    if limit and next(found, None) is not None:
        typer.echo(f"there are more than {limit}: --limit 0 lists all", err=True)


@app.command()
def show(model: ModelArgument, hub: HubOption = None, as_json: Json = False) -> None:
    """Show one model: its state and why, attempts, ranks that are not well, metrics, checkpoints."""
    from ddphub import models_text as text  # noqa: PLC0415  # keeps `ddphub --help` quick

    found = _model(model, hub)
    ranks = list(found.ranks())
    series = list(found.series())
    checkpoints = found.checkpoints(newest_first=True)
    if as_json:
        lists: dict[str, Any] = {"ranks": ranks, "metrics": series, "checkpoints": checkpoints}
        every = {name: [record.to_dict() for record in records] for name, records in lists.items()}
        text.echo_json({**found.to_dict(), "config": found.config, "notes": found.notes, **every})
        return
    text.echo(f"{found.name} of {found.project}: {found.state}{f': {found.reason}' if found.reason else ''}")
    text.echo(f"{found.url}")
    text.echo(f"run {found.run_id or text.NOTHING}, {text.progress_of(found)}, last seen {text.ago(found.last_seen)}")
    if text.is_asked_to_stop(found):
        text.echo("it is asked to stop")
    if found.tags:
        text.echo(f"tags: {', '.join(found.tags)}")
    for line in text.attempt_lines(found):
        text.echo(line)
    unwell = [rank for rank in ranks if rank.health not in WELL]
    if ranks:
        text.echo(f"\nranks: {len(unwell) or 'none'} of {len(ranks)} not well")
    if unwell:
        text.echo_table(text.RANKS_HEAD, map(text.rank_row, unwell))
    named = [one for one in series if not one.name.startswith("system/")]
    _some("metrics", text.METRICS_HEAD, list(map(text.series_row, named)))
    _some("checkpoints", text.CHECKPOINTS_HEAD, list(map(text.checkpoint_row, checkpoints)))
    settings = [[key, value] for key, value in text.flat(found.config).items()]
    if settings:
        text.echo("")
        text.echo_table(("SETTING", "VALUE"), settings)
    for more in (found.notes, found.traceback):
        if more:
            text.echo(f"\n{more.rstrip()}")


def _some(what: str, head: Any, rows: list[Any]) -> None:  # noqa: ANN401  # rows of texts
    from ddphub import models_text as text  # noqa: PLC0415

    if rows:
        text.echo("")
        text.echo_table(head, rows[:SHOWN])
    if len(rows) > SHOWN:
        text.echo(f"and {len(rows) - SHOWN} more {what}: --json has all")


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more: ids, or URLs of pages.", metavar="MODEL...")],
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Compare models: settings and metrics side by side; `*` marks what differs.

    Of a metric it shows rank 0's newest value, and the least and the greatest.
    """
    from ddphub import models_text as text  # noqa: PLC0415  # keeps `ddphub --help` quick

    if len(models) < 2:
        _fail("name two models or more", 2)
    chosen = [_model(model, hub) for model in models]
    settings = [text.flat(model.config) for model in chosen]
    metrics = [{one.name: one for one in model.series()} for model in chosen]
    differing = [name for name in _all(settings) if len({of.get(name) for of in settings}) > 1]
    if as_json:
        found = []
        for model, of in zip(chosen, metrics, strict=True):
            told = {name: one.to_dict() for name, one in of.items()}
            found.append({**model.to_dict(), "config": model.config, "metrics": told})
        text.echo_json({"models": found, "differing": differing})
        return
    rows = [["", "state", *(model.state for model in chosen)], ["", "progress", *map(text.progress_of, chosen)]]
    for name in _all(settings):
        mark = "*" if name in differing else ""
        rows.append([mark, name, *(of.get(name, text.NOTHING) for of in settings)])
    names = [name for name in _all(metrics) if not name.startswith("system/")]
    for name in names:
        values = [_latest(of.get(name)) for of in metrics]
        rows.append(["*" if len(set(values)) > 1 else "", name, *values])
    text.echo_table(("", "", *(f"{model.name} ({model.id})" for model in chosen)), rows)


def _all(tables: list[dict[str, Any]]) -> list[str]:
    """Every key, in the order of first sight."""
    return list(dict.fromkeys(key for table in tables for key in table))


def _latest(series: Any) -> str:  # noqa: ANN401  # a Series, whose import is not for `ddphub --help`
    from ddphub import models_text as text  # noqa: PLC0415

    if series is None:
        return text.NOTHING
    return f"{text.number(series.latest)} ({text.number(series.least)} to {text.number(series.greatest)})"


@app.command()
def stop(model: ModelArgument, yes: Yes = False, hub: HubOption = None, as_json: Json = False) -> None:
    """Ask a run to stop. Its loop is told when it next asks `run.should_stop()`."""
    from ddphub.events import ENDED  # noqa: PLC0415

    found = _model(model, hub)
    is_over = found.state in ENDED
    if not is_over:
        _confirm(f"Ask {found.name} of {found.project} ({found.state}) to stop?", yes=yes)
        found.stop()
    said = f"it has ended already: {found.state}" if is_over else "asked to stop"
    _say({"id": found.id, "state": found.state, "stop_requested": not is_over}, f"{found.url}: {said}", as_json=as_json)


@app.command()
def delete(
    model: ModelArgument,
    hard: Annotated[
        bool, typer.Option("--hard", help="For good, with all that it reported and its checkpoints; else it is hidden.")
    ] = False,
    yes: Yes = False,
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Hide a model from everyone, or delete it for good, also one that is hidden."""
    from ddphub.errors import HubModelGone  # noqa: PLC0415

    of, model_id = _hub_of(model, hub)
    try:
        found = of.model(model_id)
        what = f"{found.name} of {found.project} ({found.state})"
    except HubModelGone:
        if not hard:
            raise
        what = f"the model {model_id}, which is hidden or not there,"
    _confirm(f"Delete {what} for good?" if hard else f"Hide {what} from everyone?", yes=yes)
    of.delete_model(model_id, hard=hard)
    said = "deleted" if hard else "hidden; --hard also frees its bytes; there is no way back"
    _say({"id": model_id, "hard": hard}, f"{model_id}: {said}", as_json=as_json)


@app.command()
def download(
    model: ModelArgument,
    kind: Annotated[str | None, typer.Option(help="The newest that is epoch, best or final.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The one with this id.", metavar="ID")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to; the checkpoint's name, here, by default.")
    ] = None,
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Fetch a checkpoint, checked against the hub's checksum; the newest by default."""
    from ddphub.hubs.wire import KINDS  # noqa: PLC0415

    if kind is not None and checkpoint is not None:
        _fail("pass --kind or --checkpoint, not both", 2)
    if kind is not None and kind not in KINDS:
        _fail(f"--kind: expected one of {', '.join(KINDS)}", 2)
    found = _model(model, hub)
    chosen = found.find_checkpoint(checkpoint or kind)
    try:
        path = found.download(chosen, output)
    except OSError as error:
        _fail(f"not fetched: {error}", 1)
    facts = {"path": str(path), "checkpoint": chosen.to_dict()}
    _say(facts, f"{path}: {chosen.kind} checkpoint of epoch {chosen.epoch}", as_json=as_json)


def _hub(hub: str | None) -> "Hub":
    from ddphub.reading.hub import Hub  # noqa: PLC0415

    return Hub(hub)


def _hub_of(model: str, hub: str | None) -> "tuple[Hub, str]":
    """The hub that has a model, and the model's id."""
    from ddphub.address import ModelAddress  # noqa: PLC0415
    from ddphub.keys import hub_of_model  # noqa: PLC0415
    from ddphub.reading.hub import Hub  # noqa: PLC0415

    address = ModelAddress.parse(model, "MODEL", os.environ)
    url, key = hub_of_model(address, hub, os.environ)
    return Hub(url, key), address.model_id


def _model(model: str, hub: str | None) -> "Model":
    of, model_id = _hub_of(model, hub)
    return of.model(model_id)


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        _fail("there is no terminal to ask at: pass --yes", 2)
    typer.confirm(question, abort=True, err=True)


def _say(facts: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    from ddphub import models_text as text  # noqa: PLC0415

    if as_json:
        text.echo_json(facts)
    else:
        text.echo(sentence)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"ddphub: {message}", err=True)
    sys.exit(code)
