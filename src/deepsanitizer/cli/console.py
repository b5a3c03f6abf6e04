"""What the terminal shows: results on stdout, everything else on stderr.

Names that come from a checkpoint are untrusted: every line passes through `plain`, so that a file cannot send
control codes to a terminal.
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from deepsanitizer.types import Progress as ProgressCallback


def plain(text: str) -> str:
    """One line without control characters: white space runs become a space, the rest is shown escaped."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def say(text: str) -> None:
    """One line on stderr."""
    click.echo(plain(text), err=True)


class PlainProgress:
    """Progress for logs: a line when a stage begins, then one every few seconds."""

    def __init__(self, *, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self.begun: dict[str, float] = {}
        self.last = -math.inf

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say it, if it is time to."""
        now = time.monotonic()
        if stage not in self.begun:
            self.begun[stage] = self.last = now
            say(f"{stage} ...")
        elif now - self.last >= self.every_s and 0 < done < total:
            self.last = now
            left_s = (now - self.begun[stage]) / done * (total - done)
            say(f"{stage} {done}/{total}, about {left_s:.0f} s left")


class BarProgress:
    """Progress for a terminal: one bar for the stage that runs, with the time left."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar, or start it again for another stage."""
        if stage != self.stage:
            for finished in self.bars.task_ids:
                self.bars.remove_task(finished)
            self.bars.add_task(plain(stage), total=total)
            self.stage = stage
        self.bars.update(self.bars.task_ids[0], completed=done, total=total)


def _nothing(stage: str, done: int, total: int) -> None:
    pass


@contextmanager
def progress(quiet: bool) -> Iterator["ProgressCallback"]:
    """The progress callback that fits where stderr goes."""
    console = Console(stderr=True)
    if quiet:
        yield _nothing
    elif not console.is_terminal:
        yield PlainProgress()
    else:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
                   MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        with Progress(*columns, console=console, transient=True, expand=True) as bars:
            yield BarProgress(bars)


def result_console() -> Console:
    """Where text results go: stdout, in colour only on a terminal and without NO_COLOR."""
    return Console(file=sys.stdout, highlight=False)
