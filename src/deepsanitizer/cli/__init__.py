"""The command line: deepsanitizer scan | sanitize | evaluate | layers | demo | doctor.

Nothing here imports torch until a command needs it, so that --help answers at once.
"""

import sys
from collections.abc import Sequence

import click

from deepsanitizer._version import __version__
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.cli.guard import run
from deepsanitizer.cli.judge import sanitize, scan
from deepsanitizer.cli.measure import evaluate, layers
from deepsanitizer.cli.tools import demo, doctor

__all__ = ["cli", "main", "main_code"]

EXIT_CODES = """\b
Exit codes:
  0    clean; or sanitized and accepted
  1    suspicious or backdoored; or found but not removed
  2    failed while working: disk full, out of memory, timeout
  3    no verdict: the file cannot be judged, or no remedy applies
  4    the command is wrong: no such file, option or layer
  130  interrupted"""


@click.group(epilog=EXIT_CODES,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="deepsanitizer")
def cli() -> None:
    """Find and remove backdoors in trained classifiers, without any data."""


for _command in (scan, sanitize, evaluate, layers, demo, doctor):
    cli.add_command(_command)


def main_code(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    return run(cli, arguments)


def main() -> None:
    """The program `deepsanitizer`."""
    keep_freed_memory()
    sys.exit(main_code())
