"""Runs the command line and turns whatever happens into one line on stderr and an exit code.

Python's own exit code for an uncaught error is 1, which here means "found something": it never gets out.
"""

import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import click

from deepsanitizer.cli.console import say
from deepsanitizer.errors import DeepSanitizerError, ExitCode

_NOTHING_LEFT = "Nothing half-written is left"
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass
class State:
    """What failure handling must know and only a parsed command line can tell."""

    verbose: bool = False


def run(group: click.Group, arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code and never raises."""
    state = State()
    try:
        with _stop_signals(), warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            code = group.main(arguments, prog_name="deepsanitizer", standalone_mode=False, obj=state)
            sys.stdout.flush()
            return int(code or 0)
    except SystemExit as stop:
        # A stop signal, or click's answer to a closed pipe or a call for completion, where 1 is a failure.
        code = stop.code if isinstance(stop.code, int) else 0
        _hush()
        return ExitCode.FAILED if code == 1 else code
    except BaseException as error:
        return _explain(error, state)


def _explain(error: BaseException, state: State) -> int:
    """Say in one line what went wrong, and give its exit code."""
    code, line = _describe(error, state)
    try:
        if state.verbose:
            click.echo("".join(traceback.format_exception(error)), err=True)
        if not isinstance(error, BrokenPipeError):
            say(line)
    except OSError:  # nobody listens on stderr either: the exit code still tells
        pass
    _hush()
    return code


def _describe(error: BaseException, state: State) -> tuple[int, str]:
    interrupted = isinstance(error, KeyboardInterrupt)
    if interrupted or (isinstance(error, click.Abort) and isinstance(error.__cause__, KeyboardInterrupt)):
        return ExitCode.INTERRUPTED, f"interrupted. {_NOTHING_LEFT}."
    if isinstance(error, DeepSanitizerError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return ExitCode.USAGE, "error: no command given"
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help'." if context else ""
        return ExitCode.USAGE, f"error: {error.format_message().rstrip('.')}.{hint}"
    if _is_out_of_memory(error):
        remedy = "Close other programs, choose a smaller --effort, or use a machine with more memory."
        return ExitCode.FAILED, f"error: out of memory. {_NOTHING_LEFT}. {remedy}"
    if _is_disk_full(error):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        remedy = "Free some space, or write elsewhere."
        return ExitCode.FAILED, f"error: no space left on the disk{where}. {_NOTHING_LEFT}. {remedy}"
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if state.verbose else " (run again with -v for the traceback, and report it)"
    return ExitCode.FAILED, f"error: {what}{hint}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's, CUDA's or torch's CPU allocator's way of saying it; does not import torch."""
    torch: Any = sys.modules.get("torch")
    return (isinstance(error, MemoryError)
            or (torch is not None and isinstance(error, torch.OutOfMemoryError))
            or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)))


def _is_disk_full(error: BaseException) -> bool:
    """Whether this is the system's or the safetensors library's way of saying it."""
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that temporary files are removed on the way out."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours: list[int] = []
    if threading.current_thread() is threading.main_thread():  # elsewhere it may not
        known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        ours = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _hush() -> None:
    """Where an output's reader went away or its disk is full, let Python's own flush at exit go nowhere.

    What could not be written stays buffered; a second failure at exit would turn the exit code into 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
