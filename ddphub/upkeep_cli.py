"""`ddphub hub backup|backups|restore|verify|retention`: what the engineer who runs a hub does with it.

All but `retention` read the hub's own data directory, database and storage, on a machine and as a user that can. Exit
code 1: something is wrong with what was looked at; 2: an option or a setting is wrong.
"""

import getpass
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from ddphub import retention_cli

if TYPE_CHECKING:
    from ddphub.server.principal import Principal
    from ddphub.server.settings import ServerSettings

app = typer.Typer(no_args_is_help=True)
app.add_typer(retention_cli.app, name="retention")

DATA: Final = Path("ddphub-data")

DataOption = Annotated[Path, typer.Option("--data", help="The hub's data folder.")]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="The hub's database, where that is PostgreSQL; or DDPHUB_DATABASE_URL.",
        show_default="SQLite in the data folder",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", help="The hub's storage, where that is S3.", show_default="the data folder"),
]
Backups = Annotated[Path, typer.Argument(help="The folder of backups.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="JSON.")]


@app.command()
def backup(
    folder: Backups,
    data: DataOption = DATA,
    database_url: DatabaseOption = None,
    storage: StorageOption = None,
    keep: Annotated[
        int | None, typer.Option(help="Remove all but so many of the newest backups afterwards.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Back a hub up, beside it while it serves. What the folder has already is not copied again."""
    settings = _settings(data, database_url, storage)
    from ddphub.models_text import echo, echo_json, size  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.server import audit  # noqa: PLC0415
    from ddphub.server.backups.folder import BackupFolder  # noqa: PLC0415
    from ddphub.server.backups.making import make_backup, remove_old  # noqa: PLC0415
    from ddphub.server.beside import beside  # noqa: PLC0415

    with _in_words(), beside(settings) as kept, (backups := BackupFolder(folder)).locked():
        made = make_backup(backups, kept.database, kept.storage, kept.directory.secret())
        with kept.database.write() as session:
            audit.record(
                session, _me(), "backup", str(made.backup.path), rows=made.rows, blobs=made.backup.manifest.blobs
            )
        removed = [] if keep is None else [old.name for old in remove_old(backups, keep)[0]]
    manifest = made.backup.manifest
    if as_json:
        facts = {"name": made.backup.name, "path": str(made.backup.path), "rows": made.rows, "removed": removed}
        facts |= {"blobs": manifest.blobs, "blob_bytes": manifest.blob_bytes}
        facts |= {"new_blobs": made.new_blobs, "new_bytes": made.new_bytes}
        echo_json({**facts, "deleted": manifest.deleted, "damaged": manifest.damaged})
    else:
        echo(
            f"{made.backup.path}: {made.rows} rows in {made.tables_s:.1f} s; {manifest.blobs} files of checkpoints, "
            f"{size(manifest.blob_bytes)}, {made.new_blobs} of them new, {size(made.new_bytes)} in {made.blobs_s:.1f} s"
        )
        for name in removed:
            echo(f"removed {name}")
    for project, sha256 in manifest.damaged:
        said = f"the hub itself has no good bytes of {sha256}, of the project {project}: see ddphub hub verify"
        typer.echo(f"ddphub: {said}", err=True)
    raise typer.Exit(1 if manifest.damaged else 0)


@app.command("backups")
def list_backups(
    folder: Backups,
    check: Annotated[bool, typer.Option("--check", help="Read all that they hold, and compare the digests.")] = False,
    as_json: Json = False,
) -> None:
    """List the backups in a folder, oldest first."""
    _needs_server()
    from ddphub.models_text import date, echo_json, echo_table, size  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.server.backups.checking import problems_of  # noqa: PLC0415
    from ddphub.server.backups.folder import BackupFolder  # noqa: PLC0415

    with _in_words():
        backups = BackupFolder(folder).all()
        problems = list(problems_of(BackupFolder(folder), backups)) if check else []
    if as_json:
        found = [{"name": one.name, **asdict(one.manifest)} for one in backups]
        echo_json({"backups": found, "problems": problems})
    else:
        rows = [
            [
                one.name,
                date(one.manifest.began_at),
                one.manifest.version,
                one.manifest.database,
                str(sum(table.rows for table in one.manifest.tables.values())),
                str(one.manifest.blobs),
                size(one.manifest.blob_bytes),
            ]
            for one in backups
        ]
        echo_table(("NAME", "BEGAN", "DDPHUB", "DATABASE", "ROWS", "FILES", "SIZE"), rows)
    for problem in problems:
        typer.echo(f"ddphub: {problem}", err=True)
    raise typer.Exit(1 if problems or not backups else 0)


@app.command()
def restore(
    folder: Backups,
    data: Annotated[Path, typer.Option("--data", help="The new hub's data folder: nothing, or an empty folder.")],
    name: Annotated[str | None, typer.Option("--backup", help="Which one, by its name; the newest by default.")] = None,
    database_url: DatabaseOption = None,
    storage: StorageOption = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Restore the rest where the folder has lost files of checkpoints.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore a backup where nothing is: SQLite or PostgreSQL, a folder or S3, whatever it came from."""
    settings = _settings(data, database_url, storage)
    from ddphub.models_text import echo, echo_json, size  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.server.backups.folder import BackupFolder  # noqa: PLC0415
    from ddphub.server.backups.restoring import restore as restore_backup  # noqa: PLC0415

    with _in_words():
        backups = BackupFolder(folder)
        chosen = backups.find(name)
        restored = restore_backup(settings, backups, chosen, incomplete=incomplete)
    if as_json:
        echo_json({"name": chosen.name, **asdict(restored)})
    else:
        echo(
            f"{data}: {restored.rows} rows, {restored.blobs} files of checkpoints, {size(restored.blob_bytes)}, "
            f"as they were at {chosen.name}"
        )
    for project, sha256 in restored.missing:
        typer.echo(f"ddphub: there are no bytes of {sha256}, of the project {project}", err=True)
    raise typer.Exit(1 if restored.missing else 0)


@app.command()
def verify(
    data: DataOption = DATA,
    database_url: DatabaseOption = None,
    storage: StorageOption = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Put back from --backups what is missing or damaged; set other damaged bytes aside, so that who saves "
            "the same again sends them.",
        ),
    ] = False,
    backups: Annotated[
        list[Path] | None, typer.Option("--backups", help="With --repair: a folder of backups; several times.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a finding, then one for all, a line each.")
    ] = False,
) -> None:
    """Read all that a hub keeps, beside it while it serves, and compare digests and counts."""
    if backups and not repair:
        _fail("--backups is for --repair", 2)
    settings = _settings(data, database_url, storage)
    from ddphub.models_text import echo, echo_json, size  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.server.backups.folder import BackupFolder  # noqa: PLC0415
    from ddphub.server.beside import beside  # noqa: PLC0415
    from ddphub.server.mending import mend  # noqa: PLC0415
    from ddphub.server.verify import Verification  # noqa: PLC0415

    folders = [BackupFolder(path) for path in backups or ()]
    left = 0
    counts: Counter[str] = Counter()
    with _in_words(), beside(settings) as kept:
        looked = Verification(kept.database, kept.storage)
        for finding in looked.findings():
            done = mend(kept, finding, folders, time.time()) if repair else "left"
            counts[finding.kind] += 1
            left += finding.is_severe and done != "mended"
            if as_json:
                echo_json({"kind": finding.kind, "what": finding.what, "done": done})
            else:
                echo(f"{finding.kind}: {finding.what}{'' if done == 'left' else f': {done}'}")
    if as_json:
        echo_json({"blobs": looked.blobs, "bytes": looked.bytes, "models": looked.models, **counts})
    else:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing is wrong"
        echo(f"{looked.models} models, {looked.blobs} files of checkpoints, {size(looked.bytes)}: {found}")
    raise typer.Exit(1 if left else 0)


def _settings(data: Path, database_url: str | None, storage: str | None) -> "ServerSettings":
    _needs_server()
    from ddphub.server.settings import ServerSettings, given_database_url  # noqa: PLC0415  # the server extra

    return ServerSettings(data=data, database_url=given_database_url(database_url, os.environ), storage=storage)


def _needs_server() -> None:
    try:
        import ddphub.server  # noqa: F401, PLC0415  # the server extra may not be installed
    except ModuleNotFoundError as error:
        _fail(f"this needs the server extra ({error.name} is missing): pip install 'ddphub[server]'", 2)


def _me() -> "Principal":
    from ddphub.server.principal import Principal  # noqa: PLC0415

    return Principal.of_the_hub(f"{getpass.getuser()} at {socket.gethostname()}")


@contextmanager
def _in_words() -> Iterator[None]:
    """What the hub would answer as an error ends the program with its sentence."""
    from ddphub.server.problems import Problem  # noqa: PLC0415

    try:
        yield
    except Problem as problem:
        _fail(problem.detail, 1)
    except OSError as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"ddphub: {message}", err=True)
    sys.exit(code)
