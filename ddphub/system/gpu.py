"""Figures of this rank's NVIDIA GPU, by NVML (nvidia-ml-py). CUDA is never started for them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import pynvml  # type: ignore[import-untyped]  # NVIDIA ships no types

from ddphub.system import Figure

logger = logging.getLogger(__name__)

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
ORDER: Final = "CUDA_DEVICE_ORDER"
"""https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars"""


def gpu_figures(local_rank: int | None, environ: Mapping[str, str]) -> dict[str, Figure]:
    """Figures by name; none where there is no NVIDIA driver, or where it is not known which GPU is this rank's.

    | name | what |
    | --- | --- |
    | gpu | percent of the last moment in which the GPU was at work |
    | gpu_memory | bytes in use on the GPU, by whomever |
    | gpu_temperature | degrees Celsius |
    | gpu_power | watts |

    A MIG slice has memory of its own and shares its card's temperature and power; its load NVML does not tell.

    Args:
        local_rank: this process's place on its node; None where nobody has told it.
        environ: the environment.

    Raises:
        NVMLError: the driver fails later than at its start. It may also take seconds, or hang.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.info("no figures of a GPU: %s", error)
        return {}
    cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    is_ordered = environ.get(ORDER) == "PCI_BUS_ID" or len(set(map(pynvml.nvmlDeviceGetName, cards))) < 2
    visible = environ.get(VISIBLE)
    chosen = choose_gpu(visible, local_rank, list(map(pynvml.nvmlDeviceGetUUID, cards)), is_ordered=is_ordered)
    if chosen is None:
        logger.info("no figures of a GPU: which one is this rank's is not known (%s=%s)", VISIBLE, visible)
        return {}
    device = card = pynvml.nvmlDeviceGetHandleByUUID(chosen)
    if chosen.startswith(_MIG):
        card = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
    return {
        "gpu": lambda: pynvml.nvmlDeviceGetUtilizationRates(device).gpu,
        "gpu_memory": lambda: pynvml.nvmlDeviceGetMemoryInfo(device).used,
        "gpu_temperature": lambda: pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU),
        "gpu_power": lambda: pynvml.nvmlDeviceGetPowerUsage(card) / 1000,
    }


_MIG: Final = "MIG-"


def choose_gpu(
    visible: str | None, local_rank: int | None, uuids: Sequence[str], *, is_ordered: bool = True
) -> str | None:
    """The UUID of a rank's GPU: the only one that it may use, else the one at its local rank, as launchers do it.

    Args:
        visible: CUDA_VISIBLE_DEVICES: numbers, beginnings of UUIDs, or names of MIG slices; None where it is not set.
        local_rank: the rank's place on its node; None where nobody has told it.
        uuids: the node's GPUs in NVML's order.
        is_ordered: whether CUDA counts them in the same order: it begins with the fastest unless told otherwise.

    Returns:
        None where the rank has no GPU, or it cannot be told which one.
    """
    if visible is None:
        devices = list(uuids)
        is_by_number = len(uuids) > 1
    else:
        entries = [entry.strip() for entry in visible.split(",")]
        devices = []
        for entry in entries:
            device = _device(entry, uuids)
            if device is None:
                break  # CUDA does not see what comes behind an entry that means no device
            devices.append(device)
        is_by_number = entries[0].isdigit()
    if not devices or (is_by_number and not is_ordered):
        return None
    if len(devices) == 1:
        return devices[0]
    return devices[local_rank] if local_rank is not None and local_rank < len(devices) else None


def _device(entry: str, uuids: Sequence[str]) -> str | None:
    """What one entry of CUDA_VISIBLE_DEVICES means."""
    if entry.isascii() and entry.isdigit():
        return uuids[int(entry)] if int(entry) < len(uuids) else None
    if entry.startswith(_MIG):
        return entry
    meant = [uuid for uuid in uuids if entry.startswith("GPU-") and uuid.startswith(entry)]
    return meant[0] if len(meant) == 1 else None
