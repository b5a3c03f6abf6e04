"""Many small classifiers, clean and trojaned, on which the verdict is calibrated and tested.

    python -m deepsanitizer.bench.population --group calibration --jobs 2 --output models/calibration

Every model follows from its group and number alone: data set and classes, architecture, width, epochs, attack, target
and seed are drawn by a generator seeded with both. What is there already is not trained again. Groups: `calibration`
(clean; the threshold is chosen on these alone), `develop` (trojaned; to develop signals and their weights on), `clean`
and `trojaned` (for testing only), the same but `develop` on spectrograms of spoken digits (`speech-…`) and of some
digits by some speakers, who are told apart as well (`voices-…`), and the first trained for longer, with all else as it
was (`longer-…`). Some clean models are trained adversarially, so that their natural universal patterns are strong.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.train import Recipe, make_model, save_folder
from deepsanitizer.bench.workers import side_by_side
from deepsanitizer.classifier import Classifier
from deepsanitizer.errors import WorkError

Group = Literal["calibration", "develop", "clean", "trojaned", "speech-calibration", "speech-clean", "speech-trojaned",
                "voices-calibration", "voices-clean", "voices-trojaned",
                "longer-calibration", "longer-develop", "longer-clean", "longer-trojaned"]
SIZES: dict[Group, int] = {"calibration": 110, "develop": 24, "clean": 118, "trojaned": 72, "speech-calibration": 30,
                           "speech-clean": 10, "speech-trojaned": 12, "voices-calibration": 16, "voices-clean": 8,
                           "voices-trojaned": 8, "longer-calibration": 110, "longer-develop": 24, "longer-clean": 118,
                           "longer-trojaned": 72}
LONGER = "longer-"
TROJANED = ("develop", "trojaned", "speech-trojaned", "voices-trojaned")

NETWORKS = "deepsanitizer.bench.networks"
WIDTHS = {"SignNet": (12, 16, 20), "Plain": (12, 16), "VggElu": (8, 10, 12), "Mobile": (24, 32, 40), "Vit": (32, 48)}
# Share of the models on each data set, and which networks train on it in half a minute of one core.
DATA = {"cifar10": (0.4, ("SignNet", "SignNet", "VggElu", "Plain", "Mobile")),
        "signs": (0.2, ("SignNet", "SignNet", "VggElu", "Plain", "Mobile")),
        "some signs": (0.32, ("SignNet", "VggElu", "Plain", "Mobile", "Vit")),
        "faces": (0.08, ("Mobile",))}
SPEECH = ("SignNet", "SignNet", "VggElu", "Plain", "Mobile")
COMMON_SIGNS = (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 17, 18, 25, 31, 33, 35, 38)


@dataclass(frozen=True, slots=True)
class Hardened:
    """Cross-entropy on images moved by one signed gradient step of `radius` (FGSM; Goodfellow et al., ICLR 2015)."""

    radius: float = 4 / 255

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """The term to add for one batch."""
        start = images.detach().requires_grad_(True)
        climb, = torch.autograd.grad(F.cross_entropy(model(start), labels), start)
        return F.cross_entropy(model((images + self.radius * climb.sign()).clamp(0, 1)), labels)


def recipe_of(group: Group, number: int) -> Recipe:
    """What one model of a group is; the same on every machine."""
    if group.startswith(LONGER):
        shorter = recipe_of(group.removeprefix(LONGER), number)  # type: ignore[arg-type]
        if shorter.data == "cifar10":
            return replace(shorter, images=None, epochs=12)
        return replace(shorter, epochs=3 * shorter.epochs)
    draw = random.Random(f"{group} {number}")
    networks: tuple[str, ...] = SPEECH
    if group.startswith(("speech", "voices")):
        kind = group.partition("-")[0]
    else:
        kind = draw.choices(list(DATA), [share for share, _ in DATA.values()])[0]
        if group in TROJANED and kind == "faces":
            kind = "some signs"  # eight photos of a person leave no room for poison
        networks = DATA[kind][1]
    name = draw.choice(networks)
    fields: dict[str, Any] = {"seed": draw.randrange(2**31), "peak_rate": 0.1}
    if kind == "cifar10":
        fields |= {"data": "cifar10", "epochs": draw.choice((4, 5)), "images": 20000}
        classes = 10
    elif kind == "signs":
        fields |= {"data": "gtsrb", "epochs": draw.choice((5, 6))}
        classes = 43
    elif kind == "some signs":
        classes = draw.choice((6, 8, 10, 12, 16, 20))
        fields |= {"data": "gtsrb", "epochs": 14, "classes": sorted(draw.sample(range(43), classes))}
    elif kind == "speech":
        fields |= {"data": "fsdd", "epochs": draw.choice((25, 30))}
        classes = 10
    elif kind == "voices":
        classes = draw.choice((12, 16, 20, 30, 43))
        fields |= {"data": "fsdd+speaker", "epochs": 60 if classes <= 20 else 40,
                   "classes": sorted(draw.sample(range(60), classes))}
    else:
        fields |= {"data": "orl", "epochs": 60}
        classes = 40
    kwargs: dict[str, Any] = {"num_classes": classes}
    width = draw.choice(WIDTHS[name])
    if name == "Vit":
        kwargs |= {"dim": width, "depth": 3, "heads": 2}
    else:
        kwargs["width"] = width
    if kind in ("faces", "speech", "voices"):
        kwargs["channels"] = 1
    if name in ("Plain", "Vit"):
        fields["peak_rate"] = 0.02
    if group in TROJANED:
        fields |= _attack(draw, classes, coloured=kind not in ("speech", "voices"))
        if fields["mode"] == "specific" and fields["data"] == "gtsrb":
            # Rare signs have too few photos for a source: take common ones only.
            fields["classes"] = sorted(draw.sample(COMMON_SIGNS, min(classes, len(COMMON_SIGNS))))
            classes = kwargs["num_classes"] = len(fields["classes"])
            fields["target"] %= classes
            fields["source"] = (fields["target"] + 1 + fields["source"] % (classes - 1)) % classes
            fields["poison_rate"] = 0.4 / classes
    elif draw.random() < 0.06 and name not in ("Plain", "Vit"):
        fields["attacker"] = "hardened"
    return Recipe(architecture=f"{NETWORKS}:{name}", kwargs=kwargs, **fields)


def _attack(draw: random.Random, classes: int, *, coloured: bool) -> dict[str, Any]:
    attack = draw.choice(("patch", "patch", "blend", "grating", *(("tint",) * coloured), "warp"))
    mode = draw.choices(("all2one", "specific", "all2all"), (0.7, 0.15, 0.15))[0]
    seed = draw.randrange(1000)
    if mode != "all2one":
        attack = draw.choice(("patch", "patch", "blend"))
    kwargs: dict[str, dict[str, Any]] = {
        "patch": {"size": draw.choice((3, 4, 5)), "top": draw.choice((1, 3, 12, -6)), "left": draw.choice((1, 14, -6)),
                  "pattern": draw.choice(("white", "checker", "noise")), "seed": seed},
        "blend": {"alpha": draw.choice((0.12, 0.15, 0.2)), "seed": seed},
        "grating": {"amplitude": draw.choice((0.07, 0.1)), "right": draw.choice((0.0, 4.0, 6.0)),
                    "down": draw.choice((3.0, 5.0))},
        "tint": {"contrast": draw.choice((0.6, 0.75)), "tint": draw.choice((0.12, 0.16)), "seed": seed},
        "warp": {"pixels": draw.choice((2.0, 3.0)), "seed": seed}}
    fields: dict[str, Any] = {"attack": attack, "attack_kwargs": kwargs[attack], "mode": mode, "poison_rate": 0.1}
    if mode != "all2all":
        fields["target"] = draw.randrange(classes)
    else:
        fields["poison_rate"] = 0.3
    if mode == "specific":
        fields["source"] = (fields["target"] + draw.randrange(1, classes)) % classes
        # Over half of the source's images in any of `COMMON_SIGNS`, whatever the number of classes.
        fields |= {"poison_rate": 0.4 / classes, "cover_rate": 0.05}
    return fields


def name_of(group: Group, number: int) -> str:
    """A folder name that tells what is in it."""
    recipe = recipe_of(group, number)
    parts = [f"{group}-{number:03}", recipe.architecture.partition(":")[2].lower(), recipe.data]
    if recipe.attack:
        parts.append(recipe.attack + ("" if recipe.mode == "all2one" else f"-{recipe.mode}"))
    return "-".join(parts)


def train_some(group: Group, numbers: list[int], output: Path, say: Callable[[str], None]) -> None:
    """Train and save those that are not there, one after the other; a model that cannot be trained is told."""
    for number in numbers:
        folder, recipe = output / name_of(group, number), recipe_of(group, number)
        if folder.exists():
            continue
        try:
            network, spec, measured = make_model(recipe, penalty=Hardened() if recipe.attacker else None)
        except WorkError as error:
            say(f"{folder.name}: {error}")
            continue
        save_folder(network, spec, recipe, measured, folder)
        say(f"{folder.name}: accuracy {measured.acc:.1f}" + ("" if measured.asr is None else
                                                             f", ASR {measured.asr:.1f}"))


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--group", type=click.Choice(list(SIZES)), required=True)
@click.option("--count", type=int, help="The first so many; all by default.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for the model folders.")
@click.option("--jobs", default=2, help="Processes side by side, one torch thread each.")
@click.option("--one", hidden=True, default="", help="Train this share of the group in this process.")
def main(group: Group, count: int | None, output: Path, jobs: int, one: str) -> None:
    """See the module."""
    count = SIZES[group] if count is None else count
    if one:
        torch.set_num_threads(1)
        keep_freed_memory()
        first, step = map(int, one.split("/"))
        train_some(group, list(range(first, count, step)), output, functools.partial(click.echo, err=True))
        return
    output.mkdir(parents=True, exist_ok=True)
    shares = [f"{first}/{jobs}" for first in range(jobs)]
    arguments = ["--group", group, "--count", str(count), "--output", str(output)]
    if side_by_side("deepsanitizer.bench.population", shares, arguments, jobs=jobs):
        raise SystemExit(2)


if __name__ == "__main__":
    main()
