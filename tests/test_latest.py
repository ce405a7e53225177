"""Resuming from the newest checkpoint: on this machine's disk, or on the hub."""

import hashlib

import pytest
from jobs import Job, wait_until
from jobs import ddphub as command_line

import ddphub

ALL = {"ckpt": 0, "metrics": 0.2}


@pytest.fixture
def start(own_hub, tmp_path):
    """Starts attempts of one run; they are finished with the test."""
    runs = []

    def start(**settings):
        defaults = {"project": "tests", "name": "one", "run_id": "run", "hub": own_hub.url, "api_key": own_hub.key}
        run = ddphub.init(**{**defaults, "dir": tmp_path / "runs", "rate_limits": ALL, **settings})
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.finish()


def save(run, tmp_path, content, epoch, **options):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert run.save_checkpoint(path, epoch=epoch, **options)


def test_a_new_run_has_none(start):
    assert start().latest_checkpoint() is None


def test_a_disabled_run_has_none(tmp_path):
    assert ddphub.init(project="p", mode="disabled").latest_checkpoint() is None


def test_what_waits_on_this_disk_is_found_without_a_hub(start, tmp_path):
    first = start(mode="offline")
    for epoch in range(3):
        save(first, tmp_path, b"epoch %d" % epoch, epoch)
    first.finish()
    second = start(mode="offline")
    path = second.latest_checkpoint()
    assert (path.name, path.read_bytes()) == ("last.pt", b"epoch 2")
    path.write_bytes(b"the loop may do with it what it wants")
    second.finish()
    assert command_line("sync", str(tmp_path / "runs"), check=False).returncode != 0, "no hub"
    assert start(mode="offline").latest_checkpoint().read_bytes() == b"the loop may do with it what it wants"


def test_what_was_delivered_is_fetched_from_the_hub(start, view, tmp_path):
    first = start()
    save(first, tmp_path, b"older", 0)
    save(first, tmp_path, b"newest", 1)
    first.finish()
    assert len(view.checkpoints()) == 2
    second = start()
    path = second.latest_checkpoint()
    assert (path.name, path.read_bytes()) == ("last.pt", b"newest")
    assert path.stat().st_mode & 0o777 == 0o600
    assert second.latest_checkpoint() == path


def test_the_newest_of_disk_and_hub_counts(start, tmp_path):
    """One is delivered, a later one is not; then the other way round."""
    first = start()
    save(first, tmp_path, b"delivered", 1)
    first.finish()
    second = start(mode="offline")
    save(second, tmp_path, b"waits", 2)
    save(second, tmp_path, b"older", 0, kind="best")
    second.finish()
    third = start(rate_limits={"ckpt": 900})
    third.start_clocks()
    assert third.latest_checkpoint("epoch").read_bytes() == b"waits"
    assert third.latest_checkpoint("best").read_bytes() == b"older"
    assert third.latest_checkpoint("final") is None


def test_a_folder_comes_back_as_one(start, tmp_path):
    shards = tmp_path / "step-9"
    for name in ("a", "sub/b"):
        (shards / name).parent.mkdir(parents=True, exist_ok=True)
        (shards / name).write_text(name)
    for mode in ("offline", "online"):
        run = start(mode=mode)
        run.save_checkpoint(shards, step=9)
        run.finish()
        path = start(mode=mode).latest_checkpoint()
        assert {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()} == {"a", "sub/b"}
        assert (path / "sub/b").read_text() == "sub/b"


def test_a_hub_that_is_down_leaves_what_is_here(start, own_hub, tmp_path, caplog):
    first = start(mode="offline")
    save(first, tmp_path, b"here", 0)
    first.finish()
    own_hub.stop()
    assert start(finish_timeout=1).latest_checkpoint().read_bytes() == b"here"
    assert "the hub cannot be asked" in caplog.text


def test_copies_of_earlier_attempts_do_not_pile_up(start, tmp_path):
    for epoch in range(3):
        run = start()
        run.latest_checkpoint()
        save(run, tmp_path, b"%d" % epoch, epoch)
        run.finish()
    start().latest_checkpoint()
    kept = [path for path in (tmp_path / "runs" / "run" / "latest").iterdir() if path.is_dir()]
    assert [(path / "last.pt").read_bytes() for path in kept] == [b"2"]


def test_every_rank_gets_it_and_the_hub_is_asked_once(tmp_path, own_hub, view):
    """3 ranks; the first job is killed, the second resumes."""
    folder = tmp_path / "job"
    folder.mkdir()
    first = Job(folder, "resume.py", hub=own_hub, epochs=30, pause=0.1)
    try:
        wait_until(lambda: view.models() and len(view.checkpoints()) >= 2, what="two checkpoints")
        first.kill_rank(0)
        assert first.wait() != 0
        newest = view.checkpoints()[-1]["epoch"]
        second = Job(folder, "resume.py", hub=own_hub, epochs=newest + 4).succeed()
    finally:
        first.end()
    said = [line.split() for line in second.text.splitlines() if line.startswith("RESUMED")]
    assert sorted(rank for _, rank, _, _ in said) == ["0", "1", "2"]
    assert len({(epoch, path) for _, _, epoch, path in said}) == 1
    assert int(said[0][2]) >= newest
    model = view.model()
    assert [attempt["number"] for attempt in model["attempts"]] == [1, 2]
    assert len({one["epoch"] for one in view.checkpoints()}) == len(view.checkpoints())


def test_pull_fetches_the_newest_of_a_kind(start, view, own_hub, tmp_path, monkeypatch):
    run = start()
    save(run, tmp_path, b"last", 3)
    save(run, tmp_path, b"best", 2, kind="best", name="best.pt")
    run.finish()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").unlink()
    model_id = view.models()[0]
    said = command_line("pull", model_id, "--kind", "epoch", hub=own_hub).stdout
    assert "epoch checkpoint of epoch 3" in said
    assert (tmp_path / "last.pt").read_bytes() == b"last"
    page = f"{own_hub.url}/models/{model_id}"
    command_line("pull", page, "--kind", "best", "-o", "out/b.pt", hub=own_hub)
    command_line("pull", page, "--kind", "best", "-o", "out/b.pt", hub=own_hub)
    assert hashlib.sha256((tmp_path / "out" / "b.pt").read_bytes()).digest() == hashlib.sha256(b"best").digest()


def test_pull_says_what_is_wrong(start, own_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start()
    save(run, tmp_path, b"last", 3)
    run.finish()
    model_id = run.model_id

    def fails(*arguments, hub=own_hub):
        done = command_line("pull", *arguments, hub=hub, check=False)
        assert done.returncode in {1, 2}
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "is there already" in fails(model_id), "last.pt is in the way"
    assert "has no final checkpoint; it has: epoch\n" in fails(model_id, "--kind", "final")
    assert "expected one of epoch, best, final" in fails(model_id, "--kind", "last")
    assert "no such model" in fails("x" * 20)
    assert "ddphub: no hub is named: pass --hub URL" in fails(model_id, hub=None)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["last.pt"]
