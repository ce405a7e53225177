"""What one rank says of itself; others send it to rank 0 as JSON."""

import socket
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ddphub.distributed.topology import Topology
from ddphub.doctor.finding import LONGEST, Finding


@dataclass
class RankReport:
    """A line of the table, and what the rank found.

    Attributes:
        rank: the rank.
        host: its host's name.
        node: its node's number.
        local_rank: its place there.
        address: from where it talks to the store; None where there is none.
        gpu: what `distributed.probe.gpus` said.
        directory: where its runs would be.
        lock: how locks work there.
        ahead: seconds that its clock is ahead of rank 0's; None where it was not compared.
        findings: what it found.
    """

    rank: int
    host: str = field(default_factory=socket.gethostname)
    node: int = 0
    local_rank: int = 0
    address: str | None = None
    gpu: str = "none"
    directory: str | None = None
    lock: str = "none"
    ahead: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, topology: Topology) -> Self:
        """The report of this process, with nothing found yet."""
        return cls(topology.rank, node=topology.node, local_rank=topology.local_rank)

    @property
    def place(self) -> tuple[str, int]:
        """Ranks of one place share a kernel, so locks between them say nothing about others."""
        return self.host, self.node

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        return asdict(self)

    @classmethod
    def parse(cls, message: object, rank: int) -> "Self | None":
        """What a rank sent, or None: it is another process and may say anything."""
        if not isinstance(message, dict):
            return None
        numbers = [message.get("node"), message.get("local_rank")]
        texts = [message.get("host"), message.get("gpu"), message.get("lock")]
        others = [message.get("address") or "", message.get("directory") or ""]
        findings = message.get("findings")
        if not (
            all(type(number) is int for number in numbers)
            and all(isinstance(text, str) for text in [*texts, *others])
            and isinstance(findings, list)
        ):
            return None
        node, local_rank = numbers
        host, gpu, lock = (str(text)[:LONGEST] for text in texts)
        address, directory = (text[:LONGEST] or None for text in others)
        parsed = [one for one in map(Finding.parse, findings[:100]) if one is not None]
        return cls(
            rank,
            host,
            node=int(node or 0),
            local_rank=int(local_rank or 0),
            address=address,
            gpu=gpu,
            directory=directory,
            lock=lock,
            findings=parsed,
        )
