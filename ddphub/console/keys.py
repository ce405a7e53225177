"""The keys that no reported line may hold."""

from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote

WITHHELD: Final = "[a line with an API key]"
"""In place of a line that holds a key of ours."""

LAYERS: Final = 3
"""How many times over a key is looked for as URLs encode it: a URL within a URL is encoded twice."""

PIECE: Final = 10
"""Characters of a key that no line may hold in a row, or a third of it if that is more."""

_FACTOR: Final = 1 + 2 * LAYERS
"""Characters that one of a key may have become then: %41, %2541, %252541."""


class Keys:
    """API keys: tells a line that holds one. Any thread.

    Args:
        keys: the keys.

    Attributes:
        longest: characters that a key may take up in a line.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        plain = {key.strip() for key in keys}
        self._keys = tuple(filter(None, plain | {key.replace("\\", "") for key in plain}))
        self.longest = _FACTOR * max(map(len, self._keys), default=0)

    def are_in(self, text: str) -> bool:
        """Whether a key is in a line, as it is or as URLs, Python and JSON write it, or its beginning ends the line.

        The latter because the rest may come in the next write, or in the next line.
        """
        return any(
            _begins_at_the_end(key, form) or any(piece in form for piece in _pieces(key))
            for form in _forms(text)
            for key in self._keys
        )


def without_keys(text: str, keys: Iterable[str]) -> str:
    """A text of several lines whose lines with a key say only that."""
    known = Keys(keys)
    return "\n".join(WITHHELD if known.are_in(line) else line for line in text.split("\n"))


def _pieces(key: str) -> Iterator[str]:
    """Parts of a key that tell too much of it: whoever folds a long line cuts a key anywhere."""
    length = max(PIECE, len(key) // 3) if len(key) > PIECE else len(key)
    return (key[start : start + length] for start in range(len(key) - length + 1))


def _begins_at_the_end(key: str, text: str) -> bool:
    """Whether `text` ends with a part of the key that tells something of it: a quarter, or six characters."""
    least = min(6, max(1, len(key) // 4))
    return any(text.endswith(key[:length]) for length in range(least, len(key)))


def _forms(text: str) -> Iterator[str]:
    """A line as it is, without what escapes quotes and backslashes, and decoded as URLs are."""
    yield text
    if "\\" in text:
        yield text.replace("\\", "")
    for _ in range(LAYERS):
        if "%" not in text:
            return
        text = unquote(text)
        yield text
