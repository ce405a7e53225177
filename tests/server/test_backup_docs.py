"""docs/backup.md tells the truth: each of its commands runs here, one after the other, beside a hub that serves."""

import re
import shlex
from pathlib import Path

import postgres
import pytest
from hub_talk import Talk, sha256

PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [line.partition("ddphub ")[2] for block in blocks for line in block.splitlines()]


@pytest.mark.skipif(postgres.is_on(), reason="the page's commands name no database for the hub they work on")
def test_each_command_runs(start_hub, tmp_path, program, monkeypatch, new_database, s3):
    hub = start_hub()
    monkeypatch.setenv("DDPHUB_URL", hub.url)
    monkeypatch.setenv("DDPHUB_API_KEY", hub.key)
    talk = Talk(hub, "digits")
    for epoch in range(2):
        talk.upload({"last.pt": b"%d" % epoch}, epoch=epoch)
    lost = next((hub.data_dir / "blobs").rglob(sha256(b"1")))
    assert len(commands()) >= 8
    for number, command in enumerate(commands()):
        command = (  # noqa: PLW2901  # the same with places of this machine
            command.replace("/backup/ddphub", str(tmp_path / "backups"))
            .replace("/var/lib/ddphub-new", str(tmp_path / f"new-{number}"))
            .replace("/var/lib/ddphub", str(hub.data_dir))
            .replace("postgresql://ddphub@db/ddphub", new_database())
            .replace("s3://bucket/ddphub?region=eu-central-1", s3.storage())
        )
        if "--repair" in command:
            lost.unlink()
        said = program(*shlex.split(command))
        assert "mended" in said or "--repair" not in command
        assert "would go" in said or "--dry-run" not in command
    assert lost.read_bytes() == b"1"
    assert len(talk.get("/checkpoints")) == 2
