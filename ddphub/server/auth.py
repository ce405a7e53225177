"""Who may ask: API keys in headers, and signed cookies for browsers."""

import hashlib
import hmac
import secrets
import string
import time
from typing import Final

from fastapi import Request
from sqlalchemy import select

from ddphub.server.database import Database
from ddphub.server.problems import Problem
from ddphub.server.signing import Signer
from ddphub.server.tables import ApiKey

KEY_LENGTH: Final = 42

_ALPHABET: Final = string.ascii_letters + string.digits


def new_key() -> str:
    """A new API key: 42 letters and digits, 250 random bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(KEY_LENGTH))


class Keys:
    """The keys that this hub accepts.

    Attributes:
        cookie: the name of its browser sessions' cookie. Browsers tell hosts apart but not ports: two hubs on one
            host would sign each other's users out.

    Args:
        database: holds the salted digests of the keys that the hub made.
        signer: signs browser sessions.
        api_key: a key from the settings; it is accepted too and never stored.
        session_lifetime_s: seconds that a browser stays signed in.
    """

    def __init__(self, database: Database, signer: Signer, api_key: str | None, session_lifetime_s: int) -> None:
        self._database = database
        self._signer = signer
        self._session_lifetime_s = session_lifetime_s
        self.cookie = f"ddphub_session_{signer.sign('cookie name')[:8]}"
        with database.read() as session:
            self._known = [(row.salt, row.digest) for row in session.scalars(select(ApiKey).order_by(ApiKey.id))]
        if api_key is not None:
            # The salt is derived, not random, so that a browser stays signed in across restarts.
            salt = bytes.fromhex(signer.sign("settings key"))[:16]
            self._known.append((salt, _digest(salt, api_key)))

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, key: str) -> None:
        """Accept `key` from now on and after every restart."""
        salt = secrets.token_bytes(16)
        digest = _digest(salt, key)
        with self._database.write() as session:
            session.add(
                ApiKey(
                    public_id=secrets.token_hex(10),
                    prefix=key[:6],
                    salt=salt,
                    digest=digest,
                    name="the first key",
                    role="admin",
                    created_at=time.time(),
                )
            )
        self._known.append((salt, digest))

    def accepts(self, key: str) -> bool:
        """Whether `key` is one of the hub's; takes the same time whichever it is."""
        return self._digest_of(key) is not None

    def _digest_of(self, key: str) -> bytes | None:
        found = None
        for salt, digest in self._known:
            if hmac.compare_digest(_digest(salt, key), digest):
                found = digest
        return found

    def new_session(self, key: str) -> str | None:
        """A cookie for a browser whose user gave `key`; None when the key is wrong."""
        digest = self._digest_of(key)
        if digest is None:
            return None
        expires = int(time.time()) + self._session_lifetime_s
        return f"{expires}.{self._signer.sign('session', expires, digest.hex())}"

    def accepts_session(self, cookie: str) -> bool:
        """Whether `cookie` came from `new_session`, has not expired, and its key is still accepted."""
        expires, _, signature = cookie.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12) or int(expires) < time.time():
            return False
        return any(self._signer.signed(signature, "session", expires, digest.hex()) for _, digest in self._known)


def _digest(salt: bytes, key: str) -> bytes:
    # A key has 250 random bits, so one salted hash is enough: a slow one guards what can be guessed.
    return hashlib.sha256(salt + key.encode("utf-8", "surrogatepass")).digest()


def sent_key(request: Request) -> str | None:
    """The key in the request's `x-api-key` or `Authorization: Bearer` header."""
    if key := request.headers.get("x-api-key"):
        return key
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def unauthorized() -> Problem:
    """The answer to a request without a good key."""
    return Problem(
        401,
        "the hub does not know this API key: send it as x-api-key or as Authorization: Bearer",
        headers={"www-authenticate": 'Bearer realm="ddphub"'},
    )
