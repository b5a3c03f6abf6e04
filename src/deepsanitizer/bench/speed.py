"""Throughput of a repair beside plain training of the same network, in the same run.

    python -m deepsanitizer.bench.speed models/one

One pass is the multiply-adds of one image forward and backward through the whole network; forward alone counts a
third. Plain training (SGD, channels-last, the precision that the tool takes) is timed before and after the repair at
several batch sizes, and the best counts. The repair's stages are timed by the report itself.
"""

import resource
import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from deepsanitizer import loading, pipeline
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.zoo import code_of
from deepsanitizer.classifier import Classifier, resolve_compute
from deepsanitizer.types import Loaded


def training_rates(loaded: Loaded, *, batches: tuple[int, ...] = (32, 64, 128, 256), seconds: float = 4.0,
                   ) -> dict[int, float]:
    """Passes a second of plain training, by batch size."""
    rates = {}
    for batch in batches:
        classifier = Classifier(loaded.network, loaded.spec, resolve_compute("cpu")).clone().train()
        classifier.network.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for parameter in classifier.network.parameters():
            parameter.requires_grad_(True)
        optimiser = torch.optim.SGD(classifier.network.parameters(), lr=1e-3, momentum=0.9)
        images = torch.rand(batch, *loaded.spec.shape, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(batch) % loaded.spec.num_classes
        done, began = -2, time.monotonic()  # two steps to warm up
        while done < 3 or time.monotonic() - began < seconds:
            if done == 0:
                began = time.monotonic()
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(classifier(images), labels).backward()
            optimiser.step()
            done += 1
        rates[batch] = done * batch / (time.monotonic() - began)
    return rates


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threads", default=1)
@click.option("--effort", default="standard")
def main(folder: Path, threads: int, effort: str) -> None:
    """See the module."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    loaded = loading.load(folder, import_from=code_of(folder.parent))
    before = training_rates(loaded)
    _, report = pipeline.sanitize(loaded, effort=effort, force=True, device="cpu")  # type: ignore[arg-type]
    after = training_rates(loaded)
    rates = {batch: (before[batch] + after[batch]) / 2 for batch in before}
    best = max(rates, key=lambda batch: rates[batch])
    click.echo("plain training, passes a second by batch size: "
               + ", ".join(f"{batch}: {before[batch]:.0f} before and {after[batch]:.0f} after" for batch in rates))
    click.echo("| stage | seconds | passes | passes a second | share of plain training |")
    click.echo("| --- | --- | --- | --- | --- |")
    for stage, seconds in report.seconds.items():
        passes = report.passes.get(stage, 0.0)
        if passes and seconds:
            click.echo(f"| {stage} | {seconds:.1f} | {passes:,.0f} | {passes / seconds:.0f} | "
                       f"{passes / seconds / rates[best]:.0%} |")
    click.echo(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB; outcome "
               f"{report.outcome}; {report.device}, {threads} thread(s)")


if __name__ == "__main__":
    main()
