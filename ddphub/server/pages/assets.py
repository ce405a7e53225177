"""What pages are made with: stylesheets and scripts, all of them in this package.

Their addresses hold a digest of them all, so a browser keeps them for good and asks anew when they have changed.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from ddphub.server.problems import Problem

router = APIRouter()

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOR_GOOD: Final = "public, max-age=31536000, immutable"


@cache
def _files() -> dict[str, bytes]:
    # By name, not by path: a request can only have what is listed here.
    found = (path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _TYPES)
    return {path.relative_to(_FOLDER).as_posix(): path.read_bytes() for path in found}


@cache
def _version() -> str:
    digest = hashlib.sha256()
    for name, content in _files().items():
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def asset(name: str) -> str:
    """The address of a file of `static`, as `vendor/uplot/uPlot.min.css`.

    Raises:
        KeyError: there is no such file.
    """
    if name not in _files():
        raise KeyError(name)
    return f"/static/{_version()}/{name}"


@router.api_route("/static/{version}/{name:path}", methods=["GET", "HEAD"])
async def read(version: str, name: str) -> Response:
    """A stylesheet or a script."""
    content = _files().get(name)
    if content is None:
        raise Problem(404, "the hub has no such file")
    # A page that was open while the hub was replaced asks by the old digest; it gets what there is, once.
    headers = {"cache-control": _FOR_GOOD if version == _version() else "no-cache"}
    return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])
