"""The ranks' meeting: each tells rank 0 what it found, and one of each node tries locks against rank 0.

| queue | what |
| --- | --- |
| `hello` | from a rank: rank, nonce |
| `to/<nonce>` | to that rank: `do` and its arguments, `reply`: the queue for the answer |
| `from/<meeting>` | to rank 0: nonce, and the answer |

torchrun's store outlives a world, so an earlier meeting's messages may lie there: only a rank that lives answers an
order, and orders and answers carry random names.

| `do` | what the rank does | answers |
| --- | --- | --- |
| `report` | | its report, and its time |
| `read` | reads `name` below its own directory | `text`, or null when it is not there |
| `take` | takes the lock `name` | `held`: whether it has it |
| `free` | gives it back | |
| `end` | leaves | |
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddphub import names
from ddphub.distributed.probe import Mailbox
from ddphub.doctor.finding import Finding
from ddphub.doctor.place import probe_folder, probe_name
from ddphub.doctor.rank import RankReport
from ddphub.session.lock import SessionLock

ANSWER_WAIT: Final = 3.0
"""Seconds for one order: a lock is tried, or a file read."""

GOODBYE_WAIT: Final = 2.0
"""Seconds for the goodbyes, without which the store's end would surprise the other ranks."""

APART: Final = 2.0
"""Seconds between two clocks that make one host's events look older than the other's."""


def attend(mailbox: Mailbox, report: RankReport, directory: Path | None, until: float) -> bool:
    """Does what rank 0 asks, until it says that it is over. Every other rank.

    Args:
        mailbox: to rank 0.
        report: what this rank found.
        directory: where its runs would be; None when it has none.
        until: time.monotonic() up to which rank 0 is waited for.

    Returns:
        Whether rank 0 has the report.
    """
    nonce = names.new_hex_id()
    held: dict[str, SessionLock] = {}
    has_reported = False
    mailbox.send("hello", {"rank": report.rank, "nonce": nonce})
    try:
        while (order := mailbox.receive(f"to/{nonce}", until)) is not None:
            answer: dict[str, Any] = {}
            name = Path(str(order.get("name", "")))
            # Rank 0 is another process: it may look into the doctor's own folders and nowhere else.
            may = directory is not None and len(name.parts) == 2 and name.parts[0].startswith(".doctor-")
            path = (directory or Path()) / name
            match order.get("do"):
                case "report":
                    answer = {"report": report.to_json(), "time": time.time()}
                case "read" if may:
                    answer = {"text": _text_of(path)}
                case "take" if may:
                    with suppress(OSError):
                        lock = held.setdefault(str(name), SessionLock(path))
                        answer = {"held": lock.acquire()}
                case "free" if str(name) in held:
                    held.pop(str(name)).release()
            mailbox.send(f"from/{order.get('reply')}", {"nonce": nonce, "rank": report.rank, **answer})
            has_reported = has_reported or order.get("do") == "report"
            if order.get("do") == "end":
                break
    except RuntimeError:
        # Rank 0 took the store with it. What it had asked for by then, it has.
        if not has_reported:
            raise
    finally:
        for lock in held.values():
            lock.release()
    return has_reported


@dataclass
class _Peer:
    """Another rank, as rank 0 knows it."""

    nonce: str
    asked: float
    report: RankReport | None = None


