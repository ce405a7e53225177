"""Reading metric values: numbers, bools, 0-d tensors, numpy scalars.

A CPU value is read at once: read later it would be what an in-place update made of it. A CUDA value is copied to a
pinned slot without waiting for the GPU, on the caller's stream, and read by the outbox once its event is done.
"""

import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

_LARGEST_INT: Final = 2**63 - 1
"""JSON numbers beyond 64 bits do not survive databases; such an int travels as a float."""

_SLOTS: Final = 4096
"""Pinned 8-byte slots: CUDA scalars on their way at one time."""


class UnreadableError(TypeError):
    """A value that is no scalar; the message says what it is."""


@dataclass(frozen=True, slots=True)
class PendingScalar:
    """A CUDA scalar on its way to the host."""

    slots: "CudaSlots"
    index: int
    done: Any
    to: type[bool] | type[int] | type[float]

    def ready(self) -> bool:
        """Whether the copy has arrived; asks the GPU without waiting."""
        return bool(self.done.query())

    def wait(self) -> float | int | bool:
        """The value, after waiting for the GPU; for a save, which takes its time anyway."""
        self.done.synchronize()
        return self.take()

    def take(self) -> float | int | bool:
        """The value, once `ready`; frees the slot."""
        return self.to(self.slots.release(self.index))


class CudaSlots:
    """Pinned host memory for scalars on their way from the GPU; one for a process. Any rank."""

    def __init__(self) -> None:
        torch = sys.modules["torch"]
        self._buffer = torch.empty(_SLOTS, dtype=torch.float64, pin_memory=True)
        self._views = self._buffer.unbind()
        self._free = deque(range(_SLOTS))

    def copy(self, tensor: Any) -> PendingScalar:  # noqa: ANN401  # a torch.Tensor; torch may not be imported
        """Starts the copy of a 0-d CUDA tensor on the caller's stream.

        Raises:
            UnreadableError: during graph capture, or when every slot is taken.
        """
        torch = sys.modules["torch"]
        if tensor.dtype.is_complex:
            raise UnreadableError(f"a tensor of {tensor.dtype}")
        if torch.cuda.is_current_stream_capturing():
            raise UnreadableError("a CUDA tensor during graph capture")
        try:
            index = self._free.popleft()
        except IndexError:
            raise UnreadableError(f"more than {_SLOTS} CUDA scalars that the GPU has not computed yet") from None
        self._views[index].copy_(tensor.detach(), non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(tensor.device))
        to = bool if tensor.dtype is torch.bool else float if tensor.dtype.is_floating_point else int
        return PendingScalar(self, index, done, to)

    def release(self, index: int) -> float:
        """The slot's value; the slot is free for another scalar."""
        value = float(self._views[index])
        self._free.append(index)
        return value


_cuda_slots: CudaSlots | None = None
_cuda_lock = threading.Lock()


def read_scalar(value: object) -> float | int | bool | PendingScalar:
    """The number in `value`. Any rank, any thread; no wait for a GPU.

    Args:
        value: a number, a bool, a numpy scalar, or a tensor or array of shape ().

    Raises:
        UnreadableError: for anything else.
    """
    if isinstance(value, bool | float):
        return float(value) if isinstance(value, float) else value
    if isinstance(value, int):
        return int(value) if -_LARGEST_INT <= value <= _LARGEST_INT else _as_float(value)
    shape = getattr(value, "shape", None)
    if shape != () or not hasattr(value, "item"):
        described = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""  # torch.Size is a tuple
        raise UnreadableError(type(value).__name__ + described)
    if getattr(getattr(value, "device", None), "type", None) == "cuda":
        return _slots().copy(value)
    try:
        item = value.item()
    except Exception as error:
        # A meta tensor, or an object of the user's that only looks like a tensor: its error is its own.
        raise UnreadableError(f"{type(value).__name__} that cannot be read: {error}") from error
    if isinstance(item, bool | int | float):
        return read_scalar(item)
    raise UnreadableError(f"{type(value).__name__} of {type(item).__name__}")


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise UnreadableError("an int beyond the range of float") from None


def _slots() -> CudaSlots:
    global _cuda_slots
    with _cuda_lock:
        if _cuda_slots is None:
            _cuda_slots = CudaSlots()
        return _cuda_slots
