"""Open pages, as the hub sees them: each asks again and again for its parts, with its ETags, when the hub says so.

A real browser's page does the same and draws it; twenty of those would keep a small machine busier than the hub does.
"""

import heapq
import random
import threading
import time
from urllib.parse import quote

import requests

PARTS = ("status", "tiles", "ranks", "checkpoints", "attempts", "log", "summary", "labels")
CHARTS_EVERY = 2.0
"""Seconds between two looks at which metrics have new points; a page of more than 64 ranks looks less often."""


class OpenPage:
    """One page in a browser of its own, signed in.

    Args:
        url: the hub's.
        key: signs it in.
        model_id: whose page; None for the list of models.
        charts: names of the metrics whose charts are in view once they have points, as the mean with a band over the
            ranks.
    """

    def __init__(self, url, key, model_id=None, charts=()):
        self.seconds = []
        self.failures = []
        self._url = url
        self._key = key
        self._model = f"/v1/models/{quote(model_id)}" if model_id else None
        self._page = f"/models/{quote(model_id)}" if model_id else "/"
        self._parts = [f"{self._page}/parts/{name}" for name in PARTS] if model_id else ["/parts/models"]
        self._charts = {name: f"{self._model}/chart?name={quote(name, safe='')}&show=band" for name in charts}
        self._etags = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="page")
        self._thread.start()

    def close(self):
        """The page is closed."""
        self._over.set()
        self._thread.join()

    def _look(self):
        with requests.Session() as http:
            http.trust_env = False
            http.post(f"{self._url}/sign-in", data={"key": self._key}, timeout=60).raise_for_status()
            self._ask(http, self._page)
            due = [(time.monotonic() + 2 * random.random(), part) for part in self._parts]
            if self._model:
                due.append((time.monotonic() + CHARTS_EVERY * random.random(), f"{self._model}/series?limit=1000"))
            heapq.heapify(due)
            while not self._over.wait(max(0.0, due[0][0] - time.monotonic())):
                _, path = heapq.heappop(due)
                answer = self._ask(http, path)
                if "/series?" in path and answer is not None and answer.status_code == 200:
                    for one in answer.json()["data"]["results"]:
                        if one["name"] in self._charts:
                            self._ask(http, self._charts[one["name"]])
                every = CHARTS_EVERY if answer is None else float(answer.headers.get("poll-after", CHARTS_EVERY))
                heapq.heappush(due, (time.monotonic() + every * (0.9 + 0.2 * random.random()), path))

    def _ask(self, http, path):
        began = time.perf_counter()
        try:
            headers = {"if-none-match": self._etags[path]} if path in self._etags else {}
            answer = http.get(self._url + path, headers=headers, timeout=60)
        except requests.RequestException as error:
            self.failures.append(type(error).__name__)
            return None
        self.seconds.append(time.perf_counter() - began)
        if answer.status_code not in {200, 304}:
            self.failures.append(str(answer.status_code))
            return None
        if "etag" in answer.headers:
            self._etags[path] = answer.headers["etag"]
        return answer
