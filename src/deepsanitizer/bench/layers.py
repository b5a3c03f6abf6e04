"""The published method at several inspection layers: one table a model.

    python -m deepsanitizer.bench.layers --models c10-badnet,c10-blend

For each model the valid cuts nearest to the given shares of the multiply-adds are taken (of equally near ones the
last, which holds the whole block). The method curates features there and fine-tunes what comes after; the result is
measured on real test images, without proof. `auto` does not depend on the inspection layer.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from deepsanitizer import facts, loading
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.datasets import shared_folder
from deepsanitizer.bench.proxies import Row
from deepsanitizer.bench.tables import load_results
from deepsanitizer.bench.zoo import code_of, evaluated, measured
from deepsanitizer.classifier import classifier_of, resolve_compute
from deepsanitizer.curate import curate_features
from deepsanitizer.repair import paper
from deepsanitizer.report import write
from deepsanitizer.split import LayerInfo, list_layers, split
from deepsanitizer.types import Run

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def chosen(layers: Sequence[LayerInfo], shares: Sequence[float] = SHARES) -> list[LayerInfo]:
    """The cuts nearest to each share of multiply-adds before them, with something to learn after; each once."""
    usable = [layer for layer in layers if layer.valid and layer.params_after > 0]
    picked: dict[str, LayerInfo] = {}
    for share in shares:
        nearest = min(reversed(usable), key=lambda layer: abs(layer.madds_before - share), default=None)
        if nearest is not None:
            picked[nearest.name] = nearest
    return list(picked.values())


def run_model(zoo: Path, model: str, images: int, results: Path, label: str) -> None:
    """The method at every chosen layer of one model that has no result yet."""
    loaded = loading.load(zoo / model, import_from=code_of(zoo))
    compute = resolve_compute("auto")
    original = classifier_of(loaded.network, loaded.spec, compute)
    before = evaluated(zoo, model, None, images)
    for layer in chosen(list_layers(original)):
        path = results / f"{model}.{layer.name}.json"
        if path.exists():
            continue
        run, parts, began = Run(compute), split(original, layer.name), time.monotonic()
        candidate, loss = paper.repair(parts, curate_features(parts, run), run)
        facts.round_like(candidate, loaded.checkpoint)
        row: Row = {"model": model, "layer": layer.name, "features": list(layer.feature_shape), "label": label,
                    "share_before": layer.madds_before, "params_after": layer.params_after, "loss_step0": loss,
                    "before": before, "candidate": measured(zoo, model, candidate.network.state_dict(), images),
                    "seconds": round(time.monotonic() - began, 1), "passes": round(run.meter.passes)}
        write(json.dumps(row, indent=1), path)


def table(rows: Sequence[Row]) -> str:
    """Layers of each model, shallow ones first: what comes after, loss at step 0, ACC / ASR before and after."""
    told = ["| model | layer | features | multiply-adds before | parameters after | loss at step 0 | ACC / ASR before "
            "| after |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: (row["model"], row["share_before"], -row["params_after"])):
        old, new = (f"{row[key]['acc']:.1f} / {row[key]['asr']:.1f}" for key in ("before", "candidate"))
        shape = "×".join(map(str, row["features"]))
        told.append(f"| {row['model']} | {row['layer']} | {shape} | {row['share_before']:.0%} | "
                    f"{row['params_after']:.0%} | {row['loss_step0']:.4f} | {old} | {new} |")
    return "\n".join(told) + "\n"


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--zoo", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of model folders. "
              "Default: the zoo in the shared folder.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("benchmarks/results/layers"))
@click.option("--models", required=True, help="Comma-separated names of trojaned models.")
@click.option("--images", default=2000, help="Test images to measure on.")
@click.option("--threads", default=1)
@click.option("--label", default="", help="A word kept with every result, such as the commit.")
def main(zoo: Path | None, results: Path, models: str, images: int, threads: int, label: str) -> None:
    """See the module."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    zoo = zoo or shared_folder() / "zoo"
    results.mkdir(parents=True, exist_ok=True)
    for model in models.split(","):
        run_model(zoo, model, images, results, label)
        click.echo(model, err=True)
    told = table(load_results(results))
    write(told, results.with_suffix(".md"))
    click.echo(told)


if __name__ == "__main__":
    main()
