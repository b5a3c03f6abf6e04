"""deepsanitizer demo and doctor: see it work, and see what it runs on."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from deepsanitizer._version import __version__
from deepsanitizer.cli.console import plain, progress, result_console
from deepsanitizer.cli.judge import outcome_code
from deepsanitizer.cli.options import Common, check_folder, common_options, file_path
from deepsanitizer.errors import ExitCode

LIBRARIES = ("torch", "numpy", "safetensors", "click", "rich", "jinja2", "msgspec", "picklescan", "pillow")
GIB = 2**30


@click.command(short_help="See it work on a model that ships with the package.")
@click.option("--report", "folder", type=file_path(), metavar="DIR",
              help="Write report.json, report.html and evaluation.json there.")
@common_options(unused=("layer", "timeout"))
def demo(common: Common, folder: Path | None) -> int:
    """Find and remove the backdoor of a small traffic-sign classifier, and measure it on real signs.

    Runs offline. The classifier and the signs ship with the package; the signs are only used to measure what
    the repair did.
    """
    check_folder(folder, "--report")
    from deepsanitizer.demo.run import render, run

    common.apply_threads()
    with progress(common.quiet) as callback:
        result = run(folder, device=common.device, seed=common.seed, progress=callback)
    render(result, result_console())
    return outcome_code(result.report)


@click.command(short_help="What this installation runs on, and whether it works.")
@common_options(unused=("layer", "seed", "timeout"))
def doctor(common: Common) -> int:
    """Say what this installation runs on, and whether it works. Nothing is sent anywhere.

    Exits with 0 where every check passed, else with 2.
    """
    healthy = True
    for name, check in _CHECKS.items():
        try:
            answer, good = check(common), True
        except Exception as error:  # whatever is broken, the other checks go on
            answer, good = f"FAILED: {error}", False
        healthy &= good
        click.echo(f"{name:<14} {plain(answer)}")
    click.echo("all checks passed" if healthy else "something is broken: see FAILED above")
    return ExitCode.CLEAN if healthy else ExitCode.FAILED


def _versions(common: Common) -> str:
    return f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def _libraries(common: Common) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)


def _device(common: Common) -> str:
    import torch

    from deepsanitizer.classifier import resolve_compute

    device = resolve_compute(common.device).device
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return f"cuda: {torch.cuda.get_device_name(device)}, {memory / GIB:.1f} GiB"
    return "cpu (no CUDA device is used)"


def _precision(common: Common) -> str:
    from deepsanitizer.classifier import resolve_compute

    return ("bfloat16 where it does no harm, else float32" if resolve_compute(common.device).bfloat16
            else "float32 (no native bfloat16 here: correct, but slower)")


def _threads(common: Common) -> str:
    import torch

    common.apply_threads()
    return f"{torch.get_num_threads()} of {os.cpu_count()} processors"


def _memory(common: Common) -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    total = f"{page * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB"
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:  # macOS does not say
        return total
    return f"{total}, {page * os.sysconf('SC_AVPHYS_PAGES') / GIB:.1f} GiB of it free"


def _computation(common: Common) -> str:
    """One convolution forwards and backwards, in the precision that a scan would use, against float64."""
    import torch

    from deepsanitizer.classifier import resolve_compute

    compute = resolve_compute(common.device)
    generator = torch.Generator().manual_seed(common.seed)
    images = torch.rand(4, 3, 16, 16, generator=generator)
    kernel = torch.rand(8, 3, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(images.double(), kernel.double())
    images = images.to(compute.device).requires_grad_()
    with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bfloat16):
        result = torch.nn.functional.conv2d(images, kernel.to(compute.device))
    (gradient,) = torch.autograd.grad(result.float().sum(), images)
    worst = float(((result.detach().cpu().double() - exact).abs() / exact.abs()).max())
    if not worst < 0.02 or not gradient.isfinite().all():
        raise RuntimeError(f"a test convolution is wrong by {worst:.1%}")
    return f"a test convolution is right (to {worst:.0e})"


def _temporary(common: Common) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"deepsanitizer")
        file.flush()
    return f"{tempfile.gettempdir()} can be written"


def _demo_files(common: Common) -> str:
    from importlib.resources import files

    sizes = [entry.stat().st_size for entry in Path(str(files("deepsanitizer.demo") / "assets")).iterdir()]
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"


_CHECKS: dict[str, Callable[[Common], str]] = {
    "deepsanitizer": _versions, "libraries": _libraries, "device": _device, "precision": _precision,
    "threads": _threads, "memory": _memory, "computation": _computation, "temporary": _temporary,
    "demo": _demo_files,
}
