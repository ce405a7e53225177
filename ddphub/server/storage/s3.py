"""An object storage that speaks S3.

```
<prefix>/<project id>/<sha256>/<random>
```

Each file of a checkpoint arrives as a multipart upload to a key of its own, which is never written again: its parts go
from the node that has them straight to the storage, to URLs that are signed for the sha256 of each part. Then the hub
reads the whole file back: a part's sha256 says nothing of the whole, and what is stored under a content's name is given
to whoever announces that content. So every byte goes to the storage once and comes to the hub once.
"""

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from ddphub.hubs.wire import PartUrl
from ddphub.server.directory import DataDirectory
from ddphub.server.problems import Problem
from ddphub.server.storage.address import LEAST_PART, MOST_PARTS, S3Address
from ddphub.server.storage.incoming import IncomingFile, read_chunks, remove_stale
from ddphub.server.storage.interface import (
    STALE_S,
    ArrivingFile,
    Interrupted,
    Place,
    Prepared,
    StoredBlob,
    Wanted,
    WrongBytes,
)
from ddphub.server.storage.s3_client import CONNECTIONS, Bucket, Gone, asking, base64_of
from ddphub.server.storage.s3_reading import read_object
from ddphub.server.storage.s3_sending import send

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, PartTypeDef

DOWNLOAD_S: Final = 300
"""Seconds in which a download must begin at the URL that the hub gives; a cut one asks the hub for another."""

_KEY: Final = re.compile(r"([A-Za-z0-9]{1,64})/([0-9a-f]{64})/[0-9a-f]{32}")
_MOST_KEYS: Final = 1000
"""Keys in one request to delete."""

