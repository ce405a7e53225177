"""`ddphub hub users`, `keys` and `audit`: who may do what on a hub of `ddphub serve`.

They ask the hub, with the key of DDPHUB_API_KEY or `ddphub login`. Exit code 1: the hub refuses or does not answer; 2:
an option or a setting is wrong.
"""

import os
import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from ddphub.reading.api import Api

app = typer.Typer(no_args_is_help=True)
users = typer.Typer(no_args_is_help=True, help="Say who may do what; for the hub's admin.")
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys; one for a single run, for a job.")
app.add_typer(users, name="users")
app.add_typer(keys, name="keys")

ROLES: Final = ("reader", "writer", "admin")
USERS_HEAD: Final = ("NAME", "MAY", "SINCE", "ID")
KEYS_HEAD: Final = ("ID", "NAME", "BEGINS WITH", "USER", "ROLE", "PROJECT", "RUN", "MADE", "LAST USED", "EXPIRES")
AUDIT_HEAD: Final = ("WHEN", "WHO", "WHAT", "OF", "FROM", "MORE")

_DURATION: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}

HubOption = Annotated[str | None, typer.Option("--hub", help="The hub; DDPHUB_URL or the one of `ddphub login`.")]
Json = Annotated[bool, typer.Option("--json", help="JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")]
UserName = Annotated[str, typer.Argument(help="Its name.", metavar="USER")]
Role = Annotated[str, typer.Argument(help="reader, writer or admin.", metavar="ROLE")]
InProject = Annotated[str | None, typer.Option("--project", help="In this project.", show_default="in all")]


@users.command("list")
def list_users(hub: HubOption = None, as_json: JsonLines = False) -> None:
    """List the users, and what each may do."""
    from ddphub import models_text as text  # noqa: PLC0415  # keeps `ddphub --help` quick

    found = _api(hub).each("/v1/users", {})
    if as_json:
        for user in found:
            text.echo_json(user)
    else:
        text.echo_table(USERS_HEAD, [_user_row(user) for user in found])


def _user_row(user: dict[str, Any]) -> list[str]:
    from ddphub import models_text as text  # noqa: PLC0415

    may = [f"{grant['role']} in {grant['project'] or 'all projects'}" for grant in user["grants"]]
    told = "disabled" if user["disabled_at"] is not None else ", ".join(may) or "nothing"
    return [user["name"], told, text.date(user["created_at"]), user["id"]]


