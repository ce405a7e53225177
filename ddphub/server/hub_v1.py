"""What HUB v1 clients report: one attempt of one rank, whose events are numbered here.

Those clients name no attempt and number nothing, so what they send is told from what they sent before by its content.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddphub import events
from ddphub.hubs.wire import MAX_BATCH_EVENTS
from ddphub.server import event_log
from ddphub.server.attempts import hub_v1_attempt_id
from ddphub.server.expressions import field_text
from ddphub.server.incoming_events import check_batch, wrong_values
from ddphub.server.problems import Problem
from ddphub.server.tables import Attempt, Event, Model

_EPOCH: Final = re.compile("0|[1-9][0-9]{0,17}")


def report(session: Session, model: Model, reported: Sequence[Mapping[str, Any]], now: float) -> Attempt:
    """Store events of the attempt; its first report starts it.

    Args:
        session: a write session.
        model: whose.
        reported: events without key and time.
        now: seconds since the epoch.

    Returns:
        The attempt.
    """
    attempt = _attempt(session, model)
    if attempt is None or attempt.state is None:
        reported = [{"kind": "attempt", "state": "started"}, *reported]
    seq, time = 0, now
    if attempt is not None:
        last = session.execute(
            select(func.max(Event.seq), func.max(Event.time)).where(Event.attempt_ref == attempt.id, Event.rank == 0)
        ).one()
        if last[0] is not None:
            # The newest wins, whatever the clock says.
            seq, time = last[0] + 1, max(now, last[1])
    key = {"attempt_id": hub_v1_attempt_id(model), "rank": 0, "time": time}
    batch = check_batch([{**event, **key, "seq": seq + index} for index, event in enumerate(reported)])
    event_log.store(session, model, batch, len(batch), now)
    attempt = attempt or _attempt(session, model)
    assert attempt is not None  # noqa: S101  # its first report made it
    return attempt


def _attempt(session: Session, model: Model) -> Attempt | None:
    return session.scalar(
        select(Attempt).where(Attempt.model_ref == model.id, Attempt.attempt_id == hub_v1_attempt_id(model))
    )


def finish(session: Session, model: Model, attempt: Attempt, now: float) -> None:
    """End the attempt, unless it has ended.

    Args:
        session: a write session.
        model: whose.
        attempt: what `report` gave.
        now: seconds since the epoch.
    """
    if attempt.state != "finished":
        report(session, model, [{"kind": "attempt", "state": "finished"}], now)


def report_metrics(session: Session, model: Model, epochs: Mapping[int, dict[str, Any]], now: float) -> int:
    """Store the metrics of epochs; those that are known of an epoch are left out, others are kept beside them.

    Args:
        session: a write session.
        model: whose.
        epochs: for each epoch its values, as `check_metrics` gave them.
        now: seconds since the epoch.

    Returns:
        How many were new.
    """
    attempt = _attempt(session, model)
    known: dict[int, list[dict[str, Any]]] = {}
    if attempt is not None:
        bodies = session.scalars(
            select(Event.body).where(
                Event.attempt_ref == attempt.id,
                Event.rank == 0,
                Event.kind == "metrics",
                field_text(Event.body, "epoch").in_([str(epoch) for epoch in epochs]),
            )
        )
        for body in map(json.loads, bodies):
            known.setdefault(body["epoch"], []).append(body["values"])
    new = [
        {"kind": "metrics", "step": epoch, "epoch": epoch, "values": values}
        for epoch, values in sorted(epochs.items())
        if values not in known.get(epoch, ())
    ]
    report(session, model, new, now)
    return len(new)


def check_metrics(content: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The values of a request, by epoch.

    Args:
        content: the body: `{"metrics": {"<epoch>": "<JSON object>"}, "type": "metrics"}`.

    Raises:
        Problem: 413 for too many epochs; 422 that names the first epoch that cannot be taken, and why.
    """
    if content.get("type", "metrics") != "metrics":
        raise Problem(422, "type: expected metrics")
    metrics = content.get("metrics")
    if not isinstance(metrics, dict):
        raise Problem(422, "metrics: expected an object of epochs")
    if len(metrics) >= MAX_BATCH_EVENTS:
        raise Problem(413, f"expected less than {MAX_BATCH_EVENTS} epochs in one request, got {len(metrics)}")
    return {_epoch(key): _values(key, text) for key, text in metrics.items()}


def _epoch(key: str) -> int:
    if not _EPOCH.fullmatch(key):
        raise Problem(422, f"epoch {key[:40]!a}: expected an integer of 0 or more")
    return int(key)


def _values(key: str, text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        raise Problem(422, f"epoch {key}: expected a JSON object as text")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(422, f"epoch {key}: expected a JSON object as text") from error
    if not isinstance(values, dict):
        raise Problem(422, f"epoch {key}: expected a JSON object as text")
    # JSON has no NaN, but these clients write it.
    values = {name: events.encode_scalar(value) for name, value in values.items()}
    if wrong := wrong_values(values):
        raise Problem(422, f"epoch {key}: {wrong}")
    return values
