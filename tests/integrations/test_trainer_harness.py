"""The ground that tests of the Ultralytics callbacks stand on: the processes of its real trainers."""

import os
import subprocess
import sys

import pytest
import trainers


def test_a_trainers_process_has_a_real_nms_and_cannot_leave_this_machine(tmp_path):
    """8.4.190's own non-maximum suppression in Python is the reference."""
    trainers.needs("8.4.190")
    program = """if True:
        import socket, torch, torchvision
        from ultralytics.utils.nms import TorchNMS
        torch.manual_seed(0)
        for count in (0, 1, 300):
            corners = torch.rand(count, 2) * 64
            boxes = torch.cat([corners, corners + 1 + torch.rand(count, 2) * 40], 1)
            scores = torch.rand(count)
            kept = torchvision.ops.nms(boxes, scores, 0.5)
            assert kept.equal(TorchNMS.nms(boxes, scores, 0.5)), kept
            assert count < 300 or 1 < len(kept) < count
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=30)
        except ConnectionRefusedError as refused:
            print(refused)
    """
    variables = {**os.environ, **trainers.environment("8.4.190", tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "may only connect to this machine" in done.stdout


def test_a_missing_trainer_skips_a_test_and_fails_it_in_ci(monkeypatch, tmp_path):
    monkeypatch.setattr(trainers, "_INSTALLED", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"8\.4\.190, which scripts/test installs"):
        trainers.needs("8.4.190")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="scripts/test installs"):
        trainers.needs("8.4.190")
