"""Values as people read them."""

from datetime import UTC, datetime
from typing import Final

MARKS: Final = {
    "new": "○",
    "started": "●",
    "running": "●",
    "stalled": "▲",
    "lost": "◌",
    "finished": "✓",
    "stopped": "■",
    "failed": "✕",
    "node_failed": "✕",
    "timed_out": "✕",
    "cancelled": "⊘",
    "preempted": "↷",
    "requeued": "↻",
    "ok": "●",
    "slow": "S",
    "silent": "?",
    "dead": "✕",
    "done": "✓",
    "joined": "●",
    "back": "●",
    "left": "✓",
}
"""A sign beside each state, so that it is not told by colour alone."""

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_SYSTEM_UNITS: Final = {
    "system/cpu": "%",
    "system/host_memory": "%",
    "system/disk": "%",
    "system/gpu": "%",
    "system/gpu_temperature": "°C",
    "system/gpu_power": "W",
}
_SYSTEM_SIZES: Final = ("system/memory", "system/gpu_memory")
_STEPS: Final = ((60.0, 1, "s"), (3600.0, 60, "min"), (86400.0, 3600, "h"), (float("inf"), 86400, "d"))


def date(seconds: float | None) -> str:
    """`2026-11-23 05:57:50 UTC`; empty for None."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plain(value: object) -> str:
    """A value in a cell: six digits of a float, nothing for None."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def figure(value: float | None, name: str) -> str:
    """A value of the metric `name` with its unit, where ddphub measured it: `93 %`; nothing for None."""
    if value is None:
        return ""
    if name in _SYSTEM_SIZES:
        return bytes_(value)
    return f"{plain(value)} {_SYSTEM_UNITS.get(name, '')}".rstrip()


def state(value: str | None) -> str:
    """`node failed` for `node_failed`."""
    return (value or "").replace("_", " ")


def bytes_(size: float | None) -> str:
    """A size: `17 B`, `4.2 MiB`; empty for None."""
    if size is None:
        return ""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in _UNITS:
        size /= 1024
        if size < 1000 or unit == _UNITS[-1]:
            break
    return f"{size:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """One or two units: `12 s`, `2 h 5 min`; empty for None."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    index = next(index for index, (limit, _, _) in enumerate(_STEPS) if whole < limit)
    _, size, unit = _STEPS[index]
    text = f"{whole // size} {unit}"
    rest = (whole % size) // _STEPS[index - 1][1] if index > 1 else 0
    return f"{text} {rest} {_STEPS[index - 1][2]}" if rest else text
