"""The connection to an object storage: its errors are ours, and no URL or key of it is in a log."""

import base64
import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from ddphub.server.problems import Problem
from ddphub.server.storage.address import S3Address
from ddphub.server.storage.presigning import Credentials, Presigner

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS: Final = 32
"""Requests at once, of one process."""

_RETRY_S: Final = "5"
_NO_SUCH: Final = frozenset({"NoSuchKey", "NoSuchUpload", "404", "NotFound"})

_log = logging.getLogger(__name__)


class Gone(FileNotFoundError):
    """The storage has no such object or upload."""


class Bucket:
    """One bucket, for any thread.

    Args:
        address: where it is.

    Attributes:
        client: boto3's; use it inside of `asking`.
        name: the bucket's name.
    """

    def __init__(self, address: S3Address) -> None:
        self.name = address.bucket
        self._session = boto3.session.Session()
        config = Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 4},
            max_pool_connections=CONNECTIONS,
            # Ours are sha256, where they are; storages of other makers do not know all that AWS's has.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self.client: S3Client = self._session.client(
            "s3", region_name=address.region, endpoint_url=address.endpoint, config=config
        )
        self._presigner: Presigner | None = None

    def check(self) -> None:
        """Find out whether it is there and lets this hub in.

        Raises:
            Gone: there is no such bucket.
            Problem: 503 when the storage does not answer, or refuses.
        """
        with asking("HeadBucket"):
            self.client.head_bucket(Bucket=self.name)

    def credentials(self) -> Credentials:
        """What signs now; credentials that end are renewed here.

        Raises:
            Problem: 503 when there are none.
        """
        with asking("credentials"):
            found = self._session.get_credentials()
            frozen = None if found is None else found.get_frozen_credentials()
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise Problem(503, "the hub has no credentials for its object storage", headers=_later())
        return Credentials(access_key=frozen.access_key, secret_key=frozen.secret_key, token=frozen.token)

    @property
    def presigner(self) -> Presigner:
        """Signs URLs of this bucket."""
        if self._presigner is None:
            # botocore knows where a bucket is: as a part of the host's name or of the path.
            with asking("credentials"):
                url = self.client.generate_presigned_url("get_object", Params={"Bucket": self.name, "Key": "k"})
            place = urlsplit(url)
            base = f"{place.scheme}://{place.netloc}{place.path.removesuffix('k')}"
            self._presigner = Presigner(base=base, region=self.client.meta.region_name)
        return self._presigner

    def abort(self, key: str, upload_id: str) -> None:
        """End an upload that is to be none; one that is over stays what it became."""
        with contextlib.suppress(Gone), asking("AbortMultipartUpload"):
            self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)

    def close(self) -> None:
        """Close its connections."""
        self.client.close()


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Around a request to the storage.

    Args:
        what: the request's name, for the log.

    Raises:
        Gone: the storage has no such thing.
        Problem: 503, as it did not answer, or not as it should.
    """
    try:
        yield
    except ClientError as error:
        told = error.response.get("Error", {})
        code = str(told.get("Code", "?"))
        if code in _NO_SUCH:
            raise Gone(what) from None
        _log.warning("the object storage answers %s with %s", what, code)
        raise _unavailable(f"answers {code}") from None
    except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        # Its text may hold a URL.
        _log.warning("the object storage does not answer %s: %s", what, type(error).__name__)
        raise _unavailable("does not answer") from None


def _unavailable(how: str) -> Problem:
    return Problem(503, f"the hub's object storage {how}; try again", headers=_later())


def _later() -> dict[str, str]:
    return {"retry-after": _RETRY_S}


def base64_of(sha256: str) -> str:
    """A sha256 as S3's headers have it."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()
