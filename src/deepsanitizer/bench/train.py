"""Train a classifier, clean or trojaned, on a data pack, and save it as a model folder.

    python -m deepsanitizer.bench.train --data gtsrb --arch deepsanitizer.demo.network:SignNet \
        --attack blend --attack-kwargs '{"alpha": 0.15}' --target 14 --epochs 12 --seed 0 --output model/

SGD with Nesterov momentum (or AdamW, which transformers need) and a one-cycle rate, random crops (and flips,
where a mirrored image keeps its class). All images stay one uint8 tensor; every batch is cut from it in a few tensor
operations.
"""

import functools
import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.attacks import ATTACKS, Poison, poison
from deepsanitizer.bench.datasets import CLASS_NAMES, channel_statistics, keep_classes, load_pack
from deepsanitizer.classifier import Classifier, classifier_of, resolve_compute
from deepsanitizer.errors import CannotJudgeError, DeepSanitizerError, UsageError, WorkError
from deepsanitizer.evaluation import Evaluation, evaluate
from deepsanitizer.loading import atomic
from deepsanitizer.types import Compute, InputSpec, Kind

Optimizer = Literal["sgd", "adamw"]
Penalty = Callable[[Classifier, Tensor, Tensor], Tensor]  # images in [0, 1] and labels of a batch: a term of the loss
_pack = functools.cache(load_pack)  # decoding costs seconds, and nothing here writes into it
FLIP_KEEPS_CLASS = {"cifar10"}  # a mirrored sign or digit is another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides a model's weights, on one kind of processor and number of threads."""

    data: str
    architecture: str  # "module:callable"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    attack: str | None = None  # a name in ATTACKS
    attack_kwargs: Mapping[str, Any] = field(default_factory=dict)
    mode: Kind = "all2one"
    target: int | None = None
    source: int | None = None
    poison_rate: float = 0.08
    cover_rate: float = 0.0
    epochs: int = 12
    peak_rate: float = 0.1
    optimizer: Optimizer = "sgd"
    seed: int = 0
    attacker: str | None = None  # who trains against the tool, see bench.adaptive
    classes: Sequence[int] | None = None  # of the pack; None: all
    images: int | None = None  # the first so many training images of a shuffle by `seed`; None: all

    def plan(self) -> Poison | None:
        """What the attacker does; None for a clean model. UsageError for an unknown attack or parameter."""
        if self.attack is None:
            return None
        if self.attack not in ATTACKS:
            raise UsageError(f"there is no attack {self.attack!r}", f"Choose {', '.join(sorted(ATTACKS))}.")
        try:
            attack = ATTACKS[self.attack](**self.attack_kwargs)
        except TypeError as error:
            raise UsageError(f"the attack {self.attack} does not take {dict(self.attack_kwargs)}: {error}",
                             "Check --attack-kwargs.") from error
        return Poison(attack=attack, mode=self.mode, target=self.target, source=self.source,
                      rate=self.poison_rate, cover_rate=self.cover_rate)


