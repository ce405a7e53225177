"""What runs, projects and files may be called: one rule for client and hub.

Names become folder names, URLs and lines of a page, so nothing that could leave a folder or end a line is a name.
"""

import re
import secrets
import time
import unicodedata
from typing import Final, TypeGuard

MAX_NAME: Final = 128
"""Characters in a project, model or file name."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX_ID = re.compile(r"[0-9a-f]{32}")


def _ends_a_line(character: str) -> bool:
    """Control characters, lone surrogates and the like (category C), line and paragraph separators (Zl, Zp)."""
    category = unicodedata.category(character)
    return category[0] == "C" or category in {"Zl", "Zp"}


def wrong_name(value: object) -> str | None:
    """Why `value` cannot name a project or a model; None when it can."""
    if not isinstance(value, str):
        return f"expected text, got {type(value).__name__}"
    if not value.strip():
        return "must not be empty"
    if value != value.strip():
        return "must not begin or end with white space"
    if len(value) > MAX_NAME:
        return f"must have at most {MAX_NAME} characters"
    if "/" in value or "\\" in value or ".." in value:
        return "must not contain '/', '\\' or '..'"
    if any(map(_ends_a_line, value)):
        return "must not contain control characters"
    return None


def wrong_file_name(value: object) -> str | None:
    """Why `value` cannot be a checkpoint file's name inside its entry; None when it can.

    A checkpoint that is a directory has files with relative POSIX paths: each component is checked.
    """
    if not isinstance(value, str):
        return f"expected text, got {type(value).__name__}"
    if len(value) > 4 * MAX_NAME:
        return f"must have at most {4 * MAX_NAME} characters"
    for component in value.split("/"):
        if component in {"", ".", ".."}:
            return "must be a relative path without empty, '.' or '..' components"
        if len(component.encode("utf-8", "surrogatepass")) > 255:
            return "each component must have at most 255 bytes"
        if "\\" in component or any(map(_ends_a_line, component)):
            return "must not contain '\\' or control characters"
    return None


def wrong_run_id(value: object) -> str | None:
    """Why `value` cannot be a run id; None when it can."""
    if not isinstance(value, str) or not _RUN_ID.fullmatch(value) or ".." in value:
        return "expected 1 to 128 of the characters A-Z a-z 0-9 . _ - (the first a letter or digit, no '..')"
    return None


def is_hex_id(value: object) -> TypeGuard[str]:
    """Whether `value` is an attempt id, a nonce or an entry id: 128 bits as 32 lower-case hex digits."""
    return isinstance(value, str) and _HEX_ID.fullmatch(value) is not None


def new_hex_id() -> str:
    """128 random bits as 32 hex digits."""
    return secrets.token_hex(16)


def new_run_id() -> str:
    """A run id that sorts by time of creation: UTC time and 40 random bits."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(5)


def slug(text: str) -> str:
    """`text` reduced to what a run id may hold: `My Net!` gives `my-net`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "run"
