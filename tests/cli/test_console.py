"""Progress on stderr: bars on a terminal, a few plain lines elsewhere, nothing with -q."""

import io
import os
import pty
import subprocess
import sys

import pytest

from deepsanitizer.cli.console import PlainProgress, plain, progress


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    callback = PlainProgress(every_s=5)
    for step in range(1001):
        now = step / 50  # twenty seconds in all
        callback("search", step, 1000)
        callback("verify", step, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["search ...", "verify ..."]
    assert 4 <= len(lines) <= 7
    assert lines[2] == "search 250/1000, about 15 s left"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as callback:
        callback("search", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_not_a_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=False) as callback:
        callback("search", 0, 2)
        callback("search", 1, 2)
    assert capsys.readouterr() == ("", "search ...\n")


BAR = """
import time
from deepsanitizer.cli.console import progress
with progress(False) as callback:
    callback("an earlier stage", 9, 10)
    for step in range(6):
        callback("search [bold]x[/bold]", step, 10)
        time.sleep(0.1)
print("result")
"""


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_a_bar(no_color: bool) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=theirs, env=environment,
                          text=True) as process:
        os.close(theirs)
        shown = io.BytesIO()
        try:
            while part := os.read(ours, 4096):
                shown.write(part)
        except OSError:  # Linux's way of saying that the other end is closed
            pass
        os.close(ours)
        assert process.communicate(timeout=20)[0] == "result\n"
    text = shown.getvalue().decode()
    assert "search [bold]x[/bold]" in text
    assert "5/10" in text
    assert "\x1b[38;5" not in text if no_color else "\x1b[38;5" in text


def test_plain_takes_control_characters_out() -> None:
    assert plain("a\nb\tc  d") == "a b c d"
    assert plain("red \x1b[31m\u202e") == r"red \x1b[31m\u202e"
    assert plain("größer 中文") == "größer 中文"
