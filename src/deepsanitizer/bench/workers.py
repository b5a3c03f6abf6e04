"""Models side by side, one process with one torch thread each: a bench that calls itself with `--one MODEL`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import click


def side_by_side(module: str, models: Sequence[str], arguments: Sequence[str], *, jobs: int) -> int:
    """Run `python -m module *arguments --one MODEL` for each model, tell of each on stderr; how many failed."""
    def process(model: str) -> tuple[str, int, str]:
        done = subprocess.run([sys.executable, "-m", module, *arguments, "--one", model], capture_output=True,
                              text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return model, done.returncode, done.stderr

    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for number, (model, code, errors) in enumerate(pool.map(process, models), 1):
            failed += code != 0
            click.echo(f"{number}/{len(models)} {model}" + (f" failed:\n{errors[-2000:]}" if code else ""), err=True)
    return failed
