"""One thing that the doctor found out."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

State = Literal["ok", "warning", "problem"]
STATES: Final[tuple[State, ...]] = get_args(State)

LONGEST: Final = 1000
"""Characters of a text that another rank may send."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do about it.

    Attributes:
        topic: one word.
        state: `warning` costs something; `problem` keeps ddphub from doing its work.
        text: what was found.
        advice: what to do, where there is something to do.
    """

    topic: str
    state: State
    text: str
    advice: str | None = None

    @classmethod
    def parse(cls, message: object) -> "Finding | None":
        """A finding of another rank, or None: that is another process and may say anything."""
        if not isinstance(message, dict) or message.get("state") not in STATES:
            return None
        texts = [message.get("topic"), message.get("text")]
        advice = message.get("advice")
        if not all(isinstance(text, str) for text in (*texts, advice or "")):
            return None
        topic, text = (str(part)[:LONGEST] for part in texts)
        return cls(topic, message["state"], text, advice[:LONGEST] if advice else None)
