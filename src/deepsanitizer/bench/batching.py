"""What batching over classes and ranking classes beforehand save, in the same run and with the same answers.

    python -m deepsanitizer.bench.batching models/ten models/fortythree
    python -m deepsanitizer.bench.batching --imagenet

For each model: FreeEagle's scan with all classes in one batch beside one class after another, and the universal search
with classes ranked by a short search beside all classes in full. `--imagenet` scans the head of a network with 1,000
classes and features of 2048 x 7 x 7, with random weights, and prints the peak memory of the process.
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from deepsanitizer import examination, loading
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.zoo import code_of
from deepsanitizer.curate import curate_features, invert
from deepsanitizer.signals import freeeagle, universal
from deepsanitizer.types import Evidence, InputSpec, silent

RANKED: dict[str, Any] = {"short": (8, 8), "finalists": 5}


def freeeagle_ways(case: examination.Case, *, steps: int) -> str:
    """FreeEagle in one batch, beside one class after another from the same starts."""
    together, batched = _timed(lambda: freeeagle.posterior_matrix(
        case.parts, curate_features(case.parts, case.run, repeats=1, steps=steps)))
    alone, single = _timed(lambda: freeeagle.posterior_matrix(
        case.parts, curate_features(case.parts, case.run, repeats=1, steps=steps, memory_bytes=1)))
    apart = (freeeagle.column_means(batched) - freeeagle.column_means(single)).abs().max().item()
    return (f"FreeEagle at {case.parts.layer}, {steps} steps: {alone:.1f} s one class after another, {together:.1f} s "
            f"in one batch, {alone / together:.1f} times as fast; largest difference of a class's score {apart:.1e}")


def ranked_ways(case: examination.Case, *, family: str) -> str:
    """The universal search of one family with all classes in full, beside the best of a short search in full."""
    dummies = invert(case.classifier, 500, case.run, purpose="batching")
    classes = case.loaded.spec.num_classes

    def search(**how: Any) -> Evidence:
        return universal.detect(case.classifier, dummies, case.run, family=family, purpose="batching", **how)

    before = case.run.meter.passes
    full, everything = _timed(lambda: search(all_classes_up_to=classes))
    middle = case.run.meter.passes
    short, ranked = _timed(lambda: search(all_classes_up_to=0, **RANKED))
    saved = (middle - before) / (case.run.meter.passes - middle)
    tops = [[k for k, _ in sorted(enumerate(item.result.per_target), key=lambda pair: -(pair[1] or -1e9))[:3]]
            for item in (everything, ranked)]
    margins = everything.result.margin, ranked.result.margin
    return (f"universal {family}, {classes} classes: {full:.1f} s in full, {short:.1f} s ranked, {full / short:.1f} "
            f"times as fast ({saved:.1f} times fewer passes); first three {tops[0]} and {tops[1]}, the first one's "
            f"margin {margins[0]:.2f} and {margins[1]:.2f}")


def imagenet_head(*, steps: int) -> str:
    """FreeEagle on a head with 1,000 classes and features of 2048 x 7 x 7."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2048, 32, stride=32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(2048, 1000))
    for parameter in network.parameters():
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    spec = InputSpec((3, 224, 224), 1000, (0.5,) * 3, (0.25,) * 3)
    case = examination.open_case(network, spec, "1", "cpu", 0, "standard", silent, None)
    took, found = _timed(lambda: freeeagle.detect(case.parts, case.run, steps=steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shape = "x".join(map(str, case.parts.feature_shape))
    return (f"FreeEagle, 1,000 classes, features {shape}, {steps} steps: {took:.0f} s, class "
            f"{found.result.target} first; peak memory of the process {peak:.2f} GiB")


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    answer = action()
    return time.monotonic() - began, answer


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--family", default="blend", help="Of the universal search.")
@click.option("--steps", default=1000, help="Of FreeEagle.")
@click.option("--imagenet", is_flag=True, help="The head with 1,000 classes.")
@click.option("--threads", default=1)
def main(folders: tuple[Path, ...], family: str, steps: int, imagenet: bool, threads: int) -> None:
    """See the module."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    for folder in folders:
        loaded = loading.load(folder, import_from=code_of(folder.parent))
        case = examination.open_case(loaded, None, "auto", "cpu", 0, "standard", silent, None)
        click.echo(f"- {folder.name}: {freeeagle_ways(case, steps=steps)}")
        if loaded.spec.num_classes > 12:  # below, all classes are searched in full anyway
            click.echo(f"- {folder.name}: {ranked_ways(case, family=family)}")
    if imagenet:
        click.echo(f"- {imagenet_head(steps=steps)}")


if __name__ == "__main__":
    main()
