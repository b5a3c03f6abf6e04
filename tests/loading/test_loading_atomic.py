"""A disk that fills up, Ctrl-C, a kill: the output is whole or not there, and what was there is intact."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from deepsanitizer.errors import ExitCode, WorkError
from deepsanitizer.loading import atomic, copy_unchanged, load, save
from deepsanitizer.loading.atomic import write_file, write_folder
from deepsanitizer.types import Checkpoint
from loading import models
from loading.models import ARCH, changed, network, problem, state_of

# The module alone, in another process: its package would import torch first.
ALONE = f"""
import os, resource, sys, time
from importlib import util
from pathlib import Path
from deepsanitizer.errors import WorkError
spec = util.spec_from_file_location("atomic", {atomic.__file__!r})
atomic = util.module_from_spec(spec)
spec.loader.exec_module(atomic)
"""
# Starts to write, says so in the middle of it, and hangs there.
HANG = ALONE + """
sync = os.fsync
def hang(descriptor):
    sync(descriptor)
    print("writing", flush=True)
    time.sleep(60)
os.fsync = hang
try:
    if sys.argv[2] == "file":
        atomic.write_file(Path(sys.argv[1]), b"new" * 100_000)
    else:
        atomic.write_folder(Path(sys.argv[1]), {"a": b"new" * 100_000, "b": b"new"})
except KeyboardInterrupt:
    sys.exit(130)
"""


def writers(tmp_path: Path, code: Path) -> list[tuple[Checkpoint, Path]]:
    torch.save(state_of(network()), tmp_path / "in.pt")
    file = load(tmp_path / "in.pt", import_from=code, **ARCH).checkpoint
    folder = load(models.write_folder(tmp_path / "in", state_of(network())), import_from=code).checkpoint
    assert file is not None
    assert folder is not None
    return [(file, tmp_path / "out.pt"), (file, tmp_path / "out.safetensors"), (folder, tmp_path / "out")]


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))
    return fail


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_errors_while_writing(tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch, function: str,
                              number: int) -> None:
    jobs = writers(tmp_path, code)
    (tmp_path / "out.pt").write_text("old")
    before = {path: path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))}
    monkeypatch.setattr(os, function, failing(number))
    for like, output in jobs:
        message = problem(WorkError, partial(save, changed(network()), like, output))
        assert ("Free some space" in message) == (number in (errno.ENOSPC, errno.EDQUOT))
        problem(WorkError, partial(copy_unchanged, like, output))
    assert {path: path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))} == before
    assert WorkError.exit_code == ExitCode.FAILED


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupts_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  error: type[BaseException]) -> None:
    def interrupt(_: int) -> None:
        raise error
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(error):
        write_file(tmp_path / "out", b"x")
    with pytest.raises(error):
        write_folder(tmp_path / "out", {"a": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_and_a_folder_filled(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    write_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    (tmp_path / "d").mkdir()
    write_folder(tmp_path / "d", {"a": b"1"})
    assert (tmp_path / "d" / "a").read_bytes() == b"1"
    problem(WorkError, lambda: write_folder(tmp_path / "d", {"a": b"2"}))
    assert (tmp_path / "d" / "a").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


def test_the_handler_of_sigterm_is_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    write_file(tmp_path / "f", b"new")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_while_writing(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("old")
    with subprocess.Popen([sys.executable, "-c", HANG, str(output), kind], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")]
        child.send_signal(number)
        code = child.wait(timeout=30)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert (output.read_text() == "old") if kind == "file" else not output.exists()
    left = [path.name for path in tmp_path.iterdir() if path != output]
    if number == signal.SIGKILL:
        assert len(left) == 1
        assert left[0].startswith(".out.")
        assert left[0].endswith(".partial")
    else:
        assert left == []


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    """The real thing, by a limit on file sizes: a part is on the disk when the error comes."""
    script = ALONE + (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    atomic.write_file(Path(sys.argv[1]), bytes(1_000_000))\n"
        "except WorkError as error:\n    print(error)\n")
    (tmp_path / "out").write_text("old")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")],
                          capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The real thing, on a file system of 64 KiB, where the system lets a user mount one."""
    (tmp_path / "disk").mkdir()
    script = ALONE + (
        "disk = Path(sys.argv[1])\n"
        "(disk / 'out').write_text('old')\n"
        "many = bytes(1_000_000)\nfor write in (lambda: atomic.write_file(disk / 'out', many),\n"
        "              lambda: atomic.write_folder(disk / 'new', {'a': b'1', 'b': many})):\n"
        "    try:\n        write()\n    except WorkError as error:\n        print(error)\n"
        "print([path.name for path in disk.iterdir()], (disk / 'out').read_text())\n")
    mounted = 'mount -t tmpfs -o size=64k tmpfs "$1" || exit 99; exec "$2" -c "$3" "$1"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mounted, "sh", str(tmp_path / "disk"), sys.executable, script],
            capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no unshare")
    if done.returncode in (1, 99) and "Traceback" not in done.stderr:
        pytest.skip(f"this system does not let a user mount a file system: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done
    assert all("No space left" in line and "Free some space" in line for line in lines[:2])
    assert lines[2] == "['out'] old"
