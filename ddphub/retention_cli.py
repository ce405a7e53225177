"""`ddphub hub retention`: which checkpoints of a project's runs are kept, asked of the hub.

Exit code 1: the hub has no such project or does not answer; 2: an option or a setting is wrong.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from ddphub.reading.api import Api

app = typer.Typer(no_args_is_help=True, help="Say which checkpoints of a project's runs are kept.")

HubOption = Annotated[str | None, typer.Option("--hub", help="The hub; DDPHUB_URL or the one of `ddphub login`.")]
Json = Annotated[bool, typer.Option("--json", help="JSON.")]
Project = Annotated[str, typer.Argument(help="Its name.", metavar="PROJECT")]


@app.command("show")
def show_retention(project: Project, hub: HubOption = None, as_json: Json = False) -> None:
    """Show the rules of a project."""
    from ddphub.models_text import echo, echo_json  # noqa: PLC0415  # keeps `ddphub --help` quick

    with _hub(hub) as api:
        rules = api.call("GET", f"{_project(api, project)}/retention")
    if as_json:
        echo_json(rules)
    else:
        echo(f"{project}: {_rules_in_words(rules)}")


@app.command("set")
def set_retention(
    project: Project,
    last: Annotated[int | None, typer.Option(help="Keep so many of the newest of each run.", min=1)] = None,
    best: Annotated[int | None, typer.Option(help="Keep so many of the newest of kind best.", min=1)] = None,
    final: Annotated[bool, typer.Option("--final", help="Keep those of kind final.")] = False,
    days: Annotated[float | None, typer.Option(help="Keep what arrived within so many days.", min=0.0)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Keep all: no rules.")] = False,
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Set the rules of a project, all of them. What no rule keeps is deleted, within the hour.

    A run always keeps its newest checkpoint, and one that has not finished the newest of each kind.
    """
    from ddphub.models_text import echo, echo_json  # noqa: PLC0415  # keeps `ddphub --help` quick

    rules = {"last": last, "best": best, "final": final or None, "days": days}
    rules = {name: value for name, value in rules.items() if value is not None}
    if everything == bool(rules):
        _fail("name rules, or --all to keep everything", 2)
    with _hub(hub) as api:
        told = api.call("PUT", f"{_project(api, project)}/retention", body=rules)
    if as_json:
        echo_json(told)
    else:
        echo(f"{project}: {_rules_in_words(told)}")


@app.command("apply")
def apply_retention(
    project: Project,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, and list what would go.")] = False,
    hub: HubOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a checkpoint, one a line.")] = False,
) -> None:
    """Delete now what the rules of a project do not keep, as the hub does by itself every hour."""
    from ddphub.models_text import ago, echo, echo_json, echo_table, size  # noqa: PLC0415  # keeps `ddphub --help` quick

    found: list[Any] = []
    with _hub(hub) as api:
        path = _project(api, project)
        told = api.call("POST", f"{path}/retention/{'plan' if dry_run else 'apply'}")
        found += told["checkpoints"]
        while told["more"] and told["checkpoints"] and not dry_run:
            told = api.call("POST", f"{path}/retention/apply")
            found += told["checkpoints"]
    if as_json:
        for one in found:
            echo_json(one)
        return
    rows = [
        [one["id"], one["model_name"], one["kind"], str(one["epoch"]), size(one["size"]), ago(one["committed_at"])]
        for one in found
    ]
    if rows:
        echo_table(("ID", "MODEL", "KIND", "EPOCH", "SIZE", "ARRIVED"), rows)
    count = f"{len(found)}{' or more' if told['more'] else ''}"
    echo(f"{count} checkpoints, {size(sum(one['size'] for one in found))}: {'would go' if dry_run else 'deleted'}")


def _rules_in_words(rules: Any) -> str:  # noqa: ANN401  # JSON
    parts = []
    for name, words in (("last", "the last {}"), ("best", "the last {} of kind best"), ("days", "{:g} days")):
        if rules and rules.get(name):
            parts.append(words.format(rules[name]))
    if rules and rules.get("final"):
        parts.append("those of kind final")
    return f"of each run keeps {', '.join(parts)}" if parts else "keeps all"


@contextmanager
def _hub(hub: str | None) -> Iterator["Api"]:
    from ddphub.keys import hub_and_key  # noqa: PLC0415  # keeps `ddphub --help` quick
    from ddphub.reading.api import Api  # noqa: PLC0415

    api = Api(*hub_and_key(None, hub, os.environ, source="--hub"))
    try:
        yield api
    finally:
        api.close()


def _project(api: "Api", name: str) -> str:
    """The path of a project's requests."""
    projects = api.each("/v1/projects", {}, cursor="last_doc_id", following="lastRecordId")
    found = next((one["id"] for one in projects if one["name"] == name), None)
    if found is None:
        _fail(f"{api.url} has no project {name!r}, or the key may not see it", 1)
    return f"/v1/projects/{quote(found)}"


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"ddphub: {message}", err=True)
    sys.exit(code)
