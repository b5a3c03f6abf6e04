"""doctor: what this installation runs on, and exit code 2 where something is broken."""

import pytest
from helpers.cli import Run

from deepsanitizer.cli import tools


def test_healthy(run: Run) -> None:
    answer = run("doctor", "--device", "cpu", "--threads", "1")
    assert answer.code == 0, answer.out
    for name in tools._CHECKS:
        assert name in answer.out
    assert "1 of" in answer.out
    assert answer.err == ""


def test_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "LIBRARIES", ("torch", "no-such-library"))
    answer = run("doctor")
    assert answer.code == 2
    assert "FAILED" in answer.out
    assert "no-such-library" in answer.out
    assert "test convolution is right" in answer.out


def test_no_such_device_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answer = run("doctor", "--device", "cuda")
    assert answer.code == 2
    assert "no CUDA device" in answer.out
