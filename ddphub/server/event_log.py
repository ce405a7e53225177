"""Storing events, each exactly once, and reading them back."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from ddphub.events import fingerprint
from ddphub.hubs.wire import EventsAnswer
from ddphub.server import points
from ddphub.server.attempts import apply_events, known_attempts
from ddphub.server.database import add_new, insert
from ddphub.server.expressions import holds_key
from ddphub.server.incoming_events import IncomingEvent, contradiction
from ddphub.server.ranks import MEMORY
from ddphub.server.tables import Attempt, Event, LatestMetric, Model


def store(session: Session, model: Model, batch: Sequence[IncomingEvent], received: int, now: float) -> EventsAnswer:
    """Store a batch in the caller's transaction.

    Args:
        session: a write session: an error undoes everything.
        model: whose events these are; found by this session, which locked its row: new attempts and points are
            numbered by what is there.
        batch: checked events, each key once.
        received: events in the request, repeats among themselves included.
        now: seconds since the epoch.

    Returns:
        How many were new, and whether the run is asked to stop.

    Raises:
        Problem: 422 when an event is known with other content.
    """
    earliest: dict[str, float] = {}
    for event in batch:
        earliest[event.attempt_id] = min(event.time, earliest.get(event.attempt_id, event.time))
    attempts = known_attempts(session, model, earliest, now)
    new = _insert(session, model, batch, attempts)
    accepted = len(new)
    points.append(session, model, new, {attempt_id: attempt.number for attempt_id, attempt in attempts.items()})
    # Derived state looks at repeats too: every rule in it gives the same result twice.
    apply_events(session, model, batch, attempts, now)
    _keep_latest(session, model, batch, attempts)
    model.events += accepted
    model.last_seen = now
    return {"accepted": accepted, "duplicates": received - accepted, "stop": model.stop_requested_at is not None}


_COLUMNS: Final = ("model_ref", "attempt_ref", "rank", "seq", "time", "kind", "body", "fingerprint")


def _insert(
    session: Session, model: Model, batch: Sequence[IncomingEvent], attempts: dict[str, Attempt]
) -> Sequence[IncomingEvent]:
    """Store what is not stored yet; returns the events that were new."""
    if not batch:
        return ()
    before = session.scalar(select(func.max(Event.id))) or 0
    refs = {attempt_id: attempt.id for attempt_id, attempt in attempts.items()}
    of = model.id
    rows = [(of, refs[one.attempt_id], one.rank, one.seq, one.time, one.kind, one.body, b"") for one in batch]
    if add_new(session, Event.__tablename__, _COLUMNS, rows) == len(rows):
        return batch
    stored = _stored(session, batch, attempts)
    for event in batch:
        if not _is_repeat(event, stored[event.key]):
            raise contradiction(event.key)
    # Ids rise, and nobody else stores events of this model meanwhile.
    return [event for event in batch if stored[event.key].id > before]


class _Stored(NamedTuple):
    """An event as it is stored."""

    id: int
    fingerprint: bytes
    body: str


def _is_repeat(event: IncomingEvent, stored: _Stored) -> bool:
    if stored.fingerprint:  # of an older hub
        return stored.fingerprint == event.fingerprint
    return stored.body == event.body or bytes.fromhex(fingerprint(json.loads(stored.body))) == event.fingerprint


def _stored(
    session: Session, batch: Sequence[IncomingEvent], attempts: dict[str, Attempt]
) -> dict[tuple[str, int, int], _Stored]:
    """Each event of the batch as it is stored."""
    streams: dict[tuple[str, int], list[IncomingEvent]] = {}
    for event in batch:
        streams.setdefault((event.attempt_id, event.rank), []).append(event)
    stored: dict[tuple[str, int, int], _Stored] = {}
    for (attempt_id, rank), events in streams.items():
        found = session.execute(
            select(Event.seq, Event.id, Event.fingerprint, Event.body).where(
                Event.attempt_ref == attempts[attempt_id].id,
                Event.rank == rank,
                Event.seq.in_([event.seq for event in events]),
            )
        )
        for seq, number, known, body in found:
            stored[attempt_id, rank, seq] = _Stored(number, known, body)
    return stored


_Order = tuple[float, int, int]
"""(time, attempt's number, seq)."""


def _keep_latest(session: Session, model: Model, batch: Sequence[IncomingEvent], attempts: dict[str, Attempt]) -> None:
    numbers = {attempt_id: attempt.number for attempt_id, attempt in attempts.items()}
    # Of events with the same names only the newest counts, and most of a rank's have the same.
    alike: dict[tuple[int, tuple[str, ...]], tuple[_Order, IncomingEvent]] = {}
    for event in batch:
        if event.kind == "metrics":
            values = event.fields["values"]
            # What pages show: rank 0's values, and how much memory each rank has.
            if event.rank and MEMORY not in values:
                continue
            which = event.rank, (MEMORY,) if event.rank else tuple(values)
            order = (event.time, numbers[event.attempt_id], event.seq)
            known = alike.get(which)
            if known is None or order > known[0]:
                alike[which] = (order, event)
    newest: dict[tuple[int, str], tuple[_Order, IncomingEvent]] = {}
    for (rank, names), (order, event) in alike.items():
        for name in names:
            if (rank, name) not in newest or order > newest[rank, name][0]:
                newest[rank, name] = (order, event)
    if not newest:
        return
    rows = [
        {
            "model_ref": model.id,
            "rank": rank,
            "name": name,
            "value": json.dumps(event.fields["values"][name]),
            "step": event.fields["step"],
            "epoch": event.fields.get("epoch"),
            "time": event.time,
            "attempt": numbers[event.attempt_id],
            "seq": event.seq,
        }
        for (rank, name), (_, event) in newest.items()
    ]
    statement = insert(LatestMetric)
    new, old = statement.excluded, LatestMetric
    statement = statement.on_conflict_do_update(
        index_elements=[old.model_ref, old.rank, old.name],
        set_={column: new[column] for column in ("value", "step", "epoch", "time", "attempt", "seq")},
        where=tuple_(new.time, new.attempt, new.seq) > tuple_(old.time, old.attempt, old.seq),
    )
    session.connection().execute(statement, rows)


MAX_PAGE: Final = 10_000
"""Records in one answer."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which events to read. `kind` None: what happened to the run, so neither metrics nor printed lines."""

    after: int = 0
    limit: int = 1000
    kind: str | None = None
    rank: int | None = None
    name: str | None = None
    newest: bool = False

    def conditions(self, model: Model) -> Iterable[ColumnElement[bool]]:
        """What the rows must fulfil."""
        yield Event.model_ref == model.id
        yield Event.id > self.after
        yield Event.kind.not_in(("metrics", "console")) if self.kind is None else Event.kind == self.kind
        if self.rank is not None:
            yield Event.rank == self.rank
        if self.name is not None:
            yield holds_key(Event.body, "values", self.name)


def read(session: Session, model: Model, query: Query) -> list[dict[str, Any]]:
    """Stored events, oldest first; with `newest` the last `limit` of them.

    Returns:
        Each event with its `id`, and its `attempt` as a number.
    """
    statement = (
        select(Event.id, Attempt.number, Attempt.attempt_id, Event.rank, Event.seq, Event.body)
        .join(Attempt, Attempt.id == Event.attempt_ref)
        .where(*query.conditions(model))
        .order_by(Event.id.desc() if query.newest else Event.id)
        .limit(query.limit)
    )
    rows = session.execute(statement).all()
    return [
        {**json.loads(body), "id": number, "attempt": attempt, "attempt_id": attempt_id, "rank": rank, "seq": seq}
        for number, attempt, attempt_id, rank, seq, body in (reversed(rows) if query.newest else rows)
    ]


def read_metrics(session: Session, model: Model, query: Query) -> list[dict[str, Any]]:
    """Stored metrics, oldest first; with `name` only that one's values."""
    records = []
    for event in read(session, model, query):
        values = event["values"]
        records.append(
            {
                "id": event["id"],
                "attempt": event["attempt"],
                "attempt_id": event["attempt_id"],
                "rank": event["rank"],
                "seq": event["seq"],
                "epoch": event.get("epoch"),
                "step": event["step"],
                "time": event["time"],
                "values": values if query.name is None else {query.name: values[query.name]},
            }
        )
    return records
