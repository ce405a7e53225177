"""Several files as one ZIP, made while it is sent: nothing of it is kept in memory or on disk."""

import zipfile
from collections.abc import Iterable, Iterator


class _Sent:
    """A file that only ends are written to; what was written is taken out again."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nothing behind it."""

    def close(self) -> None:
        """What was written is still there to take."""

    def take(self) -> bytes:
        taken, self._chunks = b"".join(self._chunks), []
        return taken


def stream_zip(files: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """The bytes of a ZIP of `files`, uncompressed: checkpoints hardly shrink.

    Args:
        files: the name of each in the ZIP, a relative POSIX path, and its bytes; taken one after the other.
    """
    sent = _Sent()
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as archive:
        for name, chunks in files:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as entry:
                for chunk in chunks:
                    entry.write(chunk)
                    yield sent.take()
            yield sent.take()
    yield sent.take()
