"""Who sends many wrong keys has to wait: a minute, then twice as long each time, up to 15 minutes.

A wrong key counts once for its address, however often it is sent: a job that goes on with a mistyped key guesses
nothing. All processes of a hub count together. What an address has to wait is remembered here, so that who is blocked
costs the database nothing.
"""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ddphub.server.audit import record
from ddphub.server.database import Database, locked
from ddphub.server.principal import Principal
from ddphub.server.problems import Problem
from ddphub.server.tables import SignInFailures

MOST: Final = 10
"""Wrong keys from one address, none of them more than `WITHIN_S` after the one before."""

WITHIN_S: Final = 5 * 60.0
_FIRST_S: Final = 60.0
_LONGEST_S: Final = 15 * 60.0
_TAG: Final = 8
_REMEMBERED: Final = 10_000

_log = logging.getLogger(__name__)

_Key = TypeVar("_Key")


def client_of(address: str) -> str:
    """What counts as one client: an IPv6 network of 64 bits is one, as each machine has one of its own."""
    try:
        known = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(known, IPv6Address) and known.ipv4_mapped is None:
        return str(ip_network((known.packed[:8] + bytes(8), 64)))
    return str(known)


class Throttle:
    """Counts the wrong keys of each address. Any thread.

    Args:
        database: holds the counts.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._until: OrderedDict[str, float] = OrderedDict()
        self._wrong: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """Let only who does not have to wait pass.

        Raises:
            Problem: 429 that says for how long.
        """
        wait = self._until.get(client_of(address), 0.0) - time.time()
        if wait > 0:
            seconds = int(wait) + 1
            raise Problem(
                429,
                f"many wrong API keys came from your address: try again in {seconds} s",
                headers={"retry-after": str(seconds)},
            )

    def knows(self, address: str, tag: bytes) -> bool:
        """Whether a key was found to be wrong in the last minute."""
        return time.time() - self._wrong.get((client_of(address), tag), 0.0) < _FIRST_S

    def note(self, address: str, tag: bytes) -> None:
        """Count a wrong key, unless the address has sent it before, and record it.

        Args:
            address: where it came from.
            tag: what stands for the key.
        """
        client, now = client_of(address), time.time()
        short = hashlib.sha256(tag).digest()[:_TAG]
        with self._lock:
            _put(self._wrong, (client, tag), now)
        try:
            with self._database.write() as session:
                count = _count(session, client, short, now)
                if count is None:
                    return
                wait = _penalty(count)
                someone = Principal(who="nobody known", role="reader", address=address)
                record(session, someone, "key.refused", address, why="unknown")
                if wait:
                    record(session, someone, "address.blocked", client, seconds=wait)
        except SQLAlchemyError as error:
            # Another process has just begun to count this address; or the disk is full, and the key is wrong anyway.
            _log.warning("a wrong key could not be counted: %s", type(error).__name__)
            return
        if wait:
            with self._lock:
                _put(self._until, client, now + wait)


def _count(session: Session, client: str, short: bytes, now: float) -> int | None:
    """How many wrong keys the address has sent with this one; None when it was counted already."""
    row = session.scalar(locked(session, select(SignInFailures).where(SignInFailures.address == client)))
    if row is None:
        # Rows of addresses that would begin anew anyway.
        session.execute(delete(SignInFailures).where(SignInFailures.since < now - _LONGEST_S - WITHIN_S))
        row = SignInFailures(address=client, count=0, since=now, keys=b"")
        session.add(row)
    elif now > row.since + _penalty(row.count) + WITHIN_S:
        row.count, row.keys = 0, b""
    known = [row.keys[start : start + _TAG] for start in range(0, len(row.keys), _TAG)]
    if short in known:
        return None
    row.count, row.since = row.count + 1, now
    row.keys = b"".join([*known[-MOST:], short])
    return row.count


def _penalty(count: int) -> float:
    """Seconds to wait after so many wrong keys."""
    return 0.0 if count < MOST else min(_LONGEST_S, _FIRST_S * 2 ** min(count - MOST, 10))


def _put(store: "OrderedDict[_Key, float]", key: _Key, value: float) -> None:
    store[key] = value
    store.move_to_end(key)
    if len(store) > _REMEMBERED:
        store.popitem(last=False)
