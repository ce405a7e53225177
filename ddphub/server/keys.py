"""API keys: making them, finding who holds one."""

import hashlib
import hmac
import logging
import secrets
import string
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ddphub.server.audit import record
from ddphub.server.database import Database
from ddphub.server.known_keys import Holders, RecentKeys
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.signing import Signer
from ddphub.server.tables import ApiKey, Grant, User
from ddphub.server.throttle import Throttle, client_of

KEY_LENGTH: Final = 42
PREFIX: Final = 6
"""Characters of a key that are stored as they are: the hub finds it by them, and people tell keys apart."""

SETTINGS_KEY: Final = "the settings' key"
"""What the holder of the key in the hub's settings is called."""

_ALPHABET: Final = string.ascii_letters + string.digits
_USED_EVERY_S: Final = 60.0
_IN_USE_S: Final = 24 * 3600.0

_log = logging.getLogger(__name__)


def new_key() -> str:
    """A new API key: 42 letters and digits, 250 random bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(KEY_LENGTH))


def unauthorized(detail: str = "the hub does not know this API key") -> Problem:
    """The answer to a request without a good key."""
    return Problem(
        401,
        f"{detail}: send one as x-api-key or as Authorization: Bearer",
        headers={"www-authenticate": 'Bearer realm="ddphub"'},
    )


class Keys:
    """The keys that this hub accepts. Any thread.

    A key is looked up in the database, at most once a second: a revocation is effective at once in all processes of
    this machine, and within a second in those of others.

    Args:
        database: holds the salted digests of the keys that the hub made.
        signer: makes digests that only this hub can make.
        throttle: counts wrong keys.
        api_key: a key from the settings; it is accepted too and never stored.
        shared: a file of the data directory, see `Holders`.
    """

    def __init__(
        self, database: Database, signer: Signer, throttle: Throttle, api_key: str | None, shared: Path
    ) -> None:
        self._database = database
        self._signer = signer
        self._throttle = throttle
        self._settings_tag = None if api_key is None else self._tag(api_key)
        self._good = RecentKeys()
        self._refused = RecentKeys()
        self._tried = RecentKeys()
        self._used_before: frozenset[str | None] | None = None
        self._holders = Holders(shared)
        self._used: dict[int, float] = {}

    def __bool__(self) -> bool:
        if self._settings_tag is not None:
            return True
        with self._database.read() as session:
            return session.scalar(select(ApiKey.id).limit(1)) is not None

    @property
    def settings_tag(self) -> str | None:
        """What stands for the key of the settings where it may not be written; None where there is no such key."""
        return None if self._settings_tag is None else self._settings_tag.hex()

    def add(self, key: str, name: str = "printed at a start") -> None:
        """Accept `key` from now on and after every restart, for everything."""
        row = new_row(key, name=name, role="admin")
        with self._database.write() as session:
            session.add(row)
            record(session, Principal.of_the_hub("ddphub serve"), "key.add", row.public_id, name=name, role="admin")

    @contextmanager
    def changing(self) -> Iterator[Session]:
        """A write session in which keys or users change: it is effective when the block ends."""
        with self._database.write() as session:
            yield session
        self._holders.forget()

    def find(self, key: str, address: str) -> Principal:
        """Who holds `key`.

        Args:
            key: as it was sent.
            address: where it came from.

        Raises:
            Problem: 401 for a key that is none or no longer one, 429 for an address with many wrong ones.
        """
        tag = self._tag(key)
        # What an address has always used goes on: a wrong key elsewhere behind it must not stop a training.
        if (address, tag) not in self._good:
            if not self._was_in_use(key, address):
                self._throttle.check(address)
            if self._throttle.knows(address, tag):
                raise unauthorized()
        if self._settings_tag is not None and hmac.compare_digest(tag, self._settings_tag):
            found: Principal | None = Principal.of_the_hub(SETTINGS_KEY)
        else:
            found = self._holders.get(tag) or self._stored(key, address, tag)
        if found is None:
            self._throttle.note(address, tag)
            raise unauthorized()
        self._good.add((address, tag))
        return replace(found, address=address)

    def _was_in_use(self, key: str, address: str) -> bool:
        """Whether it begins as a key that was in use before this process started, and is an address's first such try.

        So that who is behind the same router as a job cannot keep that out after a restart of the hub.
        """
        if self._used_before is None:
            since = time.time() - _IN_USE_S
            with self._database.read() as session:
                chosen = select(ApiKey.prefix).where(ApiKey.revoked_at.is_(None), ApiKey.last_used_at > since)
                self._used_before = frozenset(session.scalars(chosen))
        prefix = key[:PREFIX]
        return prefix in self._used_before and self._tried.add((client_of(address), prefix.encode()))

    def _stored(self, key: str, address: str, tag: bytes) -> Principal | None:
        if len(key) != KEY_LENGTH or not (key.isascii() and key.isalnum()):
            return None
        now, changes = time.time(), self._holders.changes
        with self._database.read() as session:
            rows = session.execute(_BY_PREFIX, {"prefix": key[:PREFIX]}).all()
        rows = [row for row in rows if hmac.compare_digest(_digest(row.salt, key), row.digest)]
        if not rows:
            return None
        principal, why = _principal(rows), _wrong(rows[0], now)
        if why is not None:
            self._record_refusal(principal, address, tag, why)
            raise unauthorized(why)
        if rows[0].last_used_at is None or now - rows[0].last_used_at >= _USED_EVERY_S:
            self._note_use(rows[0].id, key[:PREFIX], now)
        self._holders.put(tag, principal, changes)
        return principal

    def _note_use(self, number: int, prefix: str, now: float) -> None:
        # Of the many requests that find it so at once, one is enough.
        if now - self._used.get(number, 0.0) < _USED_EVERY_S:
            return
        self._used[number] = now
        with self._noting() as session:
            session.execute(update(ApiKey).where(ApiKey.id == number).values(last_used_at=now, prefix=prefix))

    def _record_refusal(self, principal: Principal, address: str, tag: bytes, why: str) -> None:
        """Once for each address: a job whose key was revoked goes on asking."""
        if self._refused.add((address, tag)):
            by = replace(principal, address=address)
            with self._noting() as session:
                record(session, by, "key.refused", by.key_id or "", why=why)

    @contextmanager
    def _noting(self) -> Iterator[Session]:
        """A write session whose failure is no failure of the request: a disk that is full may not matter to that."""
        try:
            with self._database.write() as session:
                yield session
        except SQLAlchemyError as error:
            _log.warning("the use of a key could not be noted: %s", type(error).__name__)

    def _tag(self, key: str) -> bytes:
        """What stands for a key in memory."""
        return bytes.fromhex(self._signer.sign("key", hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()))


def new_row(key: str, *, name: str, role: str, **columns: object) -> ApiKey:
    """The row of a new key, which is nowhere in it."""
    salt = secrets.token_bytes(16)
    return ApiKey(
        public_id=secrets.token_hex(10),
        prefix=key[:PREFIX],
        salt=salt,
        digest=_digest(salt, key),
        name=name,
        role=role,
        created_at=time.time(),
        **columns,
    )


def holder(session: Session, number: int, now: float) -> Principal | None:
    """Who holds the key with this number; None when it is good no longer."""
    rows = session.execute(_BY_NUMBER, {"number": number}).all()
    return None if _wrong(rows[0], now) is not None else _principal(rows)


# Every request asks for this: one statement, built once. A row for each grant of the key's user.
_HOLDER: Final = (
    select(
        *(ApiKey.id, ApiKey.public_id, ApiKey.salt, ApiKey.digest, ApiKey.name, ApiKey.role, ApiKey.project_ref),
        *(ApiKey.run_id, ApiKey.expires_at, ApiKey.revoked_at, ApiKey.last_used_at, ApiKey.user_ref),
        *(User.name.label("user_name"), User.disabled_at),
        *(Grant.project_ref.label("granted_in"), Grant.role.label("granted")),
    )
    .outerjoin(User, User.id == ApiKey.user_ref)
    .outerjoin(Grant, Grant.user_ref == ApiKey.user_ref)
)
# A key of an older hub has no prefix yet.
_BY_PREFIX: Final = _HOLDER.where(or_(ApiKey.prefix == bindparam("prefix"), ApiKey.prefix.is_(None)))
_BY_NUMBER: Final = _HOLDER.where(ApiKey.id == bindparam("number"))


def _wrong(row: Any, now: float) -> str | None:  # noqa: ANN401  # of _HOLDER
    """Why a key is good no longer; None while it is."""
    if row.revoked_at is not None:
        return "this API key was revoked"
    if row.expires_at is not None and row.expires_at <= now:
        return "this API key has expired"
    return None if row.disabled_at is None else "the user of this API key is disabled"


def _principal(rows: Sequence[Any]) -> Principal:
    row = rows[0]
    return Principal(
        # Who makes a key of nobody chooses its name, which may be a person's: that is not who it was.
        who=f"key {row.name}" if row.user_ref is None else row.user_name,
        role=row.role,
        key_id=row.public_id,
        project=row.project_ref,
        run_id=row.run_id,
        expires_at=row.expires_at,
        user=row.user_ref,
        grants=None if row.user_ref is None else {one.granted_in: one.granted for one in rows if one.granted},
    )


def _digest(salt: bytes, key: str) -> bytes:
    # A key has 250 random bits, so one salted hash is enough: a slow one guards what can be guessed.
    return hashlib.sha256(salt + key.encode()).digest()
