"""Which checkpoints of a run are kept: rules of a project, and what they let go.

A checkpoint is kept when any rule keeps it, and what no rule keeps may go:

| rule | keeps, of each run |
| --- | --- |
| last | as many of the newest checkpoints, of whatever kind |
| best | as many of the newest ones of kind best |
| final | those of kind final |
| days | those that arrived within so many days |

A project without rules keeps all. Whatever the rules say, a run keeps its newest checkpoint; and one that may go on
keeps what it would resume from, which its program chooses by kind: the newest of each kind, and the one that is
furthest, as an older attempt may deliver late.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from ddphub.server.body import is_integer
from ddphub.server.problems import Problem

DAY_S: Final = 24 * 3600.0

MOST: Final = 1_000_000
"""The greatest number that a rule takes."""

OVER: Final = frozenset({"finished"})
"""States of a run that does not go on. One that failed, or was stopped or cancelled, may be submitted again."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of a project; those that are None keep nothing by themselves.

    Attributes:
        last: checkpoints.
        best: checkpoints.
        final: whether those of kind final are kept.
        days: days since a checkpoint was complete on the hub.
    """

    last: int | None = None
    best: int | None = None
    final: bool = False
    days: float | None = None

    @classmethod
    def parse(cls, value: object) -> Self:
        """The rules of a request or of a project's row.

        Args:
            value: an object of rules by name; null for none. A rule that is null or left out keeps nothing.

        Raises:
            Problem: 422 that names the rule and what is expected.
        """
        if value is None:
            return cls()
        if not isinstance(value, dict):
            raise Problem(422, "expected an object with last, best, final and days")
        if unknown := sorted(set(value) - {"last", "best", "final", "days"}):
            raise Problem(422, f"{unknown[0][:40]!a}: expected last, best, final or days")
        for name in ("last", "best"):
            count = value.get(name)
            if count is not None and not (is_integer(count, low=1) and count <= MOST):
                raise Problem(422, f"{name}: expected an integer from 1 to {MOST}, or null")
        if not isinstance(value.get("final"), bool | None):
            raise Problem(422, "final: expected true or false")
        days = value.get("days")
        if days is not None and (type(days) not in {int, float} or not 0 < days <= MOST):
            raise Problem(422, f"days: expected a number above 0, at most {MOST}, or null")
        return cls(
            last=value.get("last"), best=value.get("best"), final=bool(value.get("final")), days=days and float(days)
        )

    def __bool__(self) -> bool:
        return self != Rules()

    def to_dict(self) -> dict[str, Any]:
        """As `parse` takes them."""
        return asdict(self)

    def in_words(self) -> str:
        """One line for people."""
        if not self:
            return "keeps all"
        parts = []
        if self.last is not None:
            parts.append(f"the last {self.last}")
        if self.best is not None:
            parts.append(f"the last {self.best} of kind best")
        if self.final:
            parts.append("those of kind final")
        if self.days is not None:
            parts.append(f"those of the last {self.days:g} days")
        return f"keeps {', '.join(parts)}, of each run"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A complete checkpoint as the rules see it.

    Attributes:
        id: the checkpoint's id.
        number: of its row: a later checkpoint of the run has a higher one.
        kind: epoch, best or final.
        epoch: of the training; None where it was not said.
        step: the same.
        committed_at: when it was complete on the hub, seconds since the epoch.
    """

    id: str
    number: int
    kind: str
    epoch: int | None
    step: int | None
    committed_at: float


def superfluous(run: Iterable[Candidate], rules: Rules, now: float, *, may_go_on: bool) -> list[Candidate]:
    """The checkpoints that no rule keeps, oldest first.

    Args:
        run: every complete checkpoint of one run, in any order.
        rules: of its project.
        now: seconds since the epoch.
        may_go_on: whether the run might resume.
    """
    newest_first = sorted(run, key=lambda one: one.number, reverse=True)
    if not rules or not newest_first:
        return []
    kept = {newest_first[0].id}
    kinds: dict[str, list[Candidate]] = {}
    for one in newest_first:
        kinds.setdefault(one.kind, []).append(one)
    if may_go_on:
        for some in kinds.values():
            kept |= {some[0].id, max(some, key=_progress).id}
    if rules.last is not None:
        kept |= _ids(newest_first[: rules.last])
    if rules.best is not None:
        kept |= _ids(kinds.get("best", [])[: rules.best])
    if rules.final:
        kept |= _ids(kinds.get("final", []))
    if rules.days is not None:
        since = now - rules.days * DAY_S
        kept |= _ids([one for one in newest_first if one.committed_at >= since])
    return [one for one in reversed(newest_first) if one.id not in kept]


def _progress(one: Candidate) -> tuple[int, int, int]:
    nothing = -1 << 64
    epoch = nothing if one.epoch is None else one.epoch
    step = nothing if one.step is None else one.step
    return epoch, step, one.number


def _ids(some: Sequence[Candidate]) -> set[str]:
    return {one.id for one in some}
