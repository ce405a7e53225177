"""Finding models: by project, run, state, tags and words, newest first, a page at a time.

What the database knows, it filters. A state is concluded from many facts and the time that has passed. Where states are
wanted, the database leaves out only what cannot be in one of them (see `_may_be`), and the rest is looked at in blocks
until the page is full, at most `MOST` models for one page.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from ddphub.events import ENDED, MODEL_STATES
from ddphub.server import model_view
from ddphub.server.expressions import holds_text
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.states import HUB_V1_HEARTBEAT_S, RESTART_S, SILENT_HEARTBEATS, Patience
from ddphub.server.tables import Attempt, Model, Project, Tag

BLOCK: Final = 500
"""Models whose states are concluded together."""

MOST: Final = 10_000
"""Models that one page looks at."""

MAX_WORDS: Final = 256
"""Characters that can be looked for."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which models: those that fulfil all of it.

    Attributes:
        project: the project's name, exactly.
        run_id: the run's id, exactly.
        states: one of these; none given means any.
        tags: all of these.
        words: part of the name, the run id, the project, a tag or the notes, in upper or lower case.
        by: who looks for them: what it may not see is not there.

    Raises:
        Problem: 422 for a state that there is not.
    """

    project: str | None = None
    run_id: str | None = None
    states: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    words: str | None = None
    by: Principal

    def __post_init__(self) -> None:
        if unknown := sorted(self.states.difference(MODEL_STATES)):
            raise Problem(422, f"state: {unknown[0][:40]!a} is none; expected of {', '.join(MODEL_STATES)}")


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of the models that were wanted.

    Attributes:
        results: as `model_view.summaries` gives them.
        total: how many there are in all; None where states are wanted, as only a look at every model could tell.
        last: id of the model after which the next page begins; None when there is nothing more. A page that has fewer
            results than it might, or none, and a `last`, is not the end.
    """

    results: list[dict[str, Any]]
    total: int | None
    last: str | None


def find(session: Session, wanted: Wanted, *, after: Model | None, limit: int, now: float, patience: Patience) -> Page:
    """One page of the models that are wanted, newest first.

    Args:
        session: any session.
        wanted: which.
        after: the page before ended with this one.
        limit: how many at most.
        now: seconds since the epoch.
        patience: how long the hub waits for what.
    """
    chosen = _chosen(wanted)
    if not wanted.states:
        models = session.scalars(_following(chosen, after).limit(limit)).all()
        results = model_view.summaries(session, models, now, patience)
        total = session.scalar(select(func.count()).select_from(chosen.subquery()))
        return Page(results=results, total=total, last=models[-1].public_id if models else None)
    chosen = chosen.where(or_(*(_may_be(state, now, patience.heartbeat_s) for state in wanted.states)))
    results = []
    looked_at = 0
    while looked_at < MOST and (models := session.scalars(_following(chosen, after).limit(BLOCK)).all()):
        summaries = model_view.summaries(session, models, now, patience)
        results += [summary for summary in summaries if summary["state"] in wanted.states]
        if len(results) >= limit:
            return Page(results=results[:limit], total=None, last=results[limit - 1]["id"])
        after = models[-1]
        looked_at += len(models)
        if len(models) < BLOCK:
            return Page(results=results, total=None, last=results[-1]["id"] if results else None)
    return Page(results=results, total=None, last=after.public_id if after is not None and looked_at else None)


def _chosen(wanted: Wanted) -> Select[Model]:
    chosen = select(Model).join(Project, Project.id == Model.project_ref)
    chosen = chosen.where(Model.deleted_at.is_(None), *seen_by(wanted.by))
    if wanted.project is not None:
        chosen = chosen.where(Project.name == wanted.project)
    if wanted.run_id is not None:
        chosen = chosen.where(Model.run_id == wanted.run_id)
    for tag in wanted.tags:
        chosen = chosen.where(select(Tag.id).where(Tag.model_ref == Model.id, Tag.tag == tag).exists())
    if wanted.words:
        texts = (Model.name, Model.run_id, Project.name, Model.notes)
        of_model = [holds_text(text, wanted.words) for text in texts]
        of_tag = select(Tag.model_ref).where(holds_text(Tag.tag, wanted.words))
        chosen = chosen.where(or_(*of_model, Model.id.in_(of_tag)))
    return chosen


def seen_by(principal: Principal) -> list[ColumnElement[bool]]:
    """What holds for the models that a principal may see."""
    conditions: list[ColumnElement[bool]] = []
    if principal.visible is not None:
        conditions.append(Model.project_ref.in_(principal.visible))
    if principal.only_run is not None:
        conditions.append(Model.run_id == principal.only_run[1])
    return conditions


def _may_be(state: str, now: float, heartbeat_s: float) -> ColumnElement[bool]:
    """What holds for every model in a state, and for few others. The rules are those of states.py."""
    of_model = select(Attempt.id).where(Attempt.model_ref == Model.id)
    if state == "new":
        return ~of_model.exists()
    if state in ENDED:
        # Said by an attempt, or concluded from what it said of its SLURM job.
        return of_model.where((Attempt.state == state) | Attempt.slurm.is_not(None)).exists()
    is_open = Attempt.state.is_(None) | Attempt.state.not_in(ENDED)
    if state == "lost":
        return of_model.where(is_open).exists()
    silent_since = now - SILENT_HEARTBEATS * max(heartbeat_s, HUB_V1_HEARTBEAT_S) - RESTART_S
    # The heartbeats of HUB v1 clients are the model's, not an attempt's.
    is_heard = or_(Attempt.heard_at.is_(None), Attempt.heard_at >= silent_since, Model.last_seen >= silent_since)
    return of_model.where(is_open, is_heard).exists()


def _following(chosen: Select[Model], after: Model | None) -> Select[Model]:
    return (chosen if after is None else chosen.where(Model.id < after.id)).order_by(Model.id.desc())
