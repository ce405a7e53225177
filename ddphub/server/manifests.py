"""Manifests: what a client says a checkpoint consists of, checked before a byte is taken."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from ddphub import events, names
from ddphub.hubs.wire import KINDS, MAX_FILES
from ddphub.server.body import is_integer
from ddphub.server.incoming_events import wrong_values
from ddphub.server.problems import Problem

_SHA256: Final = re.compile("[0-9a-f]{64}")
_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """One file: `parts` holds the sha256 of each part, in order."""

    name: str
    size: int
    sha256: str
    parts: tuple[str, ...]

    def part_bytes(self, number: int, part_size: int) -> int:
        """Bytes of part `number`: `part_size`, less for the last one."""
        return min(part_size, self.size - number * part_size)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked manifest. `fingerprint` (32 bytes) tells a repeat from a contradiction."""

    attempt_id: str
    entry_id: str
    epoch: int | None
    step: int | None
    kind: str
    name: str
    metrics: dict[str, Any]
    files: tuple[ManifestFile, ...]
    fingerprint: bytes

    def check_parts(self, part_size: int) -> None:
        """Check that each file is cut into parts of `part_size` bytes.

        Raises:
            Problem: 422 that names the file.
        """
        for file in self.files:
            expected = -(-file.size // part_size)
            if len(file.parts) != expected:
                raise Problem(
                    422,
                    f"file {file.name!a}: {file.size} bytes make {expected} parts of {part_size} bytes, "
                    f"got {len(file.parts)}",
                )


def check_manifest(request: dict[str, Any], entry_id: str | None) -> Manifest:
    """The manifest of a request.

    Args:
        request: the body, as `body.parse_object` gave it.
        entry_id: the Idempotency-Key header.

    Raises:
        Problem: 422 that names the field and what is expected.
    """
    if entry_id is None or not names.is_hex_id(entry_id):
        raise Problem(422, "Idempotency-Key: expected the entry id, 32 lower-case hex digits")
    if not names.is_hex_id(request.get("attempt_id")):
        raise Problem(422, "attempt_id: expected 32 lower-case hex digits")
    for field in ("epoch", "step"):
        if request.get(field) is not None and not is_integer(request[field]):
            raise Problem(422, f"{field}: expected an integer or null")
    if request.get("kind") not in KINDS:
        raise Problem(422, f"kind: expected one of {', '.join(KINDS)}")
    if wrong := names.wrong_file_name(request.get("name")):
        raise Problem(422, f"name: {wrong}")
    metrics = request.get("metrics", {})
    if wrong := wrong_values(metrics):
        raise Problem(422, f"metrics: {wrong}")
    content = {
        "attempt_id": request["attempt_id"],
        "epoch": request.get("epoch"),
        "step": request.get("step"),
        "kind": request["kind"],
        "name": request["name"],
        "metrics": metrics,
    }
    files = _check_files(request.get("files"))
    written = [[file.name, file.size, file.sha256, *file.parts] for file in files]
    fingerprint = bytes.fromhex(events.fingerprint({**content, "files": written}))
    return Manifest(entry_id=entry_id, files=files, fingerprint=fingerprint, **content)


def _check_files(value: object) -> tuple[ManifestFile, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_FILES:
        raise Problem(422, f"files: expected a list of 1 to {MAX_FILES} files")
    files = tuple(_check_file(index, file) for index, file in enumerate(value))
    known = {file.name for file in files}
    if len(known) < len(files):
        raise Problem(422, "files: expected each name once")
    contents: dict[str, ManifestFile] = {}
    for file in files:
        folders = file.name.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if "/".join(folders[:depth]) in known:
                raise Problem(422, f"file {file.name!a}: one of its folders is the name of a file")
        same = contents.setdefault(file.sha256, file)
        if (same.size, same.parts) != (file.size, file.parts):
            raise Problem(422, f"file {file.name!a}: has the sha256 of {same.name!a}, but not its size or parts")
    return files


def _check_file(index: int, value: object) -> ManifestFile:
    where = f"files[{index}]"
    if not isinstance(value, dict):
        raise Problem(422, f"{where}: expected an object")
    if wrong := names.wrong_file_name(value.get("name")):
        raise Problem(422, f"{where}.name: {wrong}")
    if not is_integer(value.get("size"), low=0):
        raise Problem(422, f"{where}.size: expected bytes, an integer of 0 or more")
    parts = value.get("parts")
    if not _is_sha256(value.get("sha256")):
        raise Problem(422, f"{where}.sha256: expected 64 lower-case hex digits")
    if not isinstance(parts, list) or not all(_is_sha256(part) for part in parts):
        raise Problem(422, f"{where}.parts: expected a list of sha256, 64 lower-case hex digits each")
    if value["size"] == 0 and value["sha256"] != _EMPTY_SHA256:
        raise Problem(422, f"{where}.sha256: an empty file has {_EMPTY_SHA256}")
    if len(parts) == 1 and parts[0] != value["sha256"]:
        raise Problem(422, f"{where}: its only part has another sha256 than the file")
    return ManifestFile(name=value["name"], size=value["size"], sha256=value["sha256"], parts=tuple(parts))


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