_log = logging.getLogger(__name__)
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class S3Storage:
    """A `Storage` in a bucket.

    Args:
        directory: the hub's data directory, for files that come whole.
        address: where the bucket is.
        url_lifetime_s: seconds that the URL of a part is good for.
    """

    reuses_places = False

    def __init__(self, directory: DataDirectory, address: S3Address, url_lifetime_s: int) -> None:
        self._directory = directory
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._url_lifetime_s = url_lifetime_s
        self.bucket = Bucket(address)
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS // 2, thread_name_prefix="ddphub-s3")
        self._stopping = threading.Event()

    def check(self) -> None:
        """See `Storage`."""
        try:
            self.bucket.check()
        except Gone:
            raise Problem(503, "the hub's object storage has no such bucket") from None

    def stop(self) -> None:
        """See `Storage`."""
        self._stopping.set()

    def close(self) -> None:
        """See `Storage`."""
        self._threads.shutdown()
        self.bucket.close()

    def _each(self, ask: Callable[[_Given], _Made], given: Iterable[_Given]) -> list[_Made]:
        """Ask for each, several at once: one answer takes long, and many take no longer."""
        return list(self._threads.map(ask, given))

    def _new_key(self, project: str, sha256: str) -> str:
        return f"{self._prefix}{project}/{sha256}/{secrets.token_hex(16)}"

    # Files that arrive in parts -------------------------------------------------------------------------------------

    def arrived(self, files: Sequence[ArrivingFile]) -> Mapping[int, set[int] | None]:
        """See `Storage`: what does not have a part's size, or another sha256 by the storage's word, is asked for."""
        return dict(zip([file.number for file in files], self._each(self._arrived, files), strict=True))

    def _arrived(self, file: ArrivingFile) -> set[int] | None:
        if not file.parts:
            return set()  # it is empty, and made when it is assembled
        if file.location is None:
            return None
        try:
            return set(self._parts(file))
        except Gone:
            # Its upload is over: it became an object, and nothing was committed, or someone removed it.
            return set(range(len(file.parts))) if self._size(file.location) == file.size else None

    def _parts(self, file: ArrivingFile) -> "dict[int, PartTypeDef]":
        assert file.location is not None  # noqa: S101  # it was begun
        assert file.upload_id is not None  # noqa: S101  # the same
        pages = self.bucket.client.get_paginator("list_parts")
        found = {}
        with asking("ListParts"):
            for page in pages.paginate(Bucket=self.bucket.name, Key=file.location, UploadId=file.upload_id):
                for part in page.get("Parts", []):
                    number = part["PartNumber"] - 1
                    # Not every storage tells what it checked.
                    if (
                        number < len(file.parts)
                        and part["Size"] == file.part_bytes(number)
                        and part.get("ChecksumSHA256") in {None, base64_of(file.parts[number])}
                    ):
                        found[number] = part
        return found

    def begin(self, files: Sequence[ArrivingFile]) -> Mapping[int, Place]:
        """See `Storage`."""
        for file in files:
            if len(file.parts) > MOST_PARTS:
                raise Problem(
                    422,
                    f"file {file.name!a}: an object storage takes {MOST_PARTS} parts of a file, and {file.size} bytes "
                    f"make {len(file.parts)} of {file.part_size} bytes: the hub needs a larger --part-size",
                )
            if len(file.parts) > 1 and file.part_size < LEAST_PART:
                raise Problem(422, f"it was begun in parts of {file.part_size} bytes, which this storage does not take")
        return dict(zip([file.number for file in files], self._each(self._begin, files), strict=True))

    def _begin(self, file: ArrivingFile) -> Place:
        key = self._new_key(file.project, file.sha256)
        with asking("CreateMultipartUpload"):
            upload = self.bucket.client.create_multipart_upload(
                Bucket=self.bucket.name, Key=key, ChecksumAlgorithm="SHA256"
            )
        return Place(location=key, upload_id=upload["UploadId"])

    def part_url(self, file: ArrivingFile, number: int) -> PartUrl:
        """See `Storage`: the storage takes only what has the sha256 that the URL is signed for."""
        assert file.location is not None  # noqa: S101  # it was begun
        assert file.upload_id is not None  # noqa: S101  # the same
        headers = {"x-amz-checksum-sha256": base64_of(file.parts[number])}
        url = self.bucket.presigner.url(
            "PUT",
            file.location,
            self.bucket.credentials(),
            query={"partNumber": str(number + 1), "uploadId": file.upload_id},
            headers=headers,
            lifetime_s=self._url_lifetime_s,
        )
        return {"number": number, "url": url, "headers": headers}

    def assemble(self, file: ArrivingFile) -> Prepared:
        """See `Storage`: the object stays where it is until a commit, or until its bytes are found to be wrong."""
        if not file.parts:
            return self.prepare(StoredBlob(project=file.project, sha256=file.sha256, size=0), [])
        if file.location is None:
            raise Gone(file.name)
        try:
            self._join(file)
        except Gone:
            if self._size(file.location) != file.size:
                raise
        blob = StoredBlob(project=file.project, sha256=file.sha256, size=file.size, location=file.location)
        if _digest(self._all_of(blob)) != file.sha256:
            raise WrongBytes(damaged=self._is_damaged(blob, file))
        return Prepared(blob=blob, is_arrived=True)

    def _join(self, file: ArrivingFile) -> None:
        assert file.location is not None  # noqa: S101  # its caller looked
        assert file.upload_id is not None  # noqa: S101  # the same
        there = self._parts(file)
        if len(there) < len(file.parts):
            raise Gone(file.name)
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number + 1, "ETag": there[number]["ETag"], "ChecksumSHA256": base64_of(sha256)}
            for number, sha256 in enumerate(file.parts)
        ]
        with asking("CompleteMultipartUpload"):
            self.bucket.client.complete_multipart_upload(
                Bucket=self.bucket.name,
                Key=file.location,
                UploadId=file.upload_id,
                MultipartUpload={"Parts": parts},
            )

    def _all_of(self, blob: StoredBlob) -> Iterator[bytes]:
        for chunk in self.read(blob):
            if self._stopping.is_set():
                raise Interrupted
            yield chunk

    def _is_damaged(self, blob: StoredBlob, file: ArrivingFile) -> bool:
        """Whether a part is not what was announced; else the parts are, and do not make the file."""
        for number, sha256 in enumerate(file.parts):
            start = number * file.part_size
            if _digest(self.read(blob, start, start + file.part_bytes(number))) != sha256:
                return True
        return False

    def forget(self, checkpoint: str, files: Sequence[ArrivingFile]) -> None:  # noqa: ARG002  # each has its own place
        """See `Storage`."""
        self._each(self._forget, [file for file in files if file.location is not None])

    def _forget(self, file: ArrivingFile) -> None:
        assert file.location is not None  # noqa: S101  # its caller looked
        if file.upload_id is not None:
            self.bucket.abort(file.location, file.upload_id)
        with asking("DeleteObject"):
            self.bucket.client.delete_object(Bucket=self.bucket.name, Key=file.location)

    # Files that come whole ------------------------------------------------------------------------------------------

    def new_file(self) -> IncomingFile:
        """See `Storage`."""
        return IncomingFile(self._directory.new_incoming())

    def adopt(self, file: IncomingFile, project: str) -> Prepared:
        """See `Storage`."""
        blob = StoredBlob(project=project, sha256=file.sha256, size=file.size)
        return self.prepare(blob, read_chunks(file.path.open("rb"), file.size))

    def prepare(self, blob: StoredBlob, chunks: Iterable[bytes]) -> Prepared:
        """See `Storage`."""
        key = self._new_key(blob.project, blob.sha256)
        send(self.bucket, key, blob, chunks, self._stopping)
        return Prepared(blob=replace(blob, location=key))

    # Blobs ----------------------------------------------------------------------------------------------------------

    def place(self, prepared: Sequence[Prepared]) -> None:
        """See `Storage`: they are in their place, and their rows say where that is."""

    def drop(self, prepared: Sequence[Prepared]) -> None:
        """See `Storage`."""
        self.remove([one.blob for one in prepared if not one.is_arrived])

    def held(self, blobs: Sequence[StoredBlob]) -> set[str]:
        """See `Storage`."""
        sizes = self._each(lambda blob: None if blob.location is None else self._size(blob.location), blobs)
        return {blob.sha256 for blob, size in zip(blobs, sizes, strict=True) if size == blob.size}

    def _size(self, key: str) -> int | None:
        try:
            with asking("HeadObject"):
                return self.bucket.client.head_object(Bucket=self.bucket.name, Key=key)["ContentLength"]
        except Gone:
            return None

    def read(self, blob: StoredBlob, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `Storage`."""
        if blob.location is None:
            raise Gone(blob.sha256)
        return read_object(self.bucket, blob.location, start, blob.size if end is None else min(end, blob.size))

    def download_url(self, blob: StoredBlob, name: str) -> str | None:
        """See `Storage`."""
        if blob.location is None:
            return None
        asked = {
            "response-content-type": "application/octet-stream",
            "response-content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        }
        return self.bucket.presigner.url(
            "GET", blob.location, self.bucket.credentials(), query=asked, headers={}, lifetime_s=DOWNLOAD_S
        )

    def path(self, blob: StoredBlob) -> None:  # noqa: ARG002  # as every storage is asked
        """See `Storage`: none is on this machine."""
        return

    def remove(self, blobs: Sequence[StoredBlob]) -> None:
        """See `Storage`."""
        keys = [blob.location for blob in blobs if blob.location is not None]
        for start in range(0, len(keys), _MOST_KEYS):
            some = keys[start : start + _MOST_KEYS]
            with asking("DeleteObjects"):
                told = self.bucket.client.delete_objects(
                    Bucket=self.bucket.name, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            if errors := told.get("Errors"):
                _log.warning("%d objects could not be removed: %s", len(errors), errors[0].get("Code"))

    def stored(self) -> Iterator[tuple[StoredBlob, float]]:
        """See `Storage`: objects whose keys are not as this hub makes them are not its own."""
        pages = self.bucket.client.get_paginator("list_objects_v2")
        with asking("ListObjectsV2"):
            for page in pages.paginate(Bucket=self.bucket.name, Prefix=self._prefix):
                for one in page.get("Contents", []):
                    if match := self._own(one["Key"]):
                        project, sha256 = match.groups()
                        blob = StoredBlob(project=project, sha256=sha256, size=one["Size"], location=one["Key"])
                        yield blob, one["LastModified"].timestamp()

    def _own(self, key: str) -> re.Match[str] | None:
        return _KEY.fullmatch(key.removeprefix(self._prefix)) if key.startswith(self._prefix) else None

    def sweep(self, wanted: Wanted) -> None:
        """See `Storage`."""
        too_young = time.time() - STALE_S
        # First this: what is begun later is too young.
        needed = wanted.upload_ids()
        pages = self.bucket.client.get_paginator("list_multipart_uploads")
        with asking("ListMultipartUploads"):
            for page in pages.paginate(Bucket=self.bucket.name, Prefix=self._prefix):
                for upload in page.get("Uploads", []):
                    is_old = upload["Initiated"].timestamp() < too_young
                    if is_old and upload["UploadId"] not in needed and self._own(upload["Key"]):
                        self.bucket.abort(upload["Key"], upload["UploadId"])
        remove_stale(self._directory.incoming, too_young)


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
