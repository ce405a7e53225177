"""What is printed: a table of the ranks, and what was found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ddphub.doctor.finding import Finding
from ddphub.doctor.rank import RankReport

COLUMNS: Final = ("rank", "host", "node", "local rank", "address", "GPU", "lock", "clock")
TEXT_COLUMN: Final = 20


@dataclass
class Report:
    """Everything of one place, or of a job.

    Attributes:
        world_size: number of ranks that there should be.
        ranks: those that are heard of; the first is the one that reports.
        findings: about the job as a whole; what a rank found is in its own report.
        is_spokesman: whether this process is to print it: rank 0, and a rank that could not tell rank 0.
    """

    world_size: int
    ranks: list[RankReport]
    findings: list[Finding] = field(default_factory=list)
    is_spokesman: bool = True

    @property
    def is_well(self) -> bool:
        """Whether there is no problem."""
        return all(finding.state != "problem" for finding, _ in self.folded())

    def folded(self) -> list[tuple[Finding, list[int]]]:
        """Every finding once, with the ranks that have it; of ranks other than the first only what is not well."""
        folded: dict[Finding, list[int]] = {}
        for index, report in enumerate(self.ranks):
            for finding in report.findings:
                if index == 0 or finding.state != "ok":
                    folded.setdefault(finding, []).append(report.rank)
        for finding in self.findings:
            folded.setdefault(finding, [])
        return list(folded.items())

    def lines(self) -> list[str]:
        """For a person."""
        lines = self._table() if self.world_size > 1 else []
        for finding, ranks in self.folded():
            # What rank 0 found that is well needs no rank: most of it holds for all.
            whose = f"{shown_ranks(ranks)}: " if self.world_size > 1 and finding.state != "ok" and ranks else ""
            lines.append(f"{finding.state:<8} {finding.topic:<10} {whose}{finding.text}")
            if finding.advice:
                lines.append(f"{'':<{TEXT_COLUMN}}-> {finding.advice}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """For a program: one object."""
        ranks = [{key: value for key, value in one.to_json().items() if key != "findings"} for one in self.ranks]
        return {
            "ok": self.is_well,
            "world_size": self.world_size,
            "ranks": ranks,
            "findings": [{**asdict(finding), "ranks": ranks_of} for finding, ranks_of in self.folded()],
        }

    def _table(self) -> list[str]:
        rows = [COLUMNS, *(_row(report) for report in self.ranks)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        shown = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*shown, ""]


def _row(report: RankReport) -> tuple[str, ...]:
    return (
        str(report.rank),
        report.host,
        str(report.node),
        str(report.local_rank),
        report.address or "-",
        report.gpu,
        report.lock,
        f"{report.ahead:+.1f} s" if report.ahead is not None else "",
    )


def shown_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(texts)}"
