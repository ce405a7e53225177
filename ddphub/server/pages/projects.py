"""The projects page, and the page of a project: which of its checkpoints are kept."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.params import Depends
from fastapi.responses import RedirectResponse, Response

from ddphub.server.api.projects import find_readable
from ddphub.server.hub import HubDep
from ddphub.server.pages.rendering import page
from ddphub.server.pages.visitor import Form, FromAPage, SignedIn, Visitor, to_sign_in
from ddphub.server.problems import Problem
from ddphub.server.projects import rules_of, set_rules, tell, visible
from ddphub.server.pruning import plan
from ddphub.server.retention import Rules

router = APIRouter()

_TRIED: Final = 100
"""Checkpoints that a page names of those that would go."""

_Text = Annotated[str, Query(max_length=32)]


async def _tried(*, last: _Text = "", best: _Text = "", final: _Text = "", days: _Text = "") -> Rules | None:
    """The rules that someone tries, as the page's address says; None for those of the project."""
    fields = {"last": last, "best": best, "final": final, "days": days}
    return _rules(fields) if any(fields.values()) else None


def _rules(fields: Mapping[str, str]) -> Rules:
    """The rules of a form.

    Raises:
        Problem: 422 that names the field and what is expected.
    """
    value: dict[str, Any] = {"final": bool(fields.get("final"))}
    for name, number in (("last", int), ("best", int), ("days", float)):
        text = fields.get(name, "").strip()
        try:
            value[name] = number(text) if text else None
        except ValueError:
            raise Problem(422, f"{name}: expected a number, or nothing") from None
    return Rules.parse(value)


@router.get("/projects")
def read_all(hub: HubDep, request: Request, visitor: Visitor) -> Response:
    """Every project that the visitor may see."""
    if visitor is None:
        return to_sign_in(request)
    with hub.database.read() as session:
        projects = session.scalars(visible(visitor)).all()
        told = tell(session, projects)
    rules = [rules_of(project).in_words() for project in projects]
    return page("projects.html", visitor=visitor, projects=list(zip(told, rules, strict=True)))


@router.get("/projects/{project_id}")
def read(
    hub: HubDep,
    request: Request,
    visitor: Visitor,
    project_id: str,
    tried: Annotated[Rules | None, Depends(_tried)],
) -> Response:
    """One project; with rules in the address, what they would let go."""
    if visitor is None:
        return to_sign_in(request)
    with hub.database.read() as session:
        project = find_readable(session, project_id, visitor, "reader")
        (told,) = tell(session, [project])
    rules = rules_of(project)
    shown = rules if tried is None else tried
    return page(
        "project.html",
        visitor=visitor,
        project=told,
        rules=shown,
        kept=rules.in_words(),
        is_tried=tried is not None and tried != rules,
        planned=plan(hub, project, shown, limit=_TRIED),
        may_change=visitor.may("admin", project.id),
    )


@router.post("/projects/{project_id}/retention", dependencies=[FromAPage])
def set_retention(hub: HubDep, visitor: SignedIn, project_id: str, form: Form) -> Response:
    """Set the rules, all of them."""
    rules = _rules(form)
    with hub.database.write() as session:
        set_rules(session, find_readable(session, project_id, visitor, "admin"), rules, visitor)
    return RedirectResponse(f"/projects/{project_id}", 303)
