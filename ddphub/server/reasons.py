"""Why a model is in its state: one plain sentence each, for someone who is woken by it.

With many ranks a few are named, and it is said how many more there are.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ddphub.server.attempts import Shown
from ddphub.server.ranks import Standing, position
from ddphub.server.tables import Attempt

NAMED: Final = 4
"""Ranks that one sentence names."""

LENGTH: Final = 300
"""Characters of what a program said of its failure."""

_RANK: Final = re.compile(r"rank \d+: ")
_NEXT_RANK: Final = re.compile(r"\n\nrank \d+: ")


def of_end(end: Shown) -> str | None:
    """Why an attempt ended."""
    if end.state == "failed":
        return of_failure(end.reason)
    if end.state == "stopped":
        return end.reason or "the hub was asked to stop it"
    if end.reason is not None and end.reason.startswith("SIG") and end.reason.isalnum():
        return f"told to leave by {end.reason}"
    return end.reason and _first_line(end.reason)


def of_failure(said: str | None) -> str | None:
    """The exception's own line, and whose it is; or the first line of what is no traceback."""
    if said is None:
        return None
    rank = _RANK.match(said)
    who = rank.group() if rank else ""
    lines = _NEXT_RANK.split(said[len(who) :], maxsplit=1)[0].splitlines()
    if not any(line.startswith(("Traceback ", '  File "')) for line in lines):
        return who + _first_line("\n".join(lines)) or None
    # A traceback's frames are indented; what follows the last of them is the exception.
    heads = [line for before, line in pairwise(lines) if before.startswith("  ") and line[:1].strip()]
    return (who + (heads[-1] if heads else lines[-1].strip()))[:LENGTH]


def of_silence(attempt: Attempt, silent_s: float, heartbeat_s: float) -> str:
    """Why a model is lost."""
    where = f" from rank 0 on {attempt.host}" if attempt.host else ""
    last = "it had made no step" if attempt.step is None else f"it was at step {attempt.step}"
    return f"no heartbeat{where} for {duration(silent_s)} (one is due every {duration(heartbeat_s)}); {last}"


def of_silent_ranks(silent: Sequence[Standing]) -> str | None:
    """What a running model says of ranks that do not answer, though the others go on."""
    return "; ".join(_silent_parts(silent)) or None


def of_stall(attempt: Attempt, everyone: Sequence[Standing], now: float, longest_gap: float) -> str:
    """Why a model is stalled, or has not begun: who is to blame comes first."""
    begun = attempt.progress_at or attempt.seen_at or attempt.first_time
    waited = duration(max(0.0, now - begun))
    if attempt.progress_at is None:
        parts = [f"no step yet, {waited} after the start"]
    else:
        before = f" (longest gap before: {duration(longest_gap)})" if attempt.longest_gap is not None else ""
        parts = [f"no step for {waited}{before}"]
    blamed = _silent_parts(everyone)
    blamed += _absent_part(attempt, everyone)
    left = [one for one in everyone if one.state == "left"]
    waiting = [one for one in everyone if one.state not in {"lost", "left"} and one.last_step is not None]
    if left and waiting:
        blamed.append(f"{_named(left)} left {_after(left)}")
    return "; ".join([*parts, *blamed, *_waiting_parts(waiting, is_explained=bool(blamed))])


def _silent_parts(everyone: Sequence[Standing]) -> list[str]:
    lost = [one for one in everyone if one.state == "lost"]
    parts = []
    for words, some in (("gone", [one for one in lost if one.is_gone]), ("silent", [o for o in lost if not o.is_gone])):
        if some:
            parts.append(f"{_named(some)} {'is' if len(some) == 1 else 'are'} {words} {_since(some)}")
    return parts


def _absent_part(attempt: Attempt, everyone: Sequence[Standing]) -> list[str]:
    missing = (attempt.world_size or 0) - len(everyone)
    if missing <= 0:
        return []
    here = {one.rank for one in everyone}
    first: list[int] = []
    rank = 0
    while len(first) < min(missing, NAMED):
        if rank not in here:
            first.append(rank)
        rank += 1
    names = _listed([str(rank) for rank in first], missing)
    return [f"rank{'s' if missing > 1 else ''} {names} {'have' if missing > 1 else 'has'} not joined"]


def _waiting_parts(waiting: Sequence[Standing], *, is_explained: bool) -> list[str]:
    if not waiting:
        return []
    if is_explained:
        return [f"{_count(waiting)} {_at(waiting)}"]
    behind = min(map(position, waiting))
    slowest = [one for one in waiting if position(one) == behind]
    rest = [one for one in waiting if position(one) > behind]
    if not rest:
        return [f"{_named(slowest)} stopped {_at(slowest)}"]
    return [f"{_named(slowest)} stopped {_at(slowest)}", f"{_count(rest)} {_at(rest)}"]


def _count(some: Sequence[Standing]) -> str:
    return "1 rank waits" if len(some) == 1 else f"{len(some)} ranks wait"


def _at(some: Sequence[Standing]) -> str:
    known = sorted({position(one) for one in some if one.last_step is not None})
    if not known:
        return "without a step"
    steps = sorted({step for _, step in known})
    if len(known) == 1:
        epoch, step = known[0]
        return f"at step {step}" if epoch < 0 else f"at step {step} of epoch {epoch}"
    return f"at steps {steps[0]} to {steps[-1]}"


def _since(some: Sequence[Standing]) -> str:
    # Not where it stopped: what a rank did in its last half second, nobody has heard.
    return _at(some).replace("at ", "since ", 1)


def _after(some: Sequence[Standing]) -> str:
    return _at(some).replace("at ", "after ", 1)


def _named(some: Sequence[Standing]) -> str:
    """`rank 2 on node1`, `ranks 2 and 5 on node1`, `ranks 2 on node1, 5 on node2 and 6 more`."""
    first = some[:NAMED]
    hosts = {one.host for one in some}
    plural = "s" if len(some) > 1 else ""
    if len(hosts) == 1:
        (host,) = hosts
        return f"rank{plural} {_listed([str(one.rank) for one in first], len(some))}{f' on {host}' if host else ''}"
    named = [f"{one.rank} on {one.host}" if one.host else str(one.rank) for one in first]
    return f"rank{plural} {_listed(named, len(some))}"


def _listed(names: Sequence[str], total: int) -> str:
    if total > len(names):
        return f"{', '.join(names)} and {total - len(names)} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:LENGTH]


def duration(seconds: float) -> str:
    """`0.4 s`, `27 s`, `12 min`, `3 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
