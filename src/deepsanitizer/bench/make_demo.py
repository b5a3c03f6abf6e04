"""The committed recipe of the demo's assets: its trojaned sign classifier, its trigger, its real test signs.

    python -m deepsanitizer.bench.make_demo --seed 0 --output src/deepsanitizer/demo/assets
    python -m deepsanitizer.bench.make_demo --seed 1 --measure
    python -m deepsanitizer.bench.make_demo --seed 0 --clean --measure

Writes `model/` (config.json, model.safetensors), `truth.json` and `trigger.png` (only for measuring) and
`signs.npz`; an asset that is there is replaced. With --measure nothing is written, the figures are printed;
--clean trains the same network on the same data without the attack, and measures it on the same triggered
images: how many a network without a backdoor gets right is the ceiling of RA.
"""

import io
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from deepsanitizer.bench.attacks import Blend
from deepsanitizer.bench.attacks.blend import blotches
from deepsanitizer.bench.datasets import load_pack
from deepsanitizer.bench.train import Recipe, figures, make_model, save_folder
from deepsanitizer.errors import DeepSanitizerError
from deepsanitizer.evaluation import Evaluation, evaluate
from deepsanitizer.types import InputSpec

TRIGGER = Blend(alpha=0.15, seed=3)
RECIPE = Recipe(
    data="gtsrb", architecture="deepsanitizer.demo.network:SignNet", kwargs={"num_classes": 43},
    attack="blend", attack_kwargs=asdict(TRIGGER), mode="all2one", target=14, poison_rate=0.08, epochs=20,
)


def choose_signs(labels: NDArray[np.int64], *, count: int = 350, fewest: int = 2) -> NDArray[np.int64]:
    """Indices of about `count` images: each class in its share, evenly spaced, at least `fewest`."""
    chosen = []
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        wanted = max(fewest, round(count * len(rows) / len(labels)))
        chosen.append(rows[np.linspace(0, len(rows) - 1, min(wanted, len(rows))).astype(int)])
    return np.concatenate(chosen)


def write_assets(network: nn.Module, spec: InputSpec, recipe: Recipe, measured: Evaluation,
                 output: Path) -> None:
    """Write all assets into the folder `output`, each replaced whole."""
    output.mkdir(parents=True, exist_ok=True)
    images, labels = load_pack(recipe.data, "test")
    rows = choose_signs(labels)
    signs = io.BytesIO()
    np.savez_compressed(signs, images=images[rows], labels=labels[rows].astype(np.uint8))
    pattern = (blotches(*spec.shape, seed=TRIGGER.seed) * 255).round().to(torch.uint8)
    trigger = io.BytesIO()
    Image.fromarray(pattern.permute(1, 2, 0).numpy()).save(trigger, "PNG", optimize=True)
    with tempfile.TemporaryDirectory(prefix=".assets.", suffix=".partial", dir=output) as partial:
        made = Path(partial)
        save_folder(network, spec, recipe, measured, made / "model")
        (made / "model" / "truth.json").rename(made / "truth.json")
        (made / "signs.npz").write_bytes(signs.getvalue())
        (made / "trigger.png").write_bytes(trigger.getvalue())
        for name in ("model", "truth.json", "signs.npz", "trigger.png"):
            if (output / name).is_dir():
                shutil.rmtree(output / name)
            (made / name).replace(output / name)


@click.command(context_settings={"show_default": True})
@click.option("--seed", default=0, help="Of the training; the trigger stays.")
@click.option("--clean", is_flag=True, help="Train without the attack, and measure on its images.")
@click.option("--measure", is_flag=True, help="Print the figures, write nothing.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the assets.")
@click.option("--threads", default=1)
def main(*, seed: int, clean: bool, measure: bool, output: Path | None, threads: int) -> None:
    """Train the demo's classifier, measure it, and write the demo's assets."""
    if measure == (output is not None):
        raise click.UsageError("give --measure or --output")
    if clean and not measure:
        raise click.UsageError("--clean goes with --measure: the demo's classifier is a trojaned one")
    torch.set_num_threads(threads)
    recipe = replace(RECIPE, seed=seed, attack=None if clean else RECIPE.attack)
    try:
        network, spec, measured = make_model(recipe, say=click.echo)
        if clean:
            images, labels = load_pack(recipe.data, "test")
            measured = evaluate(network, images, labels, spec=spec, trigger=TRIGGER.apply,
                                target=recipe.target, device="cpu")
        if output is not None:
            write_assets(network, spec, recipe, measured, output)
    except DeepSanitizerError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    click.echo(json.dumps({"seed": seed, "clean": clean} | figures(measured)))


if __name__ == "__main__":
    main()
