"""A hub as a team's would look: runs in many states, one of them going on, with everything that pages show."""

import contextlib
import math
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

from hub_talk import Talk, attempt_event, metrics_event, new_id, rank_event

from ddphub.names import slug

HOSTS = ("gpu-a01", "gpu-a02", "gpu-a03", "gpu-a04")
RANKS = 16
SLOW, SILENT = 11, 6
STEPS = 480

_TRACEBACK = """\
Traceback (most recent call last):
  File "/home/ada/train.py", line 88, in <module>
    main()
  File "/home/ada/train.py", line 61, in main
    loss = criterion(model(images.to(device)), targets)
  File "/home/ada/net.py", line 40, in forward
    return self.head(torch.cat(features, dim=1))
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB."""


class Sender:
    """One attempt of a run: keeps count of each rank's events.

    Args:
        talk: the model.
        attempt_id: the attempt.
    """

    def __init__(self, talk, attempt_id):
        self.talk = talk
        self.attempt_id = attempt_id
        self._seqs = {}
        self._waiting = []

    def _seq(self, rank):
        self._seqs[rank] = self._seqs.get(rank, -1) + 1
        return self._seqs[rank]

    def attempt(self, state, at, **fields):
        self._waiting.append(attempt_event(self.attempt_id, self._seq(0), state, time=at, **fields))

    def rank(self, of_rank, state, at, **fields):
        self._waiting.append(rank_event(self.attempt_id, self._seq(0), of_rank, state, time=at, **fields))

    def metrics(self, rank, step, epoch, at, values):
        event = metrics_event(
            self.attempt_id, self._seq(rank), rank=rank, step=step, epoch=epoch, time=at, values=values
        )
        self._waiting.append(event)

    def console(self, at, lines, rank=0, stream="stdout"):
        key = {"attempt_id": self.attempt_id, "rank": rank, "seq": self._seq(rank), "time": at}
        self._waiting.append(key | {"kind": "console", "stream": stream, "lines": lines, "left_out": 0})

    def log(self, at, message, level="info"):
        key = {"attempt_id": self.attempt_id, "rank": 0, "seq": self._seq(0), "time": at}
        self._waiting.append(key | {"kind": "log", "level": level, "message": message})

    def send(self):
        """Deliver what waits."""
        for start in range(0, len(self._waiting), 500):
            self.talk.accepted(*self._waiting[start : start + 500])
        self._waiting = []

    def beat(self):
        """A sign of life."""
        where = f"{self.talk.hub.url}/v1/agent/heartbeat/models/{self.talk.model_id}"
        self.talk.http.post(where, json={"attempt_id": self.attempt_id}).raise_for_status()


def new_model(hub, project, name, config, **labels):
    """A model with a configuration and labels."""
    talk = Talk.__new__(Talk)
    talk.hub, talk.http, talk.project, talk.attempt_id = hub, hub.client(), project, new_id()
    body = {"project": project, "meta": {"name": name}, "config": config, **labels}
    run_id = f"lab-{random.randint(40000, 49999)}-0-{slug(name)}"
    answer = talk.http.post(f"{hub.url}/v1/models", json=body, headers={"Idempotency-Key": run_id})
    assert answer.status_code == 200, answer.text
    talk.model_id = answer.json()["data"]["id"]
    return talk


def _course(step, rank=0, scale=1.0):
    chance = random.Random(step * 1009 + rank)
    done = step / 1000
    return {
        "train/box_loss": scale * (0.6 + 2.4 * math.exp(-3 * done)) + chance.gauss(0, 0.05),
        "train/cls_loss": scale * (0.3 + 3.1 * math.exp(-4 * done)) + chance.gauss(0, 0.06),
    }


def _validation(epoch, scale=1.0):
    chance = random.Random(epoch)
    return {
        "val/mAP50-95": scale * 0.54 * (1 - math.exp(-epoch / 9)) + chance.gauss(0, 0.004),
        "val/box_loss": 0.8 + 1.6 * math.exp(-epoch / 7) + chance.gauss(0, 0.01),
        "train/lr": 0.01 * (0.5 + 0.5 * math.cos(math.pi * epoch / 60)),
    }


