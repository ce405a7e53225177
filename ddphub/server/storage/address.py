"""Where an object storage is, as `--storage` says it: `s3://bucket/prefix?endpoint=https://host&region=name`."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from ddphub.errors import SettingsError

LEAST_PART: Final = 5 * 1024 * 1024
"""Bytes that every part but a file's last must have at least (S3, "Multipart upload limits")."""

MOST_PARTS: Final = 10_000
"""Parts that a file may have at most (the same)."""

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class S3Address:
    """A place in an object storage that speaks S3.

    Args:
        bucket: the bucket's name.
        prefix: what the keys of this hub begin with, without a slash at its ends; empty for nothing.
        endpoint: base URL of the storage; None for AWS, or what the AWS configuration says.
        region: the region; None for what the AWS configuration says.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None

    @classmethod
    def parse(cls, text: str, source: str) -> "S3Address":
        """Read what a setting says.

        Args:
            text: the URL.
            source: where it came from, for the message.

        Raises:
            SettingsError: when it is none.
        """
        shape = "s3://bucket/prefix?endpoint=https://host&region=name"
        # No part of the value is in a message: what is wrong with it may be a key that someone put there.
        try:
            parts = urlsplit(text)
            query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise SettingsError("storage", "***", source, f"expected {shape}") from error
        if parts.scheme != "s3" or parts.fragment:
            raise SettingsError("storage", "***", source, f"expected {shape}")
        if "@" in parts.netloc or set(query) - {"endpoint", "region"} or any(len(one) > 1 for one in query.values()):
            expected = f"expected {shape} and no more; credentials come from the environment or the AWS configuration"
            raise SettingsError("storage", "***", source, expected)
        prefix = parts.path.strip("/")
        endpoint, region = (query.get(name, [None])[0] for name in ("endpoint", "region"))
        for name, value, known in (
            ("bucket", parts.netloc, _BUCKET),
            ("prefix", prefix or None, _PREFIX),
            ("region", region, _REGION),
        ):
            if value is not None and known.fullmatch(value) is None:
                raise SettingsError("storage", value, source, f"this is no {name} of {shape}")
        if prefix and {".", ".."} & set(prefix.split("/")):
            raise SettingsError("storage", prefix, source, "expected a prefix without . and ..")
        if endpoint is not None:
            _check_endpoint(endpoint, source)
        return cls(bucket=parts.netloc, prefix=prefix, endpoint=endpoint, region=region)

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{at}"


def _check_endpoint(endpoint: str, source: str) -> None:
    try:
        parts = urlsplit(endpoint)
        is_right = parts.port != 0 and parts.scheme in {"http", "https"} and parts.hostname and parts.path in {"", "/"}
    except ValueError:
        is_right = False
    if not is_right or parts.username is not None or parts.query or parts.fragment:
        raise SettingsError("storage", "***", source, "expected an endpoint as https://host or http://host:port")
