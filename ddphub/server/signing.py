"""What the hub signs with its secret: part URLs and browser sessions."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from ddphub.server.problems import Problem

PARTS_PATH: Final = "/v1/parts"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of one file of a checkpoint: what a signed URL allows to send.

    Args:
        checkpoint: the checkpoint's id.
        file: the file's number in its checkpoint, from 0.
        number: the part's number in its file, from 0.
        size: bytes of the part.
        sha256: of the part, as hex.
    """

    checkpoint: str
    file: int
    number: int
    size: int
    sha256: str


class Signer:
    """Makes and checks signatures (HMAC-SHA256).

    Args:
        secret: the hub's 32 random bytes.
        url_lifetime_s: seconds that a part URL is good for.
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
            "size": part.size,
            "sha256": part.sha256,
            "expires": expires,
            "signature": self._part_signature(part, expires),
        }
        return f"{PARTS_PATH}/{part.checkpoint}/{part.file}/{part.number}?{urlencode(query)}"

    def check_part(self, part: Part, expires: int, signature: str) -> None:
        """Let only what `part_url` made pass.

        Raises:
            Problem: 403, when the signature is another one or the URL has expired.
        """
        expected = self._part_signature(part, expires)
        if not hmac.compare_digest(signature.encode("utf-8", "surrogatepass"), expected.encode()):
            raise Problem(403, "this URL was not signed by the hub")
        if expires < time.time():
            raise Problem(403, "this URL has expired: ask for the missing parts again")

    def _part_signature(self, part: Part, expires: int) -> str:
        return self.sign("part", part.checkpoint, part.file, part.number, part.size, part.sha256, expires)
