"""Typed errors, each with a remedy in its message, and the exit codes they lead to.

Exit codes are part of the public interface: unknown is never clean, and a tool that fails is not a tool that
found something.
"""

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What the command line answers with. Python's own 1 for an uncaught error is never used."""

    CLEAN = 0  # clean; or sanitized and accepted
    FOUND = 1  # suspicious or backdoored; or found but not removed
    FAILED = 2  # failed while working: disk full, out of memory, timeout, internal
    NO_VERDICT = 3  # the file cannot be judged, the evidence is inconclusive, or no remedy applies
    USAGE = 4  # the command is wrong
    INTERRUPTED = 130  # Ctrl-C


def worst(codes: Iterable[int]) -> ExitCode:
    """The exit code for several models, the worst in the order 2, 1, 3, 0; no model at all is no verdict."""
    order = (ExitCode.USAGE, ExitCode.FAILED, ExitCode.FOUND, ExitCode.NO_VERDICT, ExitCode.CLEAN)
    present = set(codes)
    return next((code for code in order if code in present), ExitCode.NO_VERDICT)


class DeepSanitizerError(Exception):
    """A failure a user can act on: what is wrong, and what to do about it, in one line."""

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem.rstrip('.')}. {remedy}")
        self.problem = problem
        self.remedy = remedy


class UsageError(DeepSanitizerError):
    """The command or the arguments are wrong: no such file, option or layer; output unwritable."""

    exit_code = ExitCode.USAGE


class CannotJudgeError(DeepSanitizerError):
    """The file cannot be judged: truncated, a pointer, a refused pickle, keys that do not fit, NaN weights."""

    exit_code = ExitCode.NO_VERDICT


class WorkError(DeepSanitizerError):
    """Something failed while working: disk full, out of memory."""

    exit_code = ExitCode.FAILED


class DeadlineReachedError(WorkError):
    """The time limit was reached before a verified result existed."""
