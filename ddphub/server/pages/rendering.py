"""HTML from templates: whole pages, and fragments that open pages ask for again and again.

A fragment is made at most once every `EVERY_S` for all open pages that show it, more seldom where that takes long, and
not at all while the facts that it is made from are the same. Its ETag is a digest of the HTML: who has it gets 304,
also when the facts changed.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, cast

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddphub.server.etags import has_already
from ddphub.server.pages import words
from ddphub.server.pages.assets import asset

EVERY_S: Final = 1.5
"""Seconds for which a fragment is good whatever happens."""

_SHARE: Final = 20
"""How many times as long as it took to make is a fragment good: it costs at most a twentieth of a core."""

_LONGEST_S: Final = 10.0

_KEPT: Final = 300
_HEADERS: Final = {
    # With `no-referrer` a browser would send its forms with `Origin: null`, which is nobody's.
    "referrer-policy": "same-origin",
    "vary": "cookie",
}

templates: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters.update(
    bytes=words.bytes_,
    date=words.date,
    duration=words.duration,
    figure=words.figure,
    plain=words.plain,
    words=words.state,
)
templates.globals.update(asset=asset, mark=words.MARKS.get)


def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401  # what the template needs
    """A whole page.

    Args:
        name: the template.
        status: the HTTP status.
        values: what the template needs; `visitor` is who looks at it.
    """
    html = templates.get_template(name).render({"visitor": None, **values}, now=time.time())
    return HTMLResponse(html, status, _HEADERS)


def render(name: str, values: Mapping[str, Any]) -> str:
    """The HTML of a part of a page."""
    return templates.get_template(name).render(values)


@dataclass(frozen=True)
class Fragment:
    """A part of a page, and the digest by which a browser knows that it has it."""

    html: str
    etag: str

    def __html__(self) -> str:
        """It is HTML: a template does not escape it."""
        return self.html


@dataclass
class _Made:
    """A fragment as it was last made."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    facts: Hashable = None
    fragment: Fragment = field(default_factory=lambda: Fragment("", ""))
    good_until: float = 0.0


class Fragments:
    """Fragments that were made, shared by all who look at them. Any thread."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, _Made] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        key: Hashable,
        make: Callable[[], str],
        facts: Callable[[], Hashable] | None = None,
        *,
        now: bool = False,
    ) -> Fragment:
        """A fragment as it is now, or was a moment ago.

        Args:
            key: what is shown, and how: everything that the HTML depends on beside time.
            make: renders it.
            facts: reads what tells whether it has changed, where that is cheaper.
            now: for who has just come and expects the truth.
        """
        with self._lock:
            made = self._made.setdefault(key, _Made())
            self._made.move_to_end(key)
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        # Who comes while it is being made waits for it instead of making it too.
        with made.lock:
            began = time.monotonic()
            if now or began >= made.good_until:
                known = None if facts is None else facts()
                if known is None or known != made.facts:
                    html = make()
                    made.fragment = Fragment(html, f'"{hashlib.sha256(html.encode()).hexdigest()[:24]}"')
                    made.facts = known
                ended = time.monotonic()
                made.good_until = ended + min(_LONGEST_S, max(EVERY_S, _SHARE * (ended - began)))
            return made.fragment

    def forget(self) -> None:
        """Make everything anew: someone has just changed something, and looks at the result."""
        with self._lock:
            self._made.clear()


async def _fragments_of(request: Request) -> Fragments:
    # Made by the first request, in the event loop: nothing runs beside it.
    state = request.app.state
    if not hasattr(state, "fragments"):
        state.fragments = Fragments()
    return cast("Fragments", state.fragments)


FragmentsDep = Annotated[Fragments, Depends(_fragments_of)]
"""A handler's parameter: the fragments of this process."""


def fragment_answer(request: Request, fragment: Fragment, poll_after_s: float) -> Response:
    """A fragment, or 304 when the browser has it.

    Args:
        request: what was asked.
        fragment: the answer.
        poll_after_s: seconds after which an open page should ask again.
    """
    headers = {**_HEADERS, "etag": fragment.etag, "cache-control": "private, no-cache"}
    headers["poll-after"] = f"{poll_after_s:g}"
    if has_already(request, fragment.etag):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(fragment.html, headers=headers)
