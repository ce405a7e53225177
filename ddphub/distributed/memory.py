"""How much memory this process has in use."""

import resource
import sys
from pathlib import Path

GB = 1e9


def used_memory() -> dict[str, float]:
    """Metrics by name, in GB (1e9 bytes): `memory/rss`, and `memory/gpu` (reserved by torch) where CUDA is in use.

    Any rank; torch is not imported, and CUDA not initialised, for the question.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return {}
    used = {"memory/rss": pages * resource.getpagesize() / GB}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        used["memory/gpu"] = torch.cuda.memory_reserved() / GB
    return used
