"""Saver: takes a rank's checkpoints into the staging area, and says so."""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ddphub import names
from ddphub.checkpoints.staging import Slot, StagingArea
from ddphub.errors import StagingError
from ddphub.events import Event, plain_text
from ddphub.hubs import wire
from ddphub.metrics import MetricReader

logger = logging.getLogger(__name__)

REASON_LENGTH: Final = 4000
"""Characters of a refusal's reason."""


class Saver:
    """Stages checkpoints. The writing rank; what goes wrong is a warning and an event, and reaches no training loop.

    Args:
        reader: checks numbers and metrics.
        put: takes events.
        place: the attempt's id and its staging area; raises StagingError while this rank knows none.
        wake: called when something new is staged.
    """

    def __init__(
        self,
        reader: MetricReader,
        put: Callable[[Event], None],
        place: Callable[[], tuple[str, StagingArea]],
        wake: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._put = put
        self._place = place
        self._wake = wake

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        epoch: int | None,
        step: int | None,
        kind: str,
        name: str | None,
        metrics: Mapping[str, Any] | None,
    ) -> str | None:
        """Copies a file or folder that is completely written; see `Run.save_checkpoint`.

        Returns:
            The entry's id; None when it was refused.
        """
        shown = name
        try:
            shown = name or os.path.basename(os.fspath(path).rstrip("/"))  # noqa: PTH119  # text only
            slot, area = self._slot(kind, epoch, step, shown)
            staged = area.stage(slot, Path(path), self._reader.read_for_wire(metrics))
        except Exception as error:  # noqa: BLE001  # the promise: no exception reaches the training loop
            self._refuse(str(shown or path), error)
            return None
        self._has_staged(slot, staged.entry_id, is_new=staged.new)
        return staged.entry_id

    @contextlib.contextmanager
    def write(
        self, *, epoch: int | None, step: int | None, kind: str, name: str, metrics: Mapping[str, Any] | None
    ) -> Iterator[Path]:
        """A path in the staging area to write to; see `Run.checkpoint`. One that is thrown away when it is refused."""
        pending = None
        with contextlib.ExitStack() as staging:
            try:
                slot, area = self._slot(kind, epoch, step, name)
                pending = staging.enter_context(_Caught(self, area, slot, self._reader.read_for_wire(metrics)))
            except Exception as error:  # noqa: BLE001  # the promise: nothing of ours reaches the loop
                self._refuse(str(name), error)
            if pending is not None:
                yield pending
                return
        with scratch() as path:
            yield path

    def _slot(self, kind: str, epoch: int | None, step: int | None, name: str) -> tuple[Slot, StagingArea]:
        if kind not in wire.KINDS:
            raise StagingError(f"kind={kind!r}: expected one of {', '.join(wire.KINDS)}")
        if wrong := names.wrong_file_name(name):
            raise StagingError(f"name={name!r}: {wrong}")
        attempt_id, area = self._place()
        return Slot(attempt_id, kind, self._reader.whole("epoch", epoch), self._reader.whole("step", step), name), area

    def _has_staged(self, slot: Slot, entry_id: str, *, is_new: bool) -> None:
        if is_new:
            self._tell("staged", slot.name, entry_id, None)
            self._wake()

    def _refuse(self, name: str, error: Exception) -> None:
        logger.warning("ddphub: checkpoint %s is not reported: %s", name, error)
        reason = plain_text(f"{type(error).__name__}: {error}", REASON_LENGTH)
        self._tell("refused", plain_text(name, 200), None, reason)

    def _tell(self, state: str, name: str, entry_id: str | None, reason: str | None) -> None:
        event = {"kind": "checkpoint", "state": state, "name": name, "entry_id": entry_id, "reason": reason}
        self._put({"time": time.time(), **event})


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A path for a checkpoint that nobody keeps."""
    folder = Path(tempfile.mkdtemp(prefix="ddphub-"))
    try:
        yield folder / "checkpoint"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Caught(contextlib.AbstractContextManager[Path | None]):
    """`StagingArea.write` whose own errors are reported and swallowed; the block's errors pass through."""

    def __init__(self, saver: Saver, area: StagingArea, slot: Slot, metrics: dict[str, Any]) -> None:
        self._saver = saver
        self._slot = slot
        self._writing = area.write(slot, metrics)

    def __enter__(self) -> Path | None:
        self._pending = self._writing.__enter__()
        return self._pending.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writing.__exit__(kind, error, trace)
        except Exception as own:
            if own is error:
                raise
            self._saver._refuse(self._slot.name, own)  # this file's own
            return
        if error is None:
            self._saver._has_staged(self._slot, self._pending.entry_id, is_new=self._pending.new)