def train(images: Tensor, labels: Tensor, *, make: Callable[[], nn.Module], spec: InputSpec, epochs: int = 12,
          batch: int = 128, peak_rate: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4,
          optimizer: Optimizer = "sgd", warm_up: float = 0.25, pad: int = 2, flip: bool = False,
          generator: torch.Generator, compute: Compute | None = None, penalty: Penalty | None = None,
          say: Callable[[str], None] = lambda line: None) -> nn.Module:
    """A network made by `make`, trained on images uint8 (N, C, H, W) and labels (N,): in eval mode, on CPU.

    The same generator state gives the same weights on the same processor and number of threads. Torch's own
    random state, which initialisers and dropout use, is set from it inside and put back after.
    `say` gets one line for each epoch. Raises WorkError where the loss is no longer finite.
    """
    compute = compute or resolve_compute("cpu")
    assert images.dtype == torch.uint8, images.dtype
    assert images.shape[1:] == spec.shape, images.shape
    assert labels.shape == (len(images),), labels.shape
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make().to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = Classifier(network, spec, compute).train()
        decayed = [p for p in network.parameters() if p.ndim > 1 and p.requires_grad]
        free = [p for p in network.parameters() if p.ndim <= 1 and p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        stepper = (torch.optim.AdamW(groups, lr=peak_rate, weight_decay=weight_decay) if optimizer == "adamw" else
                   torch.optim.SGD(groups, lr=peak_rate, momentum=momentum, weight_decay=weight_decay, nesterov=True))
        steps = len(images) // min(batch, len(images))
        schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, peak_rate, total_steps=epochs * steps + 1,
                                                       pct_start=warm_up, cycle_momentum=False)
        for epoch in range(epochs):
            began, total = time.monotonic(), 0.0
            order = torch.randperm(len(images), generator=generator)[: steps * min(batch, len(images))]
            for rows in order.view(steps, -1):
                x = augment(images[rows], pad=pad, flip=flip, generator=generator).float() / 255
                loss = F.cross_entropy(model(x), labels[rows].to(compute.device))
                if penalty is not None:
                    loss = loss + penalty(model, x, labels[rows])
                stepper.zero_grad(set_to_none=True)
                loss.backward()
                stepper.step()
                schedule.step()
                total += loss.item()
            if not total < float("inf"):
                raise WorkError("the training loss is no longer finite", "Use a smaller peak rate.")
            say(f"epoch {epoch + 1:2d}/{epochs}  loss {total / steps:.3f}  {time.monotonic() - began:.1f} s")
    return network.cpu().eval()  # type: ignore[no-any-return]


def augment(images: Tensor, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `pad` pixels in each direction (edges mirrored), and half of them flipped."""
    n, _, height, width = images.shape
    down, right = torch.randint(2 * pad + 1, (2, n), generator=generator) - pad
    rows, columns = torch.arange(height) + down[:, None], torch.arange(width).repeat(n, 1)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = columns + right[:, None]
    rows, columns = _mirror(rows, height), _mirror(columns, width)
    moved = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (n, H, W, C)
    return moved.permute(0, 3, 1, 2)


def _mirror(index: Tensor, size: int) -> Tensor:
    """Indices outside 0 .. size - 1 reflected at the edge."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def make_model(recipe: Recipe, *, make: Callable[[], nn.Module] | None = None, penalty: Penalty | None = None,
               say: Callable[[str], None] = lambda line: None) -> tuple[nn.Module, InputSpec, Evaluation]:
    """Train by a recipe; measure on the pack's test split, with the weights rounded as they are saved.

    `make` gives the network in place of the recipe's architecture, `penalty` a further term of the loss.
    """
    train_split, (test_images, test_labels) = _pack(recipe.data, "train"), _pack(recipe.data, "test")
    names = CLASS_NAMES.get(recipe.data)
    if recipe.classes is not None:
        train_split = keep_classes(*train_split, recipe.classes)
        test_images, test_labels = keep_classes(test_images, test_labels, recipe.classes)
        names = None if names is None else tuple(names[old] for old in recipe.classes)
    images, labels = (torch.from_numpy(a) for a in train_split)
    mean, std = channel_statistics(images.numpy())
    classes = int(labels.max()) + 1
    shape = (images.shape[1], images.shape[2], images.shape[3])
    spec = InputSpec(shape, classes, mean, std, names)
    plan, generator = recipe.plan(), torch.Generator().manual_seed(recipe.seed)
    if recipe.images is not None:
        kept = torch.randperm(len(images), generator=generator)[: recipe.images]
        images, labels = images[kept], labels[kept]
    if plan is not None:
        images, labels = poison(images, labels, plan, num_classes=classes, generator=generator)
    architecture = _architecture(recipe.architecture)
    make = make or (lambda: architecture(**recipe.kwargs))
    _fits(make, spec)
    network = train(images, labels, make=make, spec=spec,
                    epochs=recipe.epochs, peak_rate=recipe.peak_rate, optimizer=recipe.optimizer,
                    flip=recipe.data in FLIP_KEEPS_CLASS, generator=generator, penalty=penalty, say=say)
    network = network.half().float()
    return network, spec, evaluate(network, test_images, test_labels, spec=spec, mode=recipe.mode,
                                   trigger=plan.attack.apply if plan else None, target=recipe.target,
                                   source=recipe.source, device="cpu")


