"""The real DetectionTrainer of the installed Ultralytics, under real DistributedDataParallel with gloo on CPU.

Ultralytics offers DDP for GPUs alone. Everything here removes an assumption about them; the training loop, the launcher
and the callbacks are its own. Importable by name, for the workers that its launcher starts.
"""

import contextlib
import os
from datetime import timedelta
from types import SimpleNamespace

import torch
from torch import distributed, nn
from ultralytics.engine import validator
from ultralytics.models.yolo.detect import DetectionTrainer

RANKS = "GLOO_TRAINER_RANKS"
"""How many workers the trainer launches; without it, and outside of torchrun, it trains in this process."""


class CpuDataParallel(nn.parallel.DistributedDataParallel):
    """Takes the device of a GPU, and leaves the module where it is."""

    def __init__(self, module, **options):
        super().__init__(module, **{**options, "device_ids": None})


class GlooTrainer(DetectionTrainer):
    """Trains in this process, as a rank of torchrun, or launches `GLOO_TRAINER_RANKS` workers: as its environment says.

    8.4.190 and 8.4.114 ask `ddp` and `world_size`; 8.0.217 counts the devices of `args.device`.
    """

    def __init__(self, cfg=None, overrides=None, **options):
        overrides = {**(overrides or {}), "device": "cpu"}
        super().__init__(*([] if cfg is None else [cfg]), overrides=overrides, **options)

    @property
    def world_size(self):
        # The trainers call a world of one on a CPU zero.
        ranks = int(os.environ.get("WORLD_SIZE") or os.environ.get(RANKS) or 1)
        return ranks if ranks > 1 else 0

    @world_size.setter
    def world_size(self, counted):
        """Ultralytics counts GPUs."""

    @property
    def ddp(self):
        return self.world_size > 1 and "LOCAL_RANK" not in os.environ

    @ddp.setter
    def ddp(self, counted):
        """Ultralytics counts GPUs."""

    def train(self):
        if self.ddp and OLD:
            self.args.device = ",".join(["cpu"] * self.world_size)
        return super().train()

    def _setup_ddp(self, *_):
        self.device = torch.device("cpu")
        distributed.init_process_group("gloo", timeout=timedelta(seconds=120))

    def _setup_train(self, *world_size):
        with contextlib.ExitStack() as until_set_up:
            until_set_up.enter_context(replaced(nn.parallel, DistributedDataParallel=CpuDataParallel))
            if OLD:
                # It broadcasts this as a tensor, and gloo knows none of bools.
                until_set_up.enter_context(replaced(self.args, amp=0))
            super()._setup_train(*world_size)

    def _do_train(self, *world_size):
        with replaced(distributed, barrier=barrier):
            super()._do_train(*(self.world_size for _ in world_size))
        if distributed.is_initialized():
            # Or gloo's threads may abort a process that ends right after a collective, as rank 1 of 8.0.217 does.
            distributed.destroy_process_group()

    def final_eval(self):
        if not hasattr(validator, "get_torch_device_backend"):
            return super().final_eval()
        with replaced(
            validator,
            get_torch_device_backend=lambda _: SimpleNamespace(current_device=lambda: 0),
            AutoBackend=cpu_backend,
        ):
            return super().final_eval()


OLD = not hasattr(validator, "get_torch_device_backend")
"""8.0.217."""

_barrier, _backend = distributed.barrier, validator.AutoBackend


def barrier(*arguments, device_ids=None, **options):
    """8.0.217 names the GPU to wait on."""
    return _barrier(*arguments, **options)


def cpu_backend(*arguments, device=None, **options):
    """A rank validates on its GPU."""
    return _backend(*arguments, device=torch.device("cpu"), **options)


@contextlib.contextmanager
def replaced(owner, **members):
    """Gives a module or an object other members for a while."""
    kept = {name: getattr(owner, name) for name in members}
    vars(owner).update(members)
    try:
        yield
    finally:
        vars(owner).update(kept)
