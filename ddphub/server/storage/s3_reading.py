"""Reading an object, a piece at a time; a connection that breaks is followed by another that goes on where it ended."""

import logging
from collections.abc import Iterator
from typing import Final

from botocore.exceptions import BotoCoreError, HTTPClientError
from botocore.response import StreamingBody
from urllib3.exceptions import HTTPError

from ddphub.server.problems import Problem
from ddphub.server.storage.incoming import CHUNK
from ddphub.server.storage.s3_client import Bucket, Gone, asking

_TRIES: Final = 5
"""Connections in a row that give nothing; one that gives something begins the count again."""

_log = logging.getLogger(__name__)


def read_object(bucket: Bucket, key: str, start: int, end: int) -> Iterator[bytes]:
    """The bytes of an object from `start` up to `end`.

    Raises:
        Gone: there is no such object, now or when its reading goes on.
        Problem: 503 when the storage does not answer.
    """
    # Now, not when the first piece is taken: who asks can still answer with an error.
    return _pieces(bucket, key, start, end, _open(bucket, key, start, end))


def _open(bucket: Bucket, key: str, start: int, end: int) -> StreamingBody | None:
    if start >= end:
        with asking("HeadObject"):
            bucket.client.head_object(Bucket=bucket.name, Key=key)
        return None
    with asking("GetObject"):
        told = bucket.client.get_object(Bucket=bucket.name, Key=key, Range=f"bytes={start}-{end - 1}")
    if told["ContentLength"] != end - start:
        told["Body"].close()
        raise Gone(key)  # another object is there, or a part of it
    return told["Body"]


def _pieces(bucket: Bucket, key: str, start: int, end: int, body: StreamingBody | None) -> Iterator[bytes]:
    failures = 0
    while body is not None and start < end:
        try:
            with body:
                while chunk := body.read(min(CHUNK, end - start)):
                    start += len(chunk)
                    failures = 0
                    yield chunk
        except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
            _log.info("reading an object goes on after %s", type(error).__name__)
        if start == end:
            return
        failures += 1
        if failures == _TRIES:
            raise Problem(503, "the hub's object storage breaks off; try again")
        body = _open(bucket, key, start, end)
