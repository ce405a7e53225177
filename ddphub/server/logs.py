"""The hub's log: a line an event on stderr, as text for people or as JSON for programs.

A thread writes it: who reads stderr slowly, or not at all, does not hold up requests. What does not fit its queue is
counted and dropped. Every line that a request leads to names the request.
"""

import contextlib
import logging
import queue
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from types import TracebackType
from typing import Final, Self

from pythonjsonlogger.json import JsonFormatter

REQUESTS: Final = "ddphub.requests"
"""The logger that has a line for each request."""

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The id of the request that is answered here."""

_QUEUE: Final = 10_000
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_QUIET: Final = ("uvicorn", "alembic", "botocore", "boto3", "s3transfer", "urllib3")
"""Loggers whose lines below warning say nothing of this hub."""


class HubLog:
    """Writes what every logger says, from `with` to its end.

    Args:
        form: `text` or `json`.
        level: the least important level that is written.
    """

    def __init__(self, form: str, level: str) -> None:
        self._handler = _Bounded(queue.Queue(_QUEUE))
        self._handler.addFilter(_name_request)
        writer = logging.StreamHandler(sys.stderr)
        writer.setFormatter(_json() if form == "json" else _Text())
        self._listener = QueueListener(self._handler.queue, writer)
        self._level = level.upper()

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._before = root.handlers[:], root.level
        root.handlers[:] = [self._handler]
        root.setLevel(self._level)
        for name in _QUIET:
            logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        root.handlers[:], root.level = self._before
        with contextlib.suppress(queue.Full):
            self._handler.report()
        self._listener.stop()


class _Bounded(QueueHandler):
    """Puts records on a queue; never waits."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord]") -> None:
        super().__init__(lines)
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The standard one formats here, in the thread that logs, and for another process: this queue stays in this one.
        record.message = record.getMessage()
        record.args = None
        record.msg = record.message
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                self.report()
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def report(self) -> None:
        """Say how many lines were dropped, if there is room now."""
        if self._dropped:
            text = f"{self._dropped} lines of this log were dropped: they came faster than they could be written"
            fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
            self.queue.put_nowait(logging.makeLogRecord(fields))
            self._dropped = 0


def _name_request(record: logging.LogRecord) -> bool:
    # A line that names one itself is about that one.
    if (known := request_id.get()) is not None and not hasattr(record, "request_id"):
        record.request_id = known
    return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = _plain(record.getMessage())
        text = f"{_time(record)} {record.levelname.lower():7} {record.name.removeprefix('ddphub.')}: {message}"
        known = getattr(record, "request_id", None)
        if known is not None:
            text += f" [{known}]"
        if record.exc_info:
            text += "\n    " + _plain(self.formatException(record.exc_info))
        return text


def _plain(text: str) -> str:
    """Text, maybe of a client's choice, that changes no terminal and has no line that looks like a record's first."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text).replace("\n", "\n    ")


class _Json(JsonFormatter):
    def add_fields(
        self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
    ) -> None:
        log_data["time"] = _time(record)
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["pid"] = record.process
        super().add_fields(log_data, record, message_dict)


def _json() -> logging.Formatter:
    return _Json("%(message)s")
