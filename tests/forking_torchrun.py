"""torchrun whose ranks come from the nursery that it came from itself: a program for `Nursery.start(may_ask=True)`."""

import sys

from nursery import Nursery
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

nursery = Nursery.of_this_process()


class ForkedHandler(SubprocessHandler):
    """Starts `python ARGUMENTS` as the agent would, by a fork."""

    def _popen(self, args, env):
        assert args[0] == sys.executable
        assert self._stdout is self._stderr is None
        return nursery.start(args[1:], environment=env, new_session=True)


def get_subprocess_handler(entrypoint, args, env, stdout, stderr, local_rank_id, numa_options=None):
    return ForkedHandler(entrypoint, args, env, stdout, stderr, local_rank_id, numa_options)


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing import api

    api.get_subprocess_handler = get_subprocess_handler
    run.main(sys.argv[1:])
