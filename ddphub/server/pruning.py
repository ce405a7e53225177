"""Doing what the retention rules of projects say: which checkpoints would go, and deleting them.

Rules are read and followed for one run at a time, and each deletion is that of `deletion`: a checkpoint that someone
else deleted meanwhile is no error, one that still arrives is not looked at, bytes that another checkpoint needs stay.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub.server import audit
from ddphub.server.deletion import delete_checkpoint
from ddphub.server.hub import Hub
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.projects import rules_of
from ddphub.server.retention import OVER, Candidate, Rules, superfluous
from ddphub.server.states import conditions
from ddphub.server.tables import Attempt, Checkpoint, CheckpointFile, Model, Project

_MODELS: Final = 50
"""Runs that one transaction looks at."""


@dataclass(frozen=True, kw_only=True)
class Superfluous:
    """A checkpoint that the rules do not keep.

    Attributes:
        project: the project's number.
        model_id: the model's id.
        model_name: its name.
        checkpoint: as the rules saw it.
        name: the checkpoint's.
        size: bytes of its files.
    """

    project: int
    model_id: str
    model_name: str
    checkpoint: Candidate
    name: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        """As the API tells it."""
        one = self.checkpoint
        return {
            "id": one.id,
            "model_id": self.model_id,
            "model_name": self.model_name,
            "kind": one.kind,
            "epoch": one.epoch,
            "step": one.step,
            "name": self.name,
            "size": self.size,
            "committed_at": one.committed_at,
        }


def find_superfluous(hub: Hub, project: Project, rules: Rules) -> Iterator[Superfluous]:
    """What rules do not keep of a project's runs, run by run, each oldest first.

    Args:
        hub: the hub.
        project: whose runs.
        rules: the project's, or others to try.
    """
    last = 0
    while rules:
        with hub.database.read() as session:
            of_project = select(Model).where(Model.project_ref == project.id, Model.deleted_at.is_(None))
            has_any = select(Checkpoint.id).where(Checkpoint.model_ref == Model.id).exists()
            models = session.scalars(of_project.where(Model.id > last, has_any).order_by(Model.id).limit(_MODELS)).all()
            found = _look_at(hub, session, models, rules)
        yield from found
        if len(models) < _MODELS:
            return
        last = models[-1].id


def _look_at(hub: Hub, session: Session, models: Sequence[Model], rules: Rules) -> list[Superfluous]:
    attempts: dict[int, list[Attempt]] = {model.id: [] for model in models}
    for attempt in session.scalars(select(Attempt).where(Attempt.model_ref.in_(attempts)).order_by(Attempt.number)):
        attempts[attempt.model_ref].append(attempt)
    now = time.time()
    states = conditions(session, {model: attempts[model.id] for model in models}, now, hub.patience)
    runs: dict[int, list[Candidate]] = {model.id: [] for model in models}
    names: dict[str, str] = {}
    for row in session.scalars(
        select(Checkpoint).where(Checkpoint.model_ref.in_(runs), Checkpoint.committed_at.is_not(None))
    ):
        names[row.public_id] = row.name
        candidate = Candidate(
            id=row.public_id,
            number=row.id,
            kind=row.kind,
            epoch=row.epoch,
            step=row.step,
            committed_at=row.committed_at or 0.0,
        )
        runs[row.model_ref].append(candidate)
    lost = [
        (model, one)
        for model in models
        for one in superfluous(runs[model.id], rules, now, may_go_on=states[model.id].state not in OVER)
    ]
    sizes = _sizes(session, [one.number for _, one in lost])
    return [
        Superfluous(
            project=model.project_ref,
            model_id=model.public_id,
            model_name=model.name,
            checkpoint=one,
            name=names[one.id],
            size=sizes.get(one.number, 0),
        )
        for model, one in lost
    ]


def _sizes(session: Session, checkpoints: list[int]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for start in range(0, len(checkpoints), 500):
        some = checkpoints[start : start + 500]
        statement = (
            select(CheckpointFile.checkpoint_ref, func.sum(CheckpointFile.size))
            .where(CheckpointFile.checkpoint_ref.in_(some))
            .group_by(CheckpointFile.checkpoint_ref)
        )
        sizes.update({number: int(size) for number, size in session.execute(statement)})
    return sizes


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What of a project was deleted, or would be.

    Attributes:
        some: the checkpoints.
        more: whether there are more than were asked for.
    """

    some: Sequence[Superfluous]
    more: bool

    @property
    def size(self) -> int:
        """Bytes of their files, which go unless another checkpoint needs them."""
        return sum(one.size for one in self.some)


def plan(hub: Hub, project: Project, rules: Rules, *, limit: int) -> Pruned:
    """What rules do not keep, at most `limit` checkpoints; nothing is changed.

    Args:
        hub: the hub.
        project: whose.
        rules: the project's, or others to try.
        limit: how many at most.
    """
    some = list(islice(find_superfluous(hub, project, rules), limit + 1))
    return Pruned(some=some[:limit], more=len(some) > limit)


def prune(
    hub: Hub, project: Project, by: Principal, *, limit: int, is_over: Callable[[], bool] = lambda: False
) -> Pruned:
    """Delete what the rules of a project do not keep, at most `limit` checkpoints.

    Args:
        hub: the hub.
        project: whose.
        by: who does it, for the audit log.
        limit: how many at most.
        is_over: whether to leave the rest.
    """
    rules = _rules_now(hub, project)
    planned = plan(hub, project, rules, limit=limit)
    if not planned.some:
        return planned
    with hub.database.write() as session:
        ids = [one.checkpoint.id for one in planned.some]
        audit.record(session, by, "checkpoint.delete", project.name, retention=True, checkpoints=ids)
    deleted = []
    for one in planned.some:
        # Who gives a project other rules means them for what is there at that moment.
        if is_over() or _rules_now(hub, project) != rules:
            break
        try:
            delete_checkpoint(hub, one.model_id, one.checkpoint.id, unless_newest=True)
        except Problem as problem:
            if problem.status not in {404, 409}:
                raise
            continue  # someone else deleted it, or what was newer
        deleted.append(one)
    return Pruned(some=deleted, more=planned.more)


def _rules_now(hub: Hub, project: Project) -> Rules:
    with hub.database.read() as session:
        return rules_of(session.get_one(Project, project.id))