@users.command("add")
def add_user(
    user: UserName,
    role: Annotated[str | None, typer.Option(help="reader, writer or admin.", show_default="may nothing yet")] = None,
    project: InProject = None,
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Add a user. Make them a key then: `ddphub hub keys add --user USER`."""
    if project is not None and role is None:
        _fail("--project: say with --role what the user may do there", 2)
    grants = [] if role is None else [{"project": project, "role": _checked_role(role)}]
    made = _api(hub).call("POST", "/v1/users", body={"name": user, "grants": grants})
    _say(made, f"added {user}", as_json=as_json)


@users.command()
def grant(user: UserName, role: Role, project: InProject = None, hub: HubOption = None, as_json: Json = False) -> None:
    """Give a user a role in a project or in all, in the place of the one that they had there."""
    _regrant(hub, user, project, _checked_role(role), as_json=as_json)


@users.command()
def ungrant(user: UserName, project: InProject = None, hub: HubOption = None, as_json: Json = False) -> None:
    """Take back what a user was granted in a project, or what was granted in all; what each allows stays."""
    _regrant(hub, user, project, None, as_json=as_json)


@users.command()
def disable(user: UserName, hub: HubOption = None, as_json: Json = False) -> None:
    """Let a user do nothing, until they are enabled again."""
    _change(hub, user, {"disabled": True}, as_json=as_json)


@users.command()
def enable(user: UserName, hub: HubOption = None, as_json: Json = False) -> None:
    """Let a user who was disabled do again what they were granted."""
    _change(hub, user, {"disabled": False}, as_json=as_json)


@users.command()
def remove(user: UserName, yes: Yes = False, hub: HubOption = None, as_json: Json = False) -> None:
    """Revoke all keys of a user and take back what they were granted; the name stays, for the audit log."""
    api = _api(hub)
    found = _user(api, user)
    _confirm(f"Revoke all keys of {user}, for good?", yes=yes)
    api.call("DELETE", f"/v1/users/{quote(found['id'])}")
    _say({"id": found["id"], "name": user}, f"removed {user}", as_json=as_json)


def _regrant(hub: str | None, user: str, project: str | None, role: str | None, *, as_json: bool) -> None:
    found = _user(_api(hub), user)
    grants = [one for one in found["grants"] if one["project"] != project]
    _change(hub, user, {"grants": [*grants, *([{"project": project, "role": role}] if role else [])]}, as_json=as_json)


def _change(hub: str | None, user: str, changes: dict[str, Any], *, as_json: bool) -> None:
    api = _api(hub)
    changed = api.call("PATCH", f"/v1/users/{quote(_user(api, user)['id'])}", body=changes)
    _say(changed, f"{user}: {_user_row(changed)[1]}", as_json=as_json)


def _user(api: "Api", name: str) -> dict[str, Any]:
    found = next((user for user in api.each("/v1/users", {}) if name in {user["name"], user["id"]}), None)
    if found is None:
        _fail(f"the hub has no user {name}", 1)
    return dict(found)


@keys.command("list")
def list_keys(
    every: Annotated[bool, typer.Option("--every", help="Also those that were revoked or have expired.")] = False,
    hub: HubOption = None,
    as_json: JsonLines = False,
) -> None:
    """List the keys that you may revoke: yours, those of projects that you are admin of, or as the hub's admin all."""
    from ddphub import models_text as text  # noqa: PLC0415  # keeps `ddphub --help` quick

    found = _api(hub).each("/v1/keys", {"every": "true" if every else None})
    if as_json:
        for key in found:
            text.echo_json(key)
    else:
        text.echo_table(KEYS_HEAD, [_key_row(key) for key in found])


def _key_row(key: dict[str, Any]) -> list[str]:
    from ddphub import models_text as text  # noqa: PLC0415

    ends = text.NOTHING if key["expires_at"] is None else text.date(key["expires_at"])
    return [
        key["id"],
        key["name"],
        key["prefix"] or text.NOTHING,
        key["user"] or text.NOTHING,
        key["role"],
        key["project"] or "all",
        key["run_id"] or "all",
        text.date(key["created_at"]),
        text.ago(key["last_used_at"]),
        ends if key["revoked_at"] is None else f"revoked {text.date(key['revoked_at'])}",
    ]


@keys.command("add")
def add_key(
    name: Annotated[str | None, typer.Option(help="What people know it by.", show_default="what it is for")] = None,
    role: Annotated[str, typer.Option(help="The most that it can do: reader, writer or admin.")] = "writer",
    project: Annotated[str | None, typer.Option(help="Good for this project alone.", show_default="for all")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Good for this run of the project alone.", show_default="for all")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Good for so long, as 12h, 7d or 8w.", show_default="until it is revoked")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose it is; for the hub's admin.", show_default="yours")] = None,
    no_user: Annotated[bool, typer.Option("--no-user", help="Nobody's; for an admin.")] = False,
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is printed this once, alone on standard output: `key=$(ddphub hub keys add ...)`."""
    if run_id is not None and project is None:
        _fail("--run-id: name the run's --project, too", 2)
    if user is not None and no_user:
        _fail("pass --user or --no-user, not both", 2)
    what = f"run {run_id} of {project}" if run_id else project or f"{role} key"
    wanted: dict[str, Any] = {"name": name or what[:128].strip(), "role": _checked_role(role)}
    wanted |= {"project": project, "run_id": run_id, "expires_at": _expires_at(expires)}
    if user is not None or no_user:
        wanted["user"] = user
    made = _api(hub).call("POST", "/v1/keys", body=wanted)
    if as_json:
        _say(made, "", as_json=True)
        return
    typer.echo(made["key"])
    until = "until it is revoked" if made["expires_at"] is None else f"until {_date(made['expires_at'])}"
    owner = f" of {made['user']}" if made["user"] else ""
    where = f"run {made['run_id']} of {made['project']}" if made["run_id"] else made["project"] or "all projects"
    typer.echo(f"{made['role']} key{owner} for {where}, good {until}; shown only now (id {made['id']})", err=True)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, or the letters that it begins with.", metavar="KEY")],
    yes: Yes = False,
    hub: HubOption = None,
    as_json: Json = False,
) -> None:
    """Make a key good for nothing, from the next request on."""
    api = _api(hub)
    found = [one for one in api.each("/v1/keys", {}) if key in {one["id"], one["prefix"]}]
    if len(found) != 1:
        _fail(f"{'several keys begin' if found else 'the hub has no key that begins'} with {key[:6]}: pass its id", 1)
    owner = f" of {found[0]['user']}" if found[0]["user"] else ""
    _confirm(f"Revoke {found[0]['name']}{owner}, which begins with {found[0]['prefix']}?", yes=yes)
    api.call("DELETE", f"/v1/keys/{quote(found[0]['id'])}")
    _say({"id": found[0]["id"]}, f"revoked {found[0]['id']}", as_json=as_json)


@app.command()
def audit(
    after: Annotated[
        int | None, typer.Option(help="All records after the one with this number.", show_default="the newest", min=0)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.", min=1, max=1000)] = 50,
    hub: HubOption = None,
    as_json: JsonLines = False,
) -> None:
    """Show who changed what, when and from where, oldest first; for the hub's admin."""
    from ddphub import models_text as text  # noqa: PLC0415  # keeps `ddphub --help` quick

    api = _api(hub)
    if after is None:
        records = api.call("GET", "/v1/audit", {"newest": "true", "limit": limit})["results"]
    else:
        records = api.each("/v1/audit", {"after": after})
    if as_json:
        for record in records:
            text.echo_json(record)
        return
    rows = []
    for one in records:
        more = " ".join(f"{name}={value}" for name, value in one["detail"].items() if value is not None)
        rows.append([_date(one["time"]), one["who"], one["action"], one["object"], one["address"] or "", more])
    text.echo_table(AUDIT_HEAD, rows)


def _checked_role(role: str) -> str:
    return role if role in ROLES else _fail(f"role: expected one of {', '.join(ROLES)}", 2)


def _expires_at(text: str | None) -> float | None:
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    if match is None or not int(match[1]):
        _fail("--expires: expected a number with s, m, h, d or w, as 12h or 7d", 2)
    return time.time() + int(match[1]) * _SECONDS[match[2]]


def _date(seconds: float) -> str:
    from ddphub import models_text as text  # noqa: PLC0415

    return text.date(seconds)


def _api(hub: str | None) -> "Api":
    from ddphub.keys import hub_and_key  # noqa: PLC0415
    from ddphub.reading.api import Api  # noqa: PLC0415  # requests, only where it is used

    return Api(*hub_and_key(None, hub, os.environ, source="--hub"))


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
