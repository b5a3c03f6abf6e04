"""A full disk or a kill while writing: what was there before stays, nothing half-written is left."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.cli import Run
from helpers.models import contents
from report import factory

from deepsanitizer.loading import load
from deepsanitizer.report import to_json

# The first file that is synced to disk is announced, and then never finished.
STUCK = """
import os, sys, time
from deepsanitizer.cli import main_code

def stuck(descriptor):
    print("writing", flush=True)
    time.sleep(60)

os.fsync = stuck
sys.exit(main_code(sys.argv[1:]))
"""

# The kernel itself refuses to write more than 2 KiB into a file.
LIMITED = """
import resource, sys
from deepsanitizer.cli import main_code

resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
sys.exit(main_code(sys.argv[1:]))
"""


@pytest.fixture
def command(model: Path, code: Path, tmp_path: Path) -> list[str]:
    """A sanitize without its --output. A report says that the model is clean: it soon comes to writing."""
    checkpoint = load(model, import_from=code).checkpoint
    assert checkpoint is not None
    report = tmp_path / "earlier.json"
    report.write_text(to_json(replace(factory.scan(classes=4), input_sha256=checkpoint.sha256)))
    return ["sanitize", str(model), "--import-from", str(code), "--effort", "fast", "--device", "cpu",
            "--threads", "1", "--from-report", str(report)]


@pytest.mark.parametrize(("name", "number", "expected"), [
    ("out.safetensors", signal.SIGKILL, -9), ("folder", signal.SIGKILL, -9), ("folder", signal.SIGTERM, 143),
    ("out.pt", signal.SIGINT, 130),
])
def test_a_kill_while_writing(command: list[str], tmp_path: Path, name: str, number: int,
                              expected: int) -> None:
    before = contents(tmp_path)
    with subprocess.Popen([sys.executable, "-c", STUCK, *command, "--output", tmp_path / name],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == expected, err
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not (tmp_path / name).exists()
    left = after.keys() - before.keys()
    if number == signal.SIGKILL:  # nobody cleans up after that: a hidden file may stay, never half an output
        assert all(path.startswith(".") for path in left)
    else:
        assert left == set()


def test_a_full_disk(run: Run, command: list[str], tmp_path: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.safetensors").write_text("what was there before")
    before = contents(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    answer = run(*command, "--output", tmp_path / "out.safetensors")
    assert answer.code == 2
    assert "no space left on device" in answer.error.lower()
    assert contents(tmp_path) == before


def test_a_full_disk_under_a_report(run: Run, command: list[str], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is whole, the report is not there at all."""
    whole = os.fsync
    synced: list[int] = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 2:  # the checkpoint, and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr("os.fsync", full)
    answer = run(*command, "--output", tmp_path / "out.safetensors", "--html", tmp_path / "r.html")
    assert answer.code == 2
    assert "r.html" in answer.error
    assert not [path for path in contents(tmp_path) if "r.html" in path]
    copied = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "out.safetensors").read_bytes() == copied


def test_a_limit_that_the_system_sets(command: list[str], tmp_path: Path) -> None:
    before = contents(tmp_path)
    done = subprocess.run([sys.executable, "-c", LIMITED, *command, "--output", tmp_path / "out.safetensors"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before
