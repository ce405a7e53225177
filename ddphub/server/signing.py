"""What the hub signs with its secret: URLs of parts and downloads, and browser sessions."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from ddphub.server.problems import Problem

PARTS_PATH: Final = "/v1/parts"
DOWNLOADS_PATH: Final = "/v1/downloads"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of one file of a checkpoint: what a signed URL allows to send.

    Args:
        checkpoint: the checkpoint's id.
        file: the file's number in its checkpoint, from 0.
        number: the part's number in its file, from 0.
        start: where it begins in its file, in bytes.
        size: bytes of the part.
        sha256: of the part, as hex.
    """

    checkpoint: str
    file: int
    number: int
    start: int
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file of a committed checkpoint: what a signed URL allows to read.

    Args:
        checkpoint: the checkpoint's id.
        file: the file's number in its checkpoint, from 0.
        name: what the URL ends in; clients name the file that they make by it.
    """

    checkpoint: str
    file: int
    name: str


class Signer:
    """Makes and checks signatures (HMAC-SHA256).

    Args:
        secret: the hub's 32 random bytes.
        url_lifetime_s: seconds that a signed URL is good for.
    """

    def __init__(self, secret: bytes, url_lifetime_s: int) -> None:
        self._secret = secret
        self._url_lifetime_s = url_lifetime_s

    def sign(self, purpose: str, *fields: object) -> str:
        """The signature of `fields` for one purpose: it is good for no other.

        Args:
            purpose: what the signature is for.
            fields: none has a line break in its text.
        """
        text = "\n".join([purpose, *(str(field) for field in fields)])
        return hmac.new(self._secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def signed(self, signature: str, purpose: str, *fields: object) -> bool:
        """Whether `signature` is the one of `fields`; takes the same time whether or not."""
        given = signature.encode("utf-8", "surrogatepass")
        return hmac.compare_digest(given, self.sign(purpose, *fields).encode())

    def part_url(self, part: Part) -> str:
        """A URL without host that lets its holder PUT this part, until it expires."""
        expires = int(time.time()) + self._url_lifetime_s
        query = {
            "start": part.start,
            "size": part.size,
            "sha256": part.sha256,
            "expires": expires,
            "signature": self.sign("part", *_fields(part), expires),
        }
        return f"{PARTS_PATH}/{part.checkpoint}/{part.file}/{part.number}?{urlencode(query)}"

    def check_part(self, part: Part, expires: int, signature: str) -> None:
        """Let only what `part_url` made pass.

        Raises:
            Problem: 403, when the signature is another one or the URL has expired.
        """
        if not self.signed(signature, "part", *_fields(part), expires):
            raise Problem(403, "this URL was not signed by the hub")
        if expires < time.time():
            raise Problem(403, "this URL has expired: ask for the missing parts again")

    def download_url(self, download: Download) -> str:
        """A URL without host that lets its holder read this file, until it expires.

        It has no query: HUB v1 clients tell a model file by how the URL ends.
        """
        expires = int(time.time()) + self._url_lifetime_s
        signature = self.sign("download", download.checkpoint, download.file, download.name, expires)
        place = f"{download.checkpoint}/{download.file}/{expires}/{signature}/{quote(download.name, safe='')}"
        return f"{DOWNLOADS_PATH}/{place}"

    def check_download(self, download: Download, expires: int, signature: str) -> None:
        """Let only what `download_url` made pass.

        Raises:
            Problem: 403, when the signature is another one or the URL has expired.
        """
        if not self.signed(signature, "download", download.checkpoint, download.file, download.name, expires):
            raise Problem(403, "this URL was not signed by the hub")
        if expires < time.time():
            raise Problem(403, "this URL has expired: ask for the model again")


def _fields(part: Part) -> tuple[object, ...]:
    return (part.checkpoint, part.file, part.number, part.start, part.size, part.sha256)