class Chair:
    """Rank 0's side.

    Args:
        mailbox: to the other ranks.
        own: rank 0's report.
        world_size: number of ranks.
    """

    def __init__(self, mailbox: Mailbox, own: RankReport, world_size: int) -> None:
        self._mailbox = mailbox
        self._own = own
        self._world_size = world_size
        self._id = names.new_hex_id()
        self._peers: dict[int, _Peer] = {}
        self._until = 0.0

    @property
    def reports(self) -> list[RankReport]:
        """Those that came so far, by rank; rank 0's own first."""
        others = [peer.report for _, peer in sorted(self._peers.items()) if peer.report is not None]
        return [self._own, *others]

    def gather(self, until: float) -> None:
        """Waits until every rank has reported, or until then."""
        while len(self.reports) < self._world_size:
            hello, answer = self._mailbox.receive("hello"), self._mailbox.receive(f"from/{self._id}")
            if hello is not None:
                self._greet(hello)
            if answer is not None:
                self._note(answer)
            if hello is None and answer is None:
                if time.monotonic() > until:
                    return
                time.sleep(0.01)

    def compare_clocks(self) -> list[Finding]:
        """What is to be said of the ranks' clocks."""
        aheads = [report.ahead or 0.0 for report in self.reports]
        if len(aheads) < 2:
            return []
        apart = max(aheads) - min(aheads)
        if apart > APART:
            text = f"the ranks' clocks are {apart:.1f} s apart"
            return [Finding("clock", "warning", text, "set them by NTP: times of events will not fit together")]
        return [Finding("clock", "ok", f"the ranks' agree within {max(apart, 0.1):.1f} s")]

    def try_locks(self, directory: Path, *, keys: bool, until: float) -> list[Finding]:
        """Whether a lock that one node holds is refused on another, both ways, for each node beside rank 0's.

        Args:
            directory: rank 0's folder of run directories.
            keys: whether the hub knows a repeat, so that two deliverers do no harm.
            until: time.monotonic() up to which nodes are tried.
        """
        elsewhere: dict[tuple[str, int], RankReport] = {}
        for report in self.reports:
            if report.place != self._own.place:
                elsewhere.setdefault(report.place, report)
        if not elsewhere:
            return []
        self._until = until
        name = probe_name()
        sorted_out: dict[str, list[str]] = {"split": [], "granted twice": [], "excludes": [], "not tried": []}
        try:
            with probe_folder(directory, name) as folder:
                (folder / "seen").write_text(self._id)
                for report in elsewhere.values():
                    outcome = self._try_one(folder, report.rank) if time.monotonic() < until else "not tried"
                    sorted_out[outcome].append(f"{report.host} (rank {report.rank})")
        except OSError as error:
            return [Finding("exclusion", "problem", f"locks could not be tried between nodes: {error}")]
        return [self._about(outcome, nodes, keys=keys) for outcome, nodes in sorted_out.items() if nodes]

    def dismiss(self) -> None:
        """Sends everybody home."""
        waited_for = [rank for rank, peer in self._peers.items() if peer.report is not None]
        for rank in waited_for:
            self._order(rank, "end")
        until = time.monotonic() + GOODBYE_WAIT
        while waited_for and (answer := self._mailbox.receive(f"from/{self._id}", until)) is not None:
            if answer.get("rank") in waited_for:
                waited_for.remove(answer["rank"])

    def _greet(self, hello: dict[str, Any]) -> None:
        rank, nonce = hello.get("rank"), hello.get("nonce")
        if type(rank) is int and 0 < rank < self._world_size and names.is_hex_id(nonce):
            known = self._peers.get(rank)
            if known is None or known.report is None:
                self._peers[rank] = _Peer(str(nonce), time.time())
                self._order(rank, "report")

    def _note(self, answer: dict[str, Any]) -> None:
        rank, told = answer.get("rank"), answer.get("time")
        peer = self._peers.get(rank) if isinstance(rank, int) else None
        if peer is None or peer.nonce != answer.get("nonce") or not isinstance(told, int | float):
            return
        peer.report = RankReport.parse(answer.get("report"), int(rank or 0))
        if peer.report is not None:
            # Somewhere between the order and now.
            peer.report.ahead = round(told - (peer.asked + time.time()) / 2, 3)

    def _order(self, rank: int, do: str, **arguments: str) -> None:
        self._mailbox.send(f"to/{self._peers[rank].nonce}", {"do": do, "reply": self._id, **arguments})

    def _ask(self, rank: int, do: str, path: Path) -> dict[str, Any]:
        """One order to one rank, and its answer; empty when none comes."""
        self._order(rank, do, name=f"{path.parent.name}/{path.name}")
        until = min(time.monotonic() + ANSWER_WAIT, self._until)
        while (answer := self._mailbox.receive(f"from/{self._id}", until)) is not None:
            if answer.get("nonce") == self._peers[rank].nonce:
                return answer
        return {}

    def _try_one(self, folder: Path, rank: int) -> str:
        seen = self._ask(rank, "read", folder / "seen")
        if "text" not in seen:
            return "not tried"
        if seen["text"] != self._id:
            return "split"
        path = folder / "lock"
        lock = SessionLock(path)
        if not lock.acquire():
            return "not tried"
        got_there = self._ask(rank, "take", path).get("held")
        lock.release()
        self._ask(rank, "free", path)
        held_there = self._ask(rank, "take", path).get("held")
        got_here = lock.acquire()
        lock.release()
        self._ask(rank, "free", path)
        if held_there is not True or got_there is None:
            return "not tried"
        return "granted twice" if got_there or got_here else "excludes"

    def _about(self, outcome: str, nodes: list[str], *, keys: bool) -> Finding:
        here, there = f"{self._own.host} (rank 0)", ", ".join(nodes)
        match outcome:
            case "excludes":
                return Finding("exclusion", "ok", f"a lock of {here} is refused on {there}, and the other way round")
            case "granted twice":
                text = f"{here} and {there} got one lock at the same time: locks do not exclude between these nodes"
                if keys:
                    advice = "the hub's keys keep each checkpoint single; lines of delivered.jsonl may be damaged"
                    return Finding(
                        "exclusion", "warning", text, f"{advice}. Let one host deliver, or mount it with locks"
                    )
                advice = "this hub knows no repeats, so a checkpoint may be sent twice: mount it with locks"
                return Finding("exclusion", "problem", text, f"{advice}, or deliver from one host only")
            case "split":
                text = f"{there} does not see what {here} writes: the directory is not shared"
                advice = "set DDPHUB_DIR to a shared folder, or run `ddphub sync` on every node"
                return Finding("exclusion", "warning", text, advice)
            case _:
                text = f"locks were not tried between {here} and {there}"
                return Finding("exclusion", "warning", text, "a directory cannot be used there, or hangs: see above")


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()[:100]
    except (OSError, ValueError):
        return None
