"""A hub with a victim, and keys of every kind that are too weak to harm it."""

import hashlib
import itertools
import json
import secrets
import time
from typing import ClassVar

import requests
from hub_talk import Talk, attempt_event, metrics_event, rank_event
from rows import connected
from sqlalchemy import text

from ddphub.server.tables import Base

SECRET = "aardvark"
"""It is in the texts of the victim's project, so that an answer which shows any of them can be told."""

_COUNTS = {"sign_in_failures", "audit", "browser_sessions"}
"""Tables that say who tried what."""


_NOTES = {"keys.changes"}
"""Files by which the processes of a hub tell each other that something was noted."""


class World:
    """Two projects on one hub: `victim` has something of everything, `other` is where the attackers are at home.

    Args:
        hub: a HubProcess that believes X-Forwarded-For from loopback, so that each request can have an address of its
            own: who sends many wrong keys from one is answered 429.
    """

    def __init__(self, hub):
        self.hub = hub
        self._addresses = itertools.count(1)
        self._admin = hub.client()
        self.talk = Talk(hub, f"victims-{secrets.token_hex(4)}")
        self.files = {"last.pt": SECRET.encode() + secrets.token_bytes(100_000)}
        attempt = self.talk.attempt_id
        events = [
            attempt_event(attempt, 0, "started", host=f"{SECRET}-host"),
            rank_event(attempt, 1, 1, "joined"),
            metrics_event(attempt, 2, values={f"{SECRET}/loss": 1.0, "loss": 0.5}),
            {
                "attempt_id": attempt,
                "rank": 0,
                "seq": 3,
                "time": 1.0,
                "kind": "log",
                "level": "info",
                "message": SECRET,
            },
        ]
        self.talk.accepted(*events)
        self.call("PATCH", f"/v1/models/{self.talk.model_id}", {"notes": SECRET, "tags": [SECRET]})
        checkpoint_id = self.talk.upload(self.files, epoch=0)
        spare_id = self.talk.upload({"last.pt": secrets.token_bytes(100)}, epoch=0, kind="best")
        waiting = self.talk.begin({"last.pt": secrets.token_bytes(100_000)}, epoch=1)
        files = self.call("GET", f"/v1/models/{self.talk.model_id}")
        self.run_id = self.call("GET", f"/v1/models/{self.talk.model_id}")["run_id"]
        user = self.call(
            "POST", "/v1/users", {"name": f"{SECRET}-{secrets.token_hex(4)}", "grants": [self._grant("admin")]}
        )
        key = self.call("POST", "/v1/keys", {"name": f"{SECRET}-key", "project": self.talk.project})
        projects = self.call("GET", "/v1/projects")["results"]
        self.victim = {
            "project": self.talk.project,
            "project_id": next(one["id"] for one in projects if one["name"] == self.talk.project),
            "model_id": self.talk.model_id,
            "attempt_id": attempt,
            "checkpoint_id": checkpoint_id,
            "spare_id": spare_id,
            "waiting_id": waiting["id"],
            "sha256": hashlib.sha256(self.files["last.pt"]).hexdigest(),
            "user_id": user["id"],
            "key_id": key["id"],
            "part_url": waiting["missing"][0]["parts"][0]["url"],
            "download_url": self._download_url(files),
        }
        self.other = Talk(hub, f"other-{secrets.token_hex(4)}")
        self.keys = self._make_keys()
        self.cookies = {name: self.sign_in(key) for name, key in self.keys.items() if name in self.strength}

    strength: ClassVar = {
        "reader of another project": 0,
        "writer of another project": 0,
        "admin of another project": 0,
        "another project's run": 0,
        "another run": 0,
        "a user of another project": 0,
        "a user without grants": 0,
        "reader": 1,
        "own run": 2,
        "writer": 3,
        "admin of the project": 4,
    }
    """What each good key can do with the victim, see attack_routes.STRENGTH."""

    def _make_keys(self):
        mine, others = {"project": self.talk.project}, {"project": self.other.project}
        tag = secrets.token_hex(4)
        self.call("POST", "/v1/users", {"name": f"guest-{tag}", "grants": [{**others, "role": "writer"}]})
        gone = self.call("POST", "/v1/users", {"name": f"gone-{tag}", "grants": [self._grant("admin")]})
        keys = {
            "unknown": secrets.token_hex(21),
            "short": "short",
            "the prefix alone": "",
            "revoked": self.key(role="writer", **mine),
            "expired": self.key(role="writer", expires_at=time.time() + 1.0, **mine),
            "of a disabled user": self.key(role="admin", user=f"gone-{tag}"),
            "reader of another project": self.key(role="reader", **others),
            "writer of another project": self.key(role="writer", **others),
            "admin of another project": self.key(role="admin", **others),
            "another project's run": self.key(role="writer", run_id=self.run_id, **others),
            "another run": self.key(role="writer", run_id="another-run", **mine),
            "a user of another project": self.key(role="writer", user=f"guest-{tag}"),
            "a user without grants": None,
            "reader": self.key(role="reader", **mine),
            "own run": self.key(role="writer", run_id=self.run_id, **mine),
            "writer": self.key(role="writer", **mine),
            "admin of the project": self.key(role="admin", **mine),
        }
        expires = time.time() + 1.1
        self.call("PATCH", "/v1/users/" + gone["id"], {"disabled": True})
        listed = self.call("GET", "/v1/keys", every=True)["results"]
        revoked = next(one for one in listed if one["prefix"] == keys["revoked"][:6])
        self.call("DELETE", "/v1/keys/" + revoked["id"])
        keys["the prefix alone"] = keys["writer"][:6] + secrets.token_hex(18)
        keys["a user without grants"] = self._without_grants(tag)
        while time.time() < expires:
            time.sleep(0.05)
        return keys

    def _without_grants(self, tag):
        """A key of a user who had a grant when it was made, and has none now."""
        user = self.call("POST", "/v1/users", {"name": f"nobody-{tag}", "grants": [self._grant("reader")]})
        key = self.key(role="reader", user=user["name"])
        self.call("PATCH", "/v1/users/" + user["id"], {"grants": []})
        return key

    def _grant(self, role):
        return {"project": self.talk.project, "role": role}

    def _download_url(self, model):
        """A signed URL of the victim's weights, as HUB v1's clients get it."""
        urls = [one for one in _texts(model) if "/v1/downloads/" in one]
        return "/v1/downloads/" + urls[0].partition("/v1/downloads/")[2]

    def call(self, method, path, body=None, **params):
        """What the admin asks for; the answer's data."""
        answer = self._admin.request(method, self.hub.url + path, json=body, params=params)
        assert answer.status_code == 200, (method, path, answer.text)
        return answer.json()["data"]

    def key(self, **fields):
        """A new key."""
        return self.call("POST", "/v1/keys", {"name": "an attacker's", **fields})["key"]

    def address(self):
        """Headers that give a request an address of its own."""
        number = next(self._addresses)
        return {"X-Forwarded-For": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"}

    def sign_in(self, key):
        """The cookie of a browser whose user gave a key."""
        with requests.Session() as http:
            http.trust_env = False
            answer = http.post(
                self.hub.url + "/sign-in", data={"key": key}, headers=self.address(), allow_redirects=False
            )
            assert answer.status_code == 303, answer.text
            return dict(answer.cookies)

    def ask(self, method, path, *, key=None, cookies=None, headers=None, **options):
        """A request from an address that nobody had before."""
        sent = self.address() | (headers or {}) | ({"x-api-key": key} if key is not None else {})
        with requests.Session() as http:
            http.trust_env = False
            return http.request(
                method,
                self.hub.url + path,
                headers=sent,
                cookies=cookies,
                allow_redirects=False,
                timeout=60,
                **options,
            )

    def kept(self):
        """All that the hub has: its rows and its files, but not who tried what."""
        rows = {}
        with connected(self.hub.database) as connection:
            for table in Base.metadata.sorted_tables:
                if table.name not in _COUNTS:
                    names = [column.name for column in table.columns if column.name != "last_used_at"]
                    found = connection.execute(text(f"SELECT {', '.join(names)} FROM {table.name} ORDER BY id"))
                    rows[table.name] = [tuple(row) for row in found]
        folder = self.hub.data_dir
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in _NOTES and not path.name.startswith("hub."):
                rows[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return rows

    def shows(self, answer, name):
        """What of the victim an answer shows that its request did not name, nor the attacker's own key."""
        named = json.dumps([answer.request.url, str(answer.request.body)])
        told = [self.victim[name] for name in ("model_id", "checkpoint_id", "project_id", "attempt_id", "sha256")]
        content = answer.text + json.dumps(dict(answer.headers))
        if name != "another run":
            told.append(self.victim["project"])
        if "another project" not in name:  # which has a run of that id, too
            told.append(self.run_id)
        return [one for one in (SECRET, *told) if one in content and one not in named]


def changes(before, after):
    """The tables and files that are not the same."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _texts(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [one for part in value for one in _texts(part)]
    return [value] if isinstance(value, str) else []
