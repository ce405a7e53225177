"""Sending bytes to an object storage, a part at a time: it checks the sha256 of each, and we that of the whole."""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from ddphub.server.storage.address import MOST_PARTS
from ddphub.server.storage.interface import Interrupted, StoredBlob, WrongBytes
from ddphub.server.storage.s3_client import Bucket, asking, base64_of

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_PART: Final = 16 * 1024 * 1024
"""Bytes of a part: what one file on its way adds to memory, twice. Of more than 160 GB the parts are larger."""


def send(bucket: Bucket, key: str, blob: StoredBlob, chunks: Iterable[bytes], stopping: threading.Event) -> None:
    """Make an object of bytes that are here.

    Args:
        bucket: where.
        key: the object's key, which no other has.
        blob: what they are.
        chunks: the bytes, in pieces of any size.
        stopping: ends it early.

    Raises:
        WrongBytes: they are not those of `blob`; there is no object.
        Interrupted: `stopping` is set; there is none.
    """
    part_size = max(_PART, -(-blob.size // MOST_PARTS))
    checked = _Checked(blob, chunks, stopping)
    if blob.size > part_size:
        _send_in_parts(bucket, key, checked, part_size)
        return
    content = b"".join(_cut(checked, part_size))
    with asking("PutObject"):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=content, ChecksumSHA256=base64_of(blob.sha256))


class _Checked:
    """Gives bytes out; raises at their end when they were not those of `blob`."""

    def __init__(self, blob: StoredBlob, chunks: Iterable[bytes], stopping: threading.Event) -> None:
        self._blob = blob
        self._chunks = chunks
        self._stopping = stopping

    def __iter__(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        size = 0
        for chunk in self._chunks:
            if self._stopping.is_set():
                raise Interrupted
            digest.update(chunk)
            size += len(chunk)
            if size > self._blob.size:
                break
            yield chunk
        if (digest.hexdigest(), size) != (self._blob.sha256, self._blob.size):
            raise WrongBytes(damaged=False)


def _send_in_parts(bucket: Bucket, key: str, chunks: Iterable[bytes], part_size: int) -> None:
    client = bucket.client
    with asking("CreateMultipartUpload"):
        upload_id = client.create_multipart_upload(Bucket=bucket.name, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    sent: list[CompletedPartTypeDef] = []
    try:
        for number, content in enumerate(_cut(chunks, part_size), 1):
            checksum = base64_of(hashlib.sha256(content).hexdigest())
            with asking("UploadPart"):
                told = client.upload_part(
                    Bucket=bucket.name,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=content,
                    ChecksumSHA256=checksum,
                )
            sent.append({"PartNumber": number, "ETag": told["ETag"], "ChecksumSHA256": checksum})
        with asking("CompleteMultipartUpload"):
            client.complete_multipart_upload(
                Bucket=bucket.name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": sent}
            )
    except BaseException:
        bucket.abort(key, upload_id)
        raise


def _cut(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`; the last one is shorter."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)
