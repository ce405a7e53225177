"""How fast a checkpoint is sent, and how much memory that takes: on this machine, and over a line that is slow."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.bench import DDPHUB, MIB, Bench
from benchmarks.figures import Aim, Figure, LeftOut, Measured, Outcome, alternate
from benchmarks.slow_link import Side, SlowLink, congestion_control, slow_link
from benchmarks.uploads import CURL, HERE, WARM, begin_peak, check_fits, client, make_file, server
from benchmarks.workers.upload import resident

ABOUT: Final = "sending a checkpoint: throughput and memory, by loopback and over a slow line"

ALL: Final[tuple[str, ...]] = (CURL, DDPHUB, "hub-sdk", "mlflow", "tuspy")

NOTES: Final = (
    """curl: `curl -T` of the parts, one after the other on one kept connection, to signed URLs of the same hub, from
    the first request to the commit: what the hub does with the bytes counts for both""",
    """throughput is from announcing a checkpoint to its receipt; sha256 of all parts is computed before that, for curl
    as for ddphub. 'with digest' counts it for ddphub, and not for curl""",
    """hub-sdk sends to the same hub by HUB v1; mlflow by `log_artifact` to `mlflow server`, which serves artifacts;
    tuspy to tuspyserver in requests of 8 MiB: neither of the latter two syncs to the disk or checks a digest""",
    """memory is what the client's process has more at its peak than before it sends, of curl all; of the hub
    likewise""",
)


@dataclass(frozen=True)
class Case:
    """One file over one line.

    Args:
        name: as a reader sees it.
        mib: the file's size.
        rounds: turns of each contestant.
        near: where the clients are.
        far: where the servers are.
        contestants: who sends.
    """

    name: str
    mib: int
    rounds: int
    near: Side = HERE
    far: Side = HERE
    contestants: tuple[str, ...] = ALL

    @property
    def is_slow(self) -> bool:
        """Whether it goes over the slow line."""
        return self.near != HERE


def measure(bench: Bench) -> Outcome:
    """Loopback first, then the slow line."""
    outcome = Outcome(notes=[" ".join(note.split()) for note in NOTES])
    if bench.quick:
        # mlflow's server and hub-sdk take seconds to start.
        _measure_case(bench, outcome, Case("16 MiB, loopback", 16, 1, contestants=(CURL, DDPHUB, "tuspy")))
    else:
        _measure_case(bench, outcome, Case("1 GiB, loopback", 1024, 3))
        _measure_case(bench, outcome, Case("4 GiB, loopback", 4096, 1))
    _measure_slow(bench, outcome)
    return outcome


def _measure_slow(bench: Bench, outcome: Outcome) -> None:
    # reno stands for cubic, which behaves like it where so much is lost (RFC 9438, 4.3), and which the kernel does not
    # let another network namespace choose unless its administrator said so.
    own = congestion_control()
    cases: list[tuple[str, int, tuple[str, ...]]] = [
        (own, 8 if bench.quick else 128 if own == "bbr" else 32, (DDPHUB,) if bench.quick else ALL)
    ]
    if own != "reno" and not bench.quick:
        # A minute and more for each.
        cases.append(("reno", 32, (CURL, DDPHUB)))
    for control, mib, contestants in cases:
        try:
            with slow_link(control=None if control == own else control) as link:
                if control == cases[0][0]:
                    outcome.notes.append(_about(link))
                name = f"{mib} MiB, 50 ms and 1% loss ({control})"
                _measure_case(bench, outcome, Case(name, mib, 1, link.near, link.far, contestants))
        except LeftOut as error:
            outcome.notes.append(f"no slow line with {control}: {error}")


def _about(link: SlowLink) -> str:
    return (
        f"the slow line is between two network namespaces, by {link.made_by}: 200 Mbit/s, 25 ms and 1% of the packets "
        "lost each way, packets of 1500 bytes; less is sent there, as it takes longer"
    )


def _measure_case(bench: Bench, outcome: Outcome, case: Case) -> None:
    file = make_file(bench.folder / "model.pt", case.mib * MIB)
    make_file(bench.folder / "warm.pt", WARM)

    def turn(name: str) -> Callable[[], Measured]:
        return lambda: _turn(bench, name, file, case)

    left_out: dict[str, str] = {}
    turns = {name: turn(name) for name in case.contestants}
    measured = alternate(turns, rounds=case.rounds, warm_up=0, left_out=left_out, say=bench.say)
    file.unlink()
    outcome.left_out |= {f"{name} ({case.name})": why for name, why in left_out.items()}
    speeds = {name: [case.mib / seconds for seconds in values] for name, values in measured["seconds"].items()}
    limit = None if case.is_slow else CURL
    speed = Figure(case.name, "throughput", "MiB/s", "higher", speeds, limit, headline=True)
    pairs = zip(measured["seconds"][DDPHUB], measured["digest_s"][DDPHUB], strict=True)
    whole = {**speeds, DDPHUB: [case.mib / (seconds + digest_s) for seconds, digest_s in pairs]}
    memory = Figure(
        case.name, "memory of the client", "MiB", "lower", measured["memory_mib"], headline=case.mib == 4096
    )
    of_hub = Figure(case.name, "memory of the hub", "MiB", "lower", measured["hub_memory_mib"])
    with_digest = Figure(case.name, "throughput with digest", "MiB/s", "higher", whole, limit)
    outcome.figures += [speed, with_digest, memory, of_hub]
    if CURL in speeds:
        ratio = speed.ratio(DDPHUB, CURL)
        outcome.aims.append(
            Aim(f"{case.name}: throughput, times curl's", ratio, 1.0 if case.is_slow else 0.9, at_least=True)
        )
    if not case.is_slow:
        outcome.aims.append(Aim(f"{case.name}: MiB more memory", memory.median(DDPHUB), 64))


def _turn(bench: Bench, name: str, file: Path, case: Case) -> dict[str, float]:
    """One upload to a server that has nothing yet."""
    if name == CURL and shutil.which("curl") is None:
        raise LeftOut("there is no curl")
    check_fits(name, file.stat().st_size)
    folder = bench.folder / "turn"
    folder.mkdir()
    warm = file.with_name("warm.pt")
    try:
        with server(bench, name, folder, case.far) as to:
            before = begin_peak(to.process)
            measured = client(bench, name, to, folder=folder, warm=warm, file=file, side=case.near).run()
            if to.process is not None:
                measured["hub_memory_mib"] = (resident("VmHWM", to.process) - before) / MIB
        return measured
    finally:
        shutil.rmtree(folder)
