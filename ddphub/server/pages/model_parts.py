"""What the parts of a model's page show."""

import json
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ddphub.events import ENDED
from ddphub.server import model_view
from ddphub.server.attempts import Shown
from ddphub.server.labels import tags_of
from ddphub.server.pages import delivery, log_tail, rank_table
from ddphub.server.pages.best import better
from ddphub.server.pages.time_line import WIDTH, time_line
from ddphub.server.principal import Role
from ddphub.server.reasons import of_end
from ddphub.server.states import Patience
from ddphub.server.tables import Checkpoint, LatestMetric, Model, Series

STREAMS: Final = log_tail.STREAMS

_CHECKPOINTS: Final = 20


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a model's page is to be seen, as its address says.

    Attributes:
        ranks_from: how many ranks come before the table's first.
        checkpoints_from: how many checkpoints come before the first, from the newest on.
        log_rank: only this rank's lines; None for all.
        log_stream: one of `STREAMS`; empty for all.
    """

    ranks_from: int = 0
    checkpoints_from: int = 0
    log_rank: int | None = None
    log_stream: str = ""


@dataclass(frozen=True)
class Look:
    """One look at a model."""

    session: Session
    model: Model
    view: View
    patience: Patience

    @cached_property
    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What a list says of the model."""
        return model_view.summaries(self.session, [self.model], self.now, self.patience)[0]

    @property
    def newest_attempt(self) -> dict[str, Any] | None:
        """The one that started last; its number may be lower, as an offline attempt is heard of late."""
        number = self.summary["attempt"]
        return next((one for one in self.summary["attempts"] if one["number"] == number), None)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the page.

    Attributes:
        values: what its template needs.
        facts: what tells whether it has changed, where that is cheaper to know; never None.
        view: the fields of the view that it depends on.
        roles: what it has buttons for that only who has such a role may press; `may` tells its template.
        every_s: seconds after which an open page asks again.
        large: characters of HTML from which on it asks less often.
        when_opened: it is not in the page, which asks for it when its visitor opens it.
    """

    values: Callable[[Look], dict[str, Any]]
    facts: Callable[[Look], Hashable] | None = None
    view: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    every_s: float = 2.0
    large: int = 20_000
    when_opened: bool = False


def _status(look: Look) -> dict[str, Any]:
    newest = look.newest_attempt
    ended = look.summary["state"] in ENDED
    return {"summary": look.summary, "attempt": newest, "ended": ended, "asked_at": look.model.stop_requested_at}


def _ranks(look: Look) -> list[dict[str, Any]]:
    return model_view.ranks(look.session, look.model, look.now, look.patience) or []


def _tiles(look: Look) -> dict[str, Any]:
    ranks = _ranks(look)
    return {"ranks": ranks, "counts": rank_table.counts(ranks)}


def _rank_rows(look: Look) -> dict[str, Any]:
    ranks = rank_table.in_order(_ranks(look))
    step, total = rank_table.ROWS, len(ranks)
    first = min(look.view.ranks_from, max(0, total - 1))
    return {"ranks": ranks[first : first + step], "first": first, "total": total, "step": step}


def _checkpoints(look: Look) -> dict[str, Any]:
    total = look.session.execute(select(func.count()).where(*_committed(look))).scalar_one()
    first = min(look.view.checkpoints_from, max(0, total - 1))
    found = model_view.checkpoints(look.session, look.model, newest_first=True, limit=first + _CHECKPOINTS)
    return {"checkpoints": found[first:], "first": first, "total": total, "step": _CHECKPOINTS}


def _checkpoint_facts(look: Look) -> Hashable:
    # The sum of their ids tells of a deletion that an arrival makes up for in number.
    chosen = select(func.count(), func.max(Checkpoint.id), func.sum(Checkpoint.id)).where(*_committed(look))
    return tuple(look.session.execute(chosen).one())


def _committed(look: Look) -> tuple[ColumnElement[bool], ...]:
    return Checkpoint.model_ref == look.model.id, Checkpoint.committed_at.is_not(None)


def _attempts(look: Look) -> dict[str, Any]:
    attempts = look.summary["attempts"]
    newest = look.newest_attempt
    goes_on = newest is not None and look.summary["state"] in {"running", "stalled"}
    # While it goes on its bar grows; what six seconds add cannot be seen.
    now = look.now // 6 * 6
    bars = time_line(attempts, now, going_on=newest["number"] if newest and goes_on else None)
    rows = [
        (attempt, bar, of_end(Shown(attempt["state"], attempt["reason"])))
        for attempt, bar in zip(attempts, bars, strict=True)
    ]
    return {"attempts": rows, "width": WIDTH, "model_state": look.summary["state"]}


def _log(look: Look) -> dict[str, Any]:
    return {"lines": log_tail.tail(look.session, look.model, look.view.log_rank, look.view.log_stream)}


def _log_facts(look: Look) -> Hashable:
    return log_tail.newest_event(look.session, look.model)


def _summary(look: Look) -> dict[str, Any]:
    series = look.session.scalars(select(Series).where(Series.model_ref == look.model.id).order_by(Series.name)).all()
    chosen = select(LatestMetric).where(LatestMetric.model_ref == look.model.id, LatestMetric.rank == 0)
    latest = {row.name: row for row in look.session.scalars(chosen)}
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "latest": one.latest,
            "step": latest[one.name].step if one.name in latest else None,
            "epoch": latest[one.name].epoch if one.name in latest else None,
            "least": one.least,
            "greatest": one.greatest,
            "more": better(one.name),
            "count": one.count,
        }
        for one in series
    ]
    own = [row for row in rows if not row["name"].startswith("system/")]
    return {"own": own, "system": [row for row in rows if row["name"].startswith("system/")]}


def _labels(look: Look) -> dict[str, Any]:
    return {"notes": look.model.notes, "tags": tags_of(look.session, [look.model.id])[look.model.id]}


def _delivery(look: Look) -> dict[str, Any]:
    return {"last_seen": look.model.last_seen, **delivery.report(look.session, look.model)}


def _delivery_facts(look: Look) -> Hashable:
    return look.model.events, look.model.last_seen


PARTS: Final = {
    "status": Part(values=_status, roles=("writer",)),
    "tiles": Part(values=_tiles),
    "ranks": Part(values=_rank_rows, view=("ranks_from",)),
    "checkpoints": Part(
        values=_checkpoints, facts=_checkpoint_facts, view=("checkpoints_from",), roles=("admin",), every_s=3
    ),
    "attempts": Part(values=_attempts, every_s=5),
    "log": Part(values=_log, facts=_log_facts, view=("log_rank", "log_stream"), large=10**6),
    "summary": Part(values=_summary, every_s=3),
    "labels": Part(values=_labels, roles=("writer",), every_s=5),
    "delivery": Part(values=_delivery, facts=_delivery_facts, every_s=15, when_opened=True),
}
"""The parts of a model's page: each has a template of its name in `parts`."""


def page_values(look: Look) -> dict[str, Any]:
    """What the page needs beside its parts: what does not change while it is open."""
    config = json.loads(look.model.request).get("config") or {}
    return {"model": look.summary, "config": flat(config)}


def flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A configuration as (dotted name, value as JSON), sorted by name."""
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict) and value:
            rows += flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{prefix}{name}", text))
    return sorted(rows)
