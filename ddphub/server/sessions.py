"""Browser sessions: a cookie that names a row of the database, signed, so that no forged one costs a look-up.

A session ends when its browser signs out, after its time, and with its key.
"""

import secrets
import time
from dataclasses import replace

from sqlalchemy import delete, select, update

from ddphub.server.audit import record
from ddphub.server.database import Database
from ddphub.server.keys import SETTINGS_KEY, Keys, holder
from ddphub.server.principal import Principal
from ddphub.server.signing import Signer
from ddphub.server.tables import ApiKey, BrowserSession


class Sessions:
    """The browsers that signed in. Any thread.

    Attributes:
        cookie: the name of their cookie. Browsers tell hosts apart but not ports: two hubs on one host would sign each
            other's users out.

    Args:
        database: holds the sessions.
        signer: signs their cookies.
        keys: the keys that people sign in with.
        lifetime_s: seconds that a browser stays signed in.
    """

    def __init__(self, database: Database, signer: Signer, keys: Keys, lifetime_s: int) -> None:
        self._database = database
        self._signer = signer
        self._keys = keys
        self._lifetime_s = lifetime_s
        self.cookie = f"ddphub_session_{signer.sign('cookie name')[:8]}"

    def begin(self, principal: Principal) -> str:
        """A cookie for a browser whose user gave a key.

        Args:
            principal: who holds that key, as `Keys.find` said.
        """
        public_id, now = secrets.token_hex(16), time.time()
        with self._database.write() as session:
            session.execute(delete(BrowserSession).where(BrowserSession.expires_at < now))
            key_ref = None
            if principal.key_id is not None:
                key_ref = session.scalars(select(ApiKey.id).where(ApiKey.public_id == principal.key_id)).one()
            session.add(
                BrowserSession(public_id=public_id, key_ref=key_ref, created_at=now, expires_at=now + self._lifetime_s)
            )
            record(session, principal, "sign-in", principal.who)
        return f"{public_id}.{self._sign(public_id, of_settings=key_ref is None)}"

    def find(self, cookie: str, address: str) -> Principal | None:
        """Who signed in with the browser that has this cookie; None when it must do so again."""
        public_id, _, signature = cookie.partition(".")
        of_settings = self._signed(signature, public_id, of_settings=True)
        if not of_settings and not self._signed(signature, public_id, of_settings=False):
            return None
        now = time.time()
        with self._database.read() as session:
            row = session.scalar(select(BrowserSession).where(BrowserSession.public_id == public_id))
            if row is None or row.ended_at is not None or row.expires_at <= now:
                return None
            if row.key_ref is None:
                return replace(Principal.of_the_hub(SETTINGS_KEY), address=address) if of_settings else None
            found = holder(session, row.key_ref, now)
        return None if found is None else replace(found, address=address)

    def end(self, cookie: str, by: Principal) -> None:
        """Sign a browser out: its cookie is good for nothing from now on, also a copy of it.

        Args:
            cookie: as `find` knew it.
            by: who `find` said that it is.
        """
        public_id = cookie.partition(".")[0]
        ended = update(BrowserSession).where(BrowserSession.public_id == public_id).values(ended_at=time.time())
        with self._database.write() as session:
            session.execute(ended)
            record(session, by, "sign-out", by.who)

    def _sign(self, public_id: str, *, of_settings: bool) -> str:
        # Who changes the settings' key ends the sessions that began with the old one.
        return self._signer.sign("session", public_id, self._keys.settings_tag if of_settings else "")

    def _signed(self, signature: str, public_id: str, *, of_settings: bool) -> bool:
        if of_settings and self._keys.settings_tag is None:
            return False
        fields = public_id, self._keys.settings_tag if of_settings else ""
        return self._signer.signed(signature, "session", *fields)
