"""How long a save holds the training thread, and what training feels of the digest and upload that follow it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.bench import MIB, Bench
from benchmarks.figures import DDPHUB, Aim, Figure, LeftOut, Outcome
from benchmarks.machine import file_system
from benchmarks.pauses import measure_pauses
from benchmarks.reflink import reflink_xfs
from benchmarks.savers import HELD, Savers

ABOUT: Final = "time a save holds the training thread, and its longest pause while a checkpoint is uploaded"

ROUNDS: Final = {64 * MIB: 7, 512 * MIB: 3, 4096 * MIB: 2}
QUICK: Final = {8 * MIB: 1}
"""Bytes of a checkpoint -> rounds that count."""

LARGE: Final = 4096 * MIB
"""Bytes from which on wandb stays away, which keeps a copy of everything for the whole run, and the disk is small."""

KERNEL: Final = "kernel copy"
COPYFILE: Final = "shutil.copyfile"
COPIES: Final = (KERNEL, COPYFILE, DDPHUB)
WANDB: Final = ("wandb log_artifact", "wandb save")
HUB_SDK: Final = "hub-sdk upload"
MLFLOW: Final = "mlflow log_artifact"
TORCH_SAVE: Final = "torch.save"
CHECKPOINT: Final = "run.checkpoint()"

NOTES: Final = (
    (
        "Before each turn all is on the disk (sync), so nobody pays for another's dirty pages. The file is in the "
        "page cache, as one that was saved a moment ago is."
    ),
    (
        "When their calls return, nothing of the copies, of ddphub's and of wandb's is on the disk for sure: they "
        "lie in the page cache. ddphub brings them to the disk (fsync) in a thread before it uploads them, which "
        "is not timed. hub-sdk and mlflow have sent the bytes to a server on this machine; our hub has them on "
        "its disk (fsync)."
    ),
    (
        "hub-sdk and mlflow only read the file, so they take part on one file system, and wandb on the same one, up to "
        "512 MiB. Their servers are near: "
        "through a network they hold a training longer."
    ),
    (
        "wandb log_artifact is what its documentation advises for checkpoints; offline, as it is here, it copies "
        "the file and computes its MD5 before it returns. wandb save makes a link to the file and copies nothing: "
        "a training that rewrites last.pt changes what is sent later."
    ),
    (
        "just written: the file was written before the save and is not on the disk yet, as after torch.save. A "
        "kernel that shares its blocks waits for the disk first; shutil.copyfile does not, as it copies through "
        "the page cache."
    ),
    (
        "run.checkpoint(): torch.save of float32 tensors of 16 MiB to a new file each time; ddphub's is complete "
        "and committed in the staging area when the block ends."
    ),
)


def measure(bench: Bench) -> Outcome:
    """Runs it."""
    outcome = Outcome(notes=list(NOTES))
    sizes = QUICK if bench.quick else ROUNDS
    place = bench.folder / "disk"
    place.mkdir()
    others = () if bench.quick else (HUB_SDK, MLFLOW, *WANDB)
    if bench.quick:
        outcome.notes.append("hub-sdk, mlflow and wandb start slowly, or need a server: quick runs go without them.")
    _measure_on(place, bench, sizes, outcome, others)
    try:
        with reflink_xfs(bench.folder, 512 * MIB + 9 * max(sizes) // 4) as place:
            _measure_on(place, bench, sizes, outcome, ())
    except LeftOut as error:
        outcome.left_out["XFS with reflinks"] = str(error)
    measure_pauses(bench, outcome)
    return outcome


def _measure_on(place: Path, bench: Bench, sizes: Mapping[int, int], outcome: Outcome, others: tuple[str, ...]) -> None:
    """All that is measured on one file system."""
    kind = file_system(place)
    shares = kind == "xfs"
    with Savers(bench, place) as savers:
        for size, rounds in sizes.items():
            shown = f"{size // MIB} MiB" if size < 1024 * MIB else f"{size // (1024 * MIB)} GiB"
            case = f"{shown}, {'XFS' if shares else kind}"
            left_out: dict[str, str] = {}

            beside = tuple(name for name in others if size < LARGE or name not in WANDB)
            samples = savers.turns((*COPIES, *beside), size, rounds, left_out=left_out)
            copied = Figure(case, HELD, "s", limit=KERNEL, headline=size == max(sizes), samples=samples)
            outcome.figures.append(copied)
            if shares:
                outcome.aims.append(Aim(f"{case}: a save under 20 ms", 1000 * copied.median(DDPHUB), 20))
                samples = savers.turns(COPIES, size, rounds, left_out=left_out, source="just written")
                outcome.figures.append(Figure(f"{case}, just written", HELD, "s", limit=COPYFILE, samples=samples))
            else:
                ratio = copied.ratio(DDPHUB, KERNEL)
                outcome.aims.append(Aim(f"{case}: a save by a copy of the kernel", ratio, 1.1))

            if shares and bench.quick:
                continue
            samples = savers.turns((TORCH_SAVE, CHECKPOINT), size, rounds, left_out=left_out, source="none")
            samples[DDPHUB] = samples.pop(CHECKPOINT)
            written = Figure(f"{case}, {CHECKPOINT}", HELD, "s", limit=TORCH_SAVE, samples=samples)
            outcome.figures.append(written)
            ratio = written.ratio(DDPHUB, TORCH_SAVE)
            outcome.aims.append(Aim(f"{case}: {CHECKPOINT} by torch.save", ratio, 1.02))
            outcome.left_out |= {f"{name}, {case}": why for name, why in left_out.items()}
