"""Whatever happens, one line on stderr and the documented exit code."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch

from deepsanitizer.cli.guard import run
from deepsanitizer.cli.options import Common, common_options
from deepsanitizer.errors import CannotJudgeError, DeadlineReachedError, UsageError, WorkError


def _program(error: BaseException | int) -> click.Group:
    @click.group()
    def program() -> None: ...

    @program.command()
    @common_options()
    def act(common: Common) -> int:
        if isinstance(error, int):
            return error
        raise error

    return program


@pytest.mark.parametrize(("error", "code", "words"), [
    (UsageError("no such layer", "Choose another."), 4, "no such layer. Choose another."),
    (CannotJudgeError("NaN", "Get another."), 3, "NaN. Get another."),
    (WorkError("full", "Free some."), 2, "full. Free some."),
    (DeadlineReachedError("late", "Wait."), 2, "late. Wait."),
    (MemoryError(), 2, "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory."), 2, "out of memory. Nothing half-written"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
    (OSError(errno.ENOSPC, "No space left on device", "out"), 2, "no space left on the disk while writing"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "no space left"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "no space left"),
    (ZeroDivisionError("division\nby zero"), 2, "ZeroDivisionError: division by zero (run again with -v"),
    (AssertionError(), 2, "AssertionError (run again with -v"),
    (click.Abort(), 2, "Abort"),
    (click.BadParameter("bad"), 4, "bad"),
    (RecursionError("deep"), 2, "RecursionError: deep"),
    (UsageError("a name \x1b[31mred\x07", "No."), 4, r"a name \x1b[31mred\x07"),
])
def test_errors(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_program(error), ["act"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert err.startswith("error: ")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_a_command_s_own_code(code: int) -> None:
    assert run(_program(code), ["act"]) == code


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_program(ZeroDivisionError("oops")), ["act", "-v"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.rstrip().endswith("error: ZeroDivisionError: oops")


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_program(KeyboardInterrupt()), ["act"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_signal_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    run(_program(0), ["act"])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_what_nohup_set_stays() -> None:
    seen = []

    @click.group()
    def program() -> None: ...

    @program.command()
    def act() -> None:
        seen.extend([signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)])

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(program, ["act"])
        assert seen[0] is signal.SIG_IGN
        assert callable(seen[1])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


WAITING = """
import sys, time
from pathlib import Path
import click
from deepsanitizer.cli.guard import run

@click.group()
def program(): ...

@program.command()
def act():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        Path(sys.argv[1]).write_text("cleaned up")

sys.exit(run(program, ["act"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                               (signal.SIGHUP, 129)])
def test_a_signal_unwinds(number: int, code: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with subprocess.Popen([sys.executable, "-c", WAITING, trace], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert trace.read_text() == "cleaned up"
    assert "Traceback" not in err


PRINTING = """
import sys
import click
from deepsanitizer.cli.guard import run

@click.group()
def program(): ...

@program.command()
def act():
    for _ in range(100000):
        click.echo("a line of the result")

sys.exit(run(program, ["act"]))
"""


def test_a_closed_pipe_is_quiet_and_no_verdict() -> None:
    with subprocess.Popen([sys.executable, "-c", PRINTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTING], stdout=full, stderr=subprocess.PIPE,
                              text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "no space left" in done.stderr


def test_nobody_listens_at_all() -> None:
    """Both outputs closed: still not Python's own exit code 1."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-c", PRINTING], stdout=write, stderr=write)
    os.close(write)
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == 2
