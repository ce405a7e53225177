"""Signed URLs of an object storage (AWS Signature Version 4, signature in the query).

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html. A checkpoint of 80 GB has 10,000 parts:
botocore, which makes one URL in some milliseconds, would take half a minute to list them.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlsplit

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What signs. `token` comes with credentials that end."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"


@dataclass(frozen=True, kw_only=True)
class Presigner:
    """Signs for one bucket.

    Args:
        base: URL of the bucket, with a slash at its end.
        region: the bucket's region.
    """

    base: str
    region: str

    def url(
        self,
        method: str,
        key: str,
        credentials: Credentials,
        *,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        lifetime_s: int,
        now: datetime | None = None,
    ) -> str:
        """A URL that lets its holder send one request.

        Args:
            method: the request's method.
            key: the object.
            credentials: what signs; the URL is good for no longer than they are.
            query: what the request asks.
            headers: headers that it must have, names in lower case; the host is always one.
            lifetime_s: seconds that it is good for.
            now: when it begins to be; None for now.
        """
        place = urlsplit(self.base + _quoted(key, safe="/"))
        at = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{at[:8]}/{self.region}/s3/aws4_request"
        headers = {"host": place.netloc, **headers}
        names = ";".join(sorted(headers))
        query = {
            **query,
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{credentials.access_key}/{scope}",
            "X-Amz-Date": at,
            "X-Amz-Expires": str(lifetime_s),
            "X-Amz-SignedHeaders": names,
            **({"X-Amz-Security-Token": credentials.token} if credentials.token else {}),
        }
        asked = "&".join(sorted(f"{_quoted(name)}={_quoted(value)}" for name, value in query.items()))
        listed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = f"{method}\n{place.path}\n{asked}\n{listed}\n{names}\nUNSIGNED-PAYLOAD"
        text = f"{_ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key_of_day = _key(credentials.secret_key, at[:8], self.region)
        signature = hmac.new(key_of_day, text.encode(), hashlib.sha256).hexdigest()
        return f"{place.scheme}://{place.netloc}{place.path}?{asked}&X-Amz-Signature={signature}"


@lru_cache(maxsize=4)
def _key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for step in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key


def _quoted(text: str, safe: str = "") -> str:
    return quote(text, safe=f"{safe}-_.~")