def _config(**changes):
    optimizer = {"name": "AdamW", "lr": 1e-3, "weight_decay": 5e-4}
    config = {"model": "yolo11n.yaml", "data": "coco.yaml", "imgsz": 640, "batch": 128, "epochs": 60, "amp": True}
    return config | {"optimizer": optimizer, "seed": 0} | changes


def _slurm(restart):
    job = {"cluster": "lab", "job_id": "48213", "array_job_id": None, "array_task_id": None, "step": "0"}
    return job | {
        "partition": "a100",
        "job_name": "yolo-coco",
        "nodes": "gpu-a[01-04]",
        "node_count": 4,
        "restart_count": restart,
    }


def ended(hub, project, name, state, *, hours_ago, steps=300, config=None, reason=None, scale=1.0, **labels):
    """A run of two ranks that has ended."""
    talk = new_model(hub, project, name, config or _config(), **labels)
    sender = Sender(talk, talk.attempt_id)
    began = time.time() - hours_ago * 3600
    sender.attempt("started", began, world_size=2, host="gpu-a01")
    for step in range(0, steps, 3):
        at = began + step * 10
        for rank in range(2):
            sender.metrics(rank, step, step // 10, at, _course(step * 3, rank, scale))
        if step % 30 == 0:
            sender.metrics(0, step, step // 10, at, _validation(step // 10 + 1, scale))
    for rank in range(2):
        sender.rank(rank, "left", began + steps * 10, host="gpu-a01")
    sender.attempt(state, began + steps * 10 + 20, world_size=2, host="gpu-a01", reason=reason)
    sender.send()
    return talk


class LiveRun:
    """Sixteen ranks on four nodes in their second attempt; one rank is slow, one is silent.

    Args:
        hub: where.
        beating: senders of runs that show signs of life meanwhile, and nothing else.
    """

    def __init__(self, hub, beating=()):
        self._beating = beating
        tags = ["baseline", "coco"]
        notes = "Second try with the longer warm-up.\nRank 11 was slow on gpu-a03 before: ask the admins."
        self.talk = new_model(hub, "detection", "yolo11n-coco", _config(), tags=tags, notes=notes)
        now = time.time()
        self._first(now - 9000)
        self.sender = Sender(self.talk, new_id())
        self._started(now - 4000, now)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def _host(self, rank):
        return HOSTS[rank // 4]

    def _join(self, sender, at):
        for rank in range(RANKS):
            sender.rank(rank, "joined", at, host=self._host(rank), pid=20100 + rank, local_rank=rank % 4)

    def _first(self, began):
        sender = Sender(self.talk, self.talk.attempt_id)
        sender.attempt("started", began, world_size=RANKS, host=HOSTS[0], slurm=_slurm(0))
        self._join(sender, began + 3)
        for step in range(0, 300, 2):
            for rank in range(RANKS):
                sender.metrics(rank, step, step // 20, began + 12 * step, _course(step, rank))
            if step % 20 == 0:
                sender.metrics(0, step, step // 20, began + 12 * step, _validation(step // 20 + 1))
        reason = "SIGTERM"
        sender.attempt("requeued", began + 3700, world_size=RANKS, host=HOSTS[0], slurm=_slurm(0), reason=reason)
        sender.send()

    def _started(self, began, now):
        sender = self.sender
        sender.attempt("started", began, world_size=RANKS, host=HOSTS[0], slurm=_slurm(1))
        self._join(sender, began + 4)
        pace = (now - began - 30) / (STEPS - 260)
        for step in range(260, STEPS, 2):
            at = began + 10 + (step - 260) * pace
            for rank in range(RANKS):
                if rank != SILENT or step < 440:
                    sender.metrics(rank, step, step // 20, at, _course(step, rank))
            if step % 20 == 0:
                epoch = step // 20
                values = _validation(epoch + 1)
                sender.metrics(0, step, epoch, at, values)
                told = [
                    f"epoch {epoch}/60  box_loss {_course(step)['train/box_loss']:.3f}  lr {values['train/lr']:.5f}",
                    f"  all  5000 images  36335 instances  mAP50-95 {values['val/mAP50-95']:.3f}",
                ]
                sender.console(at, told)
        for rank in range(RANKS):
            figures = {"system/memory": 6.1e9 + rank * 2.3e7, "system/cpu": 94.0 + rank % 5, "system/gpu": 97.0 - rank}
            sender.metrics(rank, STEPS, None, now - 5, figures | {"system/gpu_memory": 3.4e10})
        warning = ["UserWarning: the scheduler was stepped before the optimizer"]
        sender.console(now - 600, warning, rank=3, stream="stderr")
        sender.log(now - 300, "3 checkpoints superseded before they were sent", "info")
        sender.rank(SILENT, "lost", now - 40, host=self._host(SILENT), pid=20106)
        sender.send()
        for epoch in range(16, 23):
            kind = "best" if epoch == 21 else "epoch"
            content = random.Random(epoch).randbytes(120_000 + 1000 * epoch)
            metrics = {"mAP50-95": round(_validation(epoch)["val/mAP50-95"], 4)}
            about = {"epoch": epoch, "step": epoch * 20, "kind": kind, "metrics": metrics}
            self.talk.attempt_id = sender.attempt_id
            self.talk.upload({f"{'best' if kind == 'best' else 'last'}.pt": content}, name="last.pt", **about)
        parts = {".metadata": b"m" * 900, "__0_0.distcp": b"a" * 90_000, "__1_0.distcp": b"b" * 90_000}
        self.talk.upload(parts, name="sharded", epoch=23, step=460, kind="epoch")

    def _go_on(self):
        steps = dict.fromkeys(range(RANKS), STEPS)
        beaten = 0.0
        while not self._stop.wait(1.0):
            now = time.time()
            for rank in range(RANKS):
                if rank == SILENT or (rank == SLOW and random.random() < 0.45):
                    continue
                steps[rank] += 1
                self.sender.metrics(rank, steps[rank], steps[rank] // 20, now, _course(steps[rank], rank))
            if steps[0] % 20 == 0:
                self.sender.console(now, [f"epoch {steps[0] // 20}/60 begins"])
            with contextlib.suppress(OSError):  # the hub may be away for a moment
                self.sender.send()
                if now - beaten > 5:
                    beaten = now
                    for sender in (self.sender, *self._beating):
                        sender.beat()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def fill(hub):
    """Everything but the live run; takes a moment, and half a minute until the silent ones are known to be."""
    lr = {"optimizer": {"name": "SGD", "lr": 0.01, "weight_decay": 5e-4}}
    ended(hub, "digits", "cnn-small", "finished", hours_ago=50, config=_config(epochs=30), tags=["baseline"])
    ended(hub, "digits", "cnn-wide", "stopped", hours_ago=47, steps=180, scale=1.1)
    ended(hub, "segmentation", "unet-cells", "cancelled", hours_ago=30, steps=90, reason="SLURM cancelled the job")
    ended(hub, "segmentation", "unet-cells-512", "timed_out", hours_ago=26, reason="SLURM: the time limit was reached")
    ended(
        hub,
        "detection",
        "yolo11s-coco",
        "finished",
        hours_ago=9,
        config=_config(epochs=30, **lr),
        tags=["coco"],
        scale=0.93,
    )
    ended(hub, "detection", "yolo11n-crowd", "failed", hours_ago=5, steps=60, reason=_TRACEBACK, tags=["coco"])
    ended(hub, "detection", "yolo11x-crowd", "node_failed", hours_ago=4, steps=120, reason="SLURM: node gpu-b07 failed")
    ended(hub, "detection", "yolo11l-crowd", "preempted", hours_ago=3, steps=210, reason="SIGTERM")


def going(hub, project, name, *, ranks=4, **labels):
    """A run that has begun, and of which more is heard only if someone sends it."""
    talk = new_model(hub, project, name, _config(epochs=20), **labels)
    sender = Sender(talk, talk.attempt_id)
    now = time.time()
    sender.attempt("started", now - 600, world_size=ranks, host="gpu-b01")
    for rank in range(ranks):
        sender.rank(rank, "joined", now - 598, host="gpu-b01", pid=30100 + rank)
    for step in range(120):
        for rank in range(ranks):
            sender.metrics(rank, step, step // 10, now - 500 + step * 4, _course(step * 4, rank))
        if step >= 117:
            sender.send()  # news that comes at different times is how the hub learns the pace
            time.sleep(0.5)
    return sender
