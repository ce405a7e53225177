"""Which GPU is a rank's, and what is measured of it.

What NVML answers on nodes of several GPUs is played by functions of the same names; the real library is asked what it
says here, of a GPU or without one.
"""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from ddphub.system import gpu
from ddphub.system.gpu import choose_gpu, gpu_figures

FOUR = ["GPU-aaaa0000", "GPU-aaaa1111", "GPU-bbbb2222", "GPU-cccc3333"]
MIG = "MIG-8d2e6a3c-1f0b"


@pytest.mark.parametrize(
    ("visible", "local_rank", "chosen"),
    [
        (None, 2, FOUR[2]),
        (None, 4, None),
        (None, None, None),
        ("", 0, None),
        ("-1", 0, None),
        ("NoDevFiles", 0, None),
        ("3", 0, FOUR[3]),
        ("3", 7, FOUR[3]),
        ("3", None, FOUR[3]),
        ("2,3", 1, FOUR[3]),
        (" 2 , 3 ", 0, FOUR[2]),
        ("2,3", 2, None),
        ("2,3", None, None),
        ("0,-1,1", 1, FOUR[0]),  # nothing behind an entry that means no device is visible, so there is one
        ("0,9,1", 1, FOUR[0]),
        ("GPU-bbbb2222", 0, FOUR[2]),
        ("GPU-b,GPU-c", 1, FOUR[3]),
        ("GPU-aaaa", 0, None),
        ("GPU-d", 0, None),
        (MIG, 0, MIG),
        (f"{MIG},MIG-other", 1, "MIG-other"),
        ("MIG-GPU-aaaa0000/1/0", 3, "MIG-GPU-aaaa0000/1/0"),
    ],
)
def test_the_gpu_is_the_visible_one_or_that_of_the_local_rank(visible, local_rank, chosen):
    assert choose_gpu(visible, local_rank, FOUR) == chosen


def test_numbers_mean_nothing_where_cuda_counts_otherwise():
    assert choose_gpu("1", 0, FOUR, is_ordered=False) is None
    assert choose_gpu(None, 1, FOUR, is_ordered=False) is None
    assert choose_gpu(None, 0, FOUR[:1], is_ordered=False) == FOUR[0]
    assert choose_gpu("GPU-b", 0, FOUR, is_ordered=False) == FOUR[2]


def nvml(models=("H200",) * 4, slices=()):
    """Cards as NVML tells of them; their handles are their places. `slices` are on the first one."""

    def load(handle):
        if handle in slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=90 + handle, memory=5)

    return SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        NVML_TEMPERATURE_GPU=pynvml.NVML_TEMPERATURE_GPU,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(models),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: models[handle],
        nvmlDeviceGetUUID=lambda handle: FOUR[handle],
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid if uuid in slices else FOUR.index(uuid),
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda handle: dict.fromkeys(slices, 0)[handle],
        nvmlDeviceGetUtilizationRates=load,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=7 if handle in slices else handle * 1000),
        nvmlDeviceGetTemperature=lambda handle, sensor: 40 + handle + sensor,
        nvmlDeviceGetPowerUsage=lambda handle: 300_500 + handle,
    )


def measured(figures):
    """What can be measured."""
    values = {}
    for name, figure in figures.items():
        try:
            values[name] = figure()
        except pynvml.NVMLError as error:
            values[name] = str(error)
    return values


def test_load_memory_temperature_and_power_are_those_of_the_ranks_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "pynvml", nvml())
    figures = gpu_figures(2, {})
    assert measured(figures) == {"gpu": 92, "gpu_memory": 2000, "gpu_temperature": 42, "gpu_power": 300.502}
    assert measured(gpu_figures(1, {gpu.VISIBLE: "2,3"}))["gpu"] == 93


def test_a_slice_has_memory_of_its_own_and_its_cards_temperature(monkeypatch):
    monkeypatch.setattr(gpu, "pynvml", nvml(slices=(MIG,)))
    values = measured(gpu_figures(0, {gpu.VISIBLE: MIG}))
    assert values == {"gpu": "Not Supported", "gpu_memory": 7, "gpu_temperature": 40, "gpu_power": 300.5}


def test_without_a_gpu_of_the_ranks_own_there_are_no_figures(monkeypatch, caplog):
    monkeypatch.setattr(gpu, "pynvml", nvml(models=("H200", "T400", "H200", "H200")))
    with caplog.at_level(logging.INFO):
        assert gpu_figures(1, {}) == {}
    assert "not known" in caplog.text
    assert gpu_figures(1, {gpu.ORDER: "PCI_BUS_ID"})
    assert gpu_figures(None, {gpu.ORDER: "PCI_BUS_ID"}) == {}
    monkeypatch.setattr(gpu, "pynvml", nvml(models=()))
    assert gpu_figures(0, {}) == {}


def test_the_real_library_tells_what_is_here(caplog):
    """With a driver the first GPU is measured, and CUDA not started; without one there is one quiet line."""
    import torch

    with caplog.at_level(logging.INFO):
        figures = gpu_figures(0, os.environ)
    if not Path("/proc/driver/nvidia/version").exists():
        assert figures == {}
        (record,) = caplog.records
        assert record.levelname == "INFO"
        assert "Not Found" in record.message or "not loaded" in record.message.lower()
        return
    values = measured(figures)
    assert set(values) == {"gpu", "gpu_memory", "gpu_temperature", "gpu_power"}
    assert 0 <= values["gpu"] <= 100
    assert 0 < values["gpu_memory"] < 1e12
    assert 10 < values["gpu_temperature"] < 110
    assert 5 < values["gpu_power"] < 2000
    assert not torch.cuda.is_initialized()
