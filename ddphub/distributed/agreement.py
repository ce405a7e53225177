"""The one call in which ranks wait for each other: agreeing on a flag."""

import logging
import sys

logger = logging.getLogger(__name__)

_warned = False


def agree(flag: bool, world_size: int) -> bool:
    """Rank 0's flag, on every rank. All ranks, in step.

    A broadcast of one element over the default process group; bytes of a tensor, no pickle.

    Args:
        flag: counts on rank 0 only.
        world_size: number of ranks.

    Returns:
        Rank 0's flag. In a world of one that is `flag`; without an initialised process group it is False, because
        ranks that cannot ask each other would leave their loops at different steps and hang.
    """
    global _warned
    if world_size == 1:
        return flag
    torch = sys.modules.get("torch")
    distributed = sys.modules.get("torch.distributed")
    if torch is None or distributed is None or not distributed.is_available() or not distributed.is_initialized():
        if not _warned:
            _warned = True
            logger.warning("should_stop() is False until init_process_group: ranks cannot agree without one")
        return False
    backend = distributed.get_backend()
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    element = torch.tensor([1 if flag else 0], dtype=torch.int32, device=device)
    distributed.broadcast(element, src=0)
    return bool(element.item())