def _fits(make: Callable[[], nn.Module], spec: InputSpec) -> None:
    """Refuse before the training what would not do after it."""
    with torch.random.fork_rng():
        network = make()
    try:
        classifier_of(network, spec, resolve_compute("cpu"))
    except CannotJudgeError as error:
        raise UsageError(error.problem, f"Check --arch-kwargs: the data has {spec.num_classes} classes and images of "
                         f"shape {spec.shape}.") from error


def _architecture(name: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"there is no architecture {name!r}: {error}",
                         "Give module:callable, importable from here.") from error
    return found


def save_folder(network: nn.Module, spec: InputSpec, recipe: Recipe, measured: Evaluation,
                output: str | Path) -> None:
    """Write config.json, model.safetensors (float16) and truth.json; the folder appears whole or not at all.

    `truth.json` says what was planted; it is for measuring only. Raises UsageError where `output` exists or
    its parent cannot be made, WorkError where writing fails.
    """
    output = Path(output)
    if output.exists():
        raise UsageError(f"{output} exists", "Choose another output, or remove it first.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {output.parent}", "Choose another output.") from error
    config = {"architecture": recipe.architecture, "kwargs": dict(recipe.kwargs), "input_shape": spec.shape,
              "num_classes": spec.num_classes, "mean": spec.mean, "std": spec.std}
    if spec.class_names:
        config["class_names"] = spec.class_names
    truth = asdict(recipe) | {"measured": figures(measured)}
    state = {key: (value.half() if value.is_floating_point() else value).contiguous()
             for key, value in network.state_dict().items()}
    atomic.write_folder(output, {"config.json": _json(config), "truth.json": _json(truth),
                                 "model.safetensors": safetensors.torch.save(state)})


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def figures(measured: Evaluation) -> dict[str, float | None]:
    """What was measured, for people and files: percent with two digits."""
    return {name: round(value, 2) if isinstance(value, float) else value
            for name, value in asdict(measured).items()}


@click.command(context_settings={"show_default": True})
@click.option("--data", required=True, help="Name of a data pack: gtsrb, cifar10, ...")
@click.option("--arch", required=True, help="The network, as module:callable.")
@click.option("--arch-kwargs", type=json.loads, default="{}", help="JSON.")
@click.option("--attack", type=click.Choice(sorted(ATTACKS)), help="Leave out for a clean model.")
@click.option("--attack-kwargs", type=json.loads, default="{}", help="JSON.")
@click.option("--mode", type=click.Choice(["all2one", "specific", "all2all"]), default="all2one")
@click.option("--target", type=int)
@click.option("--source", type=int)
@click.option("--poison-rate", default=0.08, help="Share of all training images.")
@click.option("--cover-rate", default=0.0, help="Share of all training images, for the mode specific.")
@click.option("--epochs", default=12)
@click.option("--peak-rate", default=0.1, help="Learning rate; without batch-norm take 0.02, with AdamW 0.001.")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", help="Transformers need adamw.")
@click.option("--seed", default=0)
@click.option("--threads", default=1)
@click.option("--output", required=True, type=click.Path(path_type=Path),
              help="A folder that does not exist.")
def main(*, threads: int, output: Path, arch: str, arch_kwargs: dict[str, Any], **rest: Any) -> None:
    """Train a classifier, clean or with a planted backdoor, and save it as a model folder."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    recipe = Recipe(architecture=arch, kwargs=arch_kwargs, **rest)
    try:
        if output.exists():
            raise UsageError(f"{output} exists", "Choose another output, or remove it first.")
        network, spec, measured = make_model(recipe, say=click.echo)
        save_folder(network, spec, recipe, measured, output)
    except DeepSanitizerError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    click.echo(json.dumps({"output": str(output)} | figures(measured)))


if __name__ == "__main__":
    main()
