"""A model, as programs read it."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from ddphub.errors import HubModelGone, HubUnavailable
from ddphub.events import Event, decode_scalar
from ddphub.hubs.wire import KINDS
from ddphub.reading.records import Attempt, Checkpoint, LogLine, MetricRecord, Progress, Rank, Series

if TYPE_CHECKING:
    from ddphub.reading.api import Api


def model_path(model_id: str, *parts: str) -> str:
    """A model's resource in the API."""
    return "/".join(["/v1/models", quote(model_id, safe=""), *parts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model as the hub knew it when it was asked; `refreshed` asks again.

    Attributes:
        id: the hub's id of it.
        name: its name.
        project: its project's name.
        run_id: the run's id; None where its client has none.
        url: the page that people look at.
        state: `new`, `running`, `stalled`, `lost`, or how its newest attempt ended: `finished`, `failed`, ...
        reason: one sentence that says why; None where there is nothing to say.
        traceback: of a run that failed, all that it said of its end.
        tags: sorted.
        stop_requested: whether the run is asked to stop.
        progress: how far it is; None without an attempt.
        attempts: in the order in which the hub heard of them first.
        created_at: when the hub made it.
        last_seen: when the hub last heard of it.
    """

    id: str
    name: str
    project: str
    run_id: str | None
    url: str
    state: str
    reason: str | None
    traceback: str | None
    tags: tuple[str, ...]
    stop_requested: bool
    progress: Progress | None
    attempts: tuple[Attempt, ...]
    created_at: float
    last_seen: float | None
    _api: "Api" = field(repr=False)

    @classmethod
    def of(cls, api: "Api", item: Any) -> Self:  # noqa: ANN401  # JSON
        """Reads what the hub tells of a model.

        Raises:
            HubUnavailable: it is none.
        """
        try:
            progress = item["progress"]
            return cls(
                **{name: item[name] for name in ("id", "name", "project", "run_id", "state", "reason", "traceback")},
                **{name: item[name] for name in ("stop_requested", "created_at", "last_seen")},
                url=f"{api.url}/models/{quote(item['id'])}",
                tags=tuple(item["tags"]),
                progress=None if progress is None else Progress.of(progress),
                attempts=tuple(map(Attempt.of, item["attempts"])),
                _api=api,
            )
        except (KeyError, TypeError):
            raise HubUnavailable(f"the answer holds no model: {str(item)[:200]}") from None

    def to_dict(self) -> dict[str, Any]:
        """The attributes as a dict, down to numbers and texts."""
        names = [one.name for one in fields(self) if one.name not in {"_api", "progress", "attempts"}]
        progress = None if self.progress is None else self.progress.to_dict()
        attempts = [attempt.to_dict() for attempt in self.attempts]
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "tags": list(self.tags), "progress": progress, "attempts": attempts}

    @cached_property
    def _details(self) -> dict[str, Any]:
        data = self._api.call("GET", model_path(self.id))
        return data if isinstance(data, dict) else {}

    @property
    def config(self) -> dict[str, Any]:
        """What the run was made with; asked for when it is first used."""
        config = self._details.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def notes(self) -> str | None:
        """What people wrote about it; asked for when it is first used."""
        return self._details.get("notes")

    def refreshed(self) -> "Model":
        """The model as it is now."""
        return self.of(self._api, self._api.call("GET", model_path(self.id)))

    def metrics(self, name: str | None = None, *, rank: int | None = None) -> Iterator[MetricRecord]:
        """Every value that was logged, as flat records, in the order in which they reached the hub.

        A restarted run may have logged a step in two attempts: the newest attempt's value counts.

        Args:
            name: only this metric.
            rank: only this rank.
        """
        for item in self._api.each(model_path(self.id, "metrics"), {"name": name, "rank": rank}):
            shared = {field: item[field] for field in ("attempt", "rank", "step", "epoch", "time")}
            for key, value in item["values"].items():
                yield {**shared, "name": key, "value": float(decode_scalar(value))}  # type: ignore[typeddict-item]

    def series(self) -> Iterator[Series]:
        """Each metric in short, by name."""
        return map(Series.of, self._api.each(model_path(self.id, "series"), {}))

    def ranks(self, attempt: int | None = None) -> Iterator[Rank]:
        """The ranks of an attempt, the newest by default: how each of them is."""
        return map(Rank.of, self._api.each(model_path(self.id, "ranks"), {"attempt": attempt}))

    def events(self, kind: str | None = None, *, rank: int | None = None) -> Iterator[Event]:
        """Stored events of a kind, see `ddphub.events`; by default of all kinds but metrics and console. Oldest first.

        Args:
            kind: only of this kind.
            rank: only of this rank.
        """
        return self._api.each(model_path(self.id, "events"), {"kind": kind, "rank": rank})

    def log(self, *, rank: int | None = None) -> Iterator[LogLine]:
        """What the ranks printed, as far as the run reports it, and what ddphub noted. In the order of arrival.

        Args:
            rank: only of this rank.
        """
        streams = [self.events(kind, rank=rank) for kind in ("console", "log")]
        for event in heapq.merge(*streams, key=itemgetter("id")):
            is_console = event["kind"] == "console"
            lines = event["lines"] if is_console else [event["message"]]
            if event.get("left_out"):
                lines = [f"({event['left_out']} lines are missing here)", *lines]
            for line in lines:
                yield {
                    "attempt": event["attempt"],
                    "rank": event["rank"],
                    "time": event["time"],
                    "stream": event["stream" if is_console else "level"],
                    "text": line,
                }

    def checkpoints(self, kind: str | None = None, *, newest_first: bool = False) -> Iterator[Checkpoint]:
        """The checkpoints that the hub has whole, in the order in which it began to get them.

        Args:
            kind: only `epoch`, `best` or `final` ones.
            newest_first: the other way round.
        """
        wanted = {"kind": kind, "order": "desc" if newest_first else None}
        return map(Checkpoint.of, self._api.each(model_path(self.id, "checkpoints"), wanted))

    def download(self, checkpoint: Checkpoint | str | None = None, to: str | os.PathLike[str] | None = None) -> Path:
        """Fetches a checkpoint. It appears whole, with the sha256 that the hub told, or not at all.

        Args:
            checkpoint: one of `checkpoints()`, its id, or a kind for the newest of it; the newest of all by default.
            to: the file, or for a checkpoint of several files the folder; a file that is there is replaced. By default
                the checkpoint's name in the working directory, where nothing is replaced.

        Returns:
            Where it is.

        Raises:
            HubError: there is no such checkpoint, or it did not come.
            SettingsError: something is in the way.
            OSError: it cannot be written.
        """
        from ddphub.pull import save  # noqa: PLC0415  # requests, only where it is used

        found = checkpoint if isinstance(checkpoint, Checkpoint) else self.find_checkpoint(checkpoint)
        client = self._api.client()
        item = {"id": found.id, "kind": found.kind, "epoch": found.epoch, "step": found.step, "name": found.name}
        files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in found.files]
        remote = client.remote_checkpoint(self.id, {**item, "files": files})
        return save(client, remote, None if to is None else Path(to))

    def find_checkpoint(self, which: str | None = None) -> Checkpoint:
        """The checkpoint with this id, or the newest one: of this kind, or of all.

        Raises:
            HubModelGone: there is none.
        """
        kind = which if which in KINDS else None
        for checkpoint in self.checkpoints(kind, newest_first=True):
            if which in {None, kind, checkpoint.id}:
                return checkpoint
        if kind is None:
            raise HubModelGone(f"{self.url} has no checkpoint{f' {which}' if which else ''}")
        has = Counter(checkpoint.kind for checkpoint in self.checkpoints())
        others = ", ".join(f"{other} ({has[other]})" for other in KINDS if has[other]) or "none at all"
        raise HubModelGone(f"{self.url} has no {kind} checkpoint; it has: {others}")

    def stop(self) -> None:
        """Asks the run to stop: it is told with its next heartbeat, and `run.should_stop()` is then true."""
        self._api.call("POST", f"{model_path(self.id)}/stop")

    def set(self, *, notes: str | None = None, tags: Iterable[str] | None = None) -> "Model":
        """Changes what people say about the model.

        Args:
            notes: at most 64 KiB of text, an empty one for none; None leaves them as they are.
            tags: all of its tags, at most 32; None leaves them as they are.

        Returns:
            The model as it is then.

        Raises:
            HubRejected: they are not what they may be; says why.
        """
        body: dict[str, Any] = {} if notes is None else {"notes": notes}
        if tags is not None:
            body["tags"] = [tags] if isinstance(tags, str) else list(tags)
        return self.of(self._api, self._api.call("PATCH", model_path(self.id), body=body))

    def delete(self, *, hard: bool = False) -> None:
        """See `Hub.delete_model`."""
        self._api.call("DELETE", model_path(self.id), {"hard": "true" if hard else None})

    def delete_checkpoint(self, checkpoint: Checkpoint | str) -> None:
        """Removes a checkpoint, and its bytes where no other checkpoint needs them.

        Args:
            checkpoint: one of `checkpoints()`, or its id.

        Raises:
            HubModelGone: there is no such checkpoint.
            HubUnavailable: it is still arriving.
        """
        checkpoint_id = checkpoint.id if isinstance(checkpoint, Checkpoint) else checkpoint
        self._api.call("DELETE", f"{model_path(self.id, 'checkpoints')}/{quote(checkpoint_id, safe='')}")
