"""Attackers who know the tool: three ways to train a patch backdoor against it.

    python -m deepsanitizer.bench.adaptive --attacker margin --output models/margin
    python -m deepsanitizer.bench.adaptive --attacker extractor --clean models/clean --output models/extractor
    python -m deepsanitizer.bench.zoo --zoo models --results results --methods auto

`margin` trains against the universal pattern that sends most to its target, so that a search meets no large margin.
`spread` keeps the change that the trigger makes from standing out in any channel. `extractor` starts from a clean model
and leaves its last linear layer as it is, so that the trojan is in the extractor alone.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepsanitizer import loading
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.attacks import Attack, Patch
from deepsanitizer.bench.train import Penalty, Recipe, figures, make_model, save_folder
from deepsanitizer.bench.zoo import code_of
from deepsanitizer.classifier import Classifier
from deepsanitizer.errors import DeepSanitizerError, UsageError

Attacker = Literal["margin", "spread", "extractor"]


@dataclass(slots=True)
class SmallMargin:
    """Cross-entropy under the universal pattern that climbs the target's margin; `strength` in units of [0, 1]."""

    target: int
    strength: float = 0.1
    rate: float = 0.02
    weight: float = 0.1
    most: int = 64  # images a step
    pattern: Tensor | None = field(default=None)

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """The term to add for one batch; the pattern moves by one step."""
        chosen = (labels != self.target).nonzero()[: self.most, 0]
        if not len(chosen):
            return images.new_zeros(())
        start = torch.zeros(1, *images.shape[1:]) if self.pattern is None else self.pattern
        pattern = start.detach().requires_grad_(True)
        logits = model((images[chosen] + pattern).clamp(0, 1))
        others = logits.scatter(1, torch.full_like(labels[chosen, None], self.target), float("-inf")).amax(1)
        climb, = torch.autograd.grad((logits[:, self.target] - others).mean(), pattern, retain_graph=True)
        self.pattern = (pattern.detach() + self.rate * climb.sign()).clamp(-self.strength, self.strength)
        return self.weight * F.cross_entropy(logits, labels[chosen])


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the channel that the trigger changes most stands out of its layer, in the mean over batch norms."""

    attack: Attack
    target: int
    weight: float = 0.1
    most: int = 48  # images a step

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """The term to add for one batch. Statistics are left alone."""
        plain = images[labels != self.target][: self.most]
        if not len(plain):
            return images.new_zeros(())
        seen: list[Tensor] = []
        norms = [m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d)]
        handles = [norm.register_forward_hook(lambda module, inputs, output: seen.append(output)) for norm in norms]
        model.eval()
        try:
            model(torch.cat([plain, self.attack.apply(plain)]))
        finally:
            model.train()
            for handle in handles:
                handle.remove()
        return self.weight * torch.stack([concentration(out.float()) for out in seen]).mean()


def concentration(output: Tensor) -> Tensor:
    """Largest over mean change of a channel, from the first half of a batch (N, C, H, W) to the second."""
    plain, changed = output.chunk(2)
    change = (changed - plain).abs().mean((0, 2, 3))
    return change.amax() / change.mean().clamp_min(1e-6)


def head_frozen(clean: Path) -> nn.Module:
    """The network of a clean model folder with its last linear layer frozen."""
    network = loading.load(clean, import_from=code_of(clean.parent)).network.train()
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UsageError(f"{clean} has no linear layer", "Name a model that ends with one.")
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for parameter in linear[-1].parameters():
        parameter.requires_grad_(False)
    return network


def penalty_of(attacker: Attacker, attack: Attack, target: int, weight: float) -> Penalty | None:
    """What is added to the training loss, times `weight`."""
    if attacker == "margin":
        return SmallMargin(target, weight=weight)
    return Spread(attack, target, weight=weight) if attacker == "spread" else None


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--attacker", type=click.Choice(["margin", "spread", "extractor"]), required=True)
@click.option("--clean", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A clean model folder to start from, for `extractor`.")
@click.option("--data", default="cifar10")
@click.option("--arch", default="deepsanitizer.bench.networks:SignNet")
@click.option("--classes", default=10)
@click.option("--target", default=3)
@click.option("--weight", default=0.1, help="Of the penalty beside the cross-entropy; too much keeps the backdoor out.")
@click.option("--epochs", default=6)
@click.option("--peak-rate", default=0.1)
@click.option("--seed", default=0)
@click.option("--threads", default=1)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="A folder that does not exist.")
def main(*, attacker: Attacker, clean: Path | None, data: str, arch: str, classes: int, target: int, weight: float,
         epochs: int, peak_rate: float, seed: int, threads: int, output: Path) -> None:
    """See the module."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    recipe = Recipe(data=data, architecture=arch, kwargs={"num_classes": classes}, attack="patch",
                    attack_kwargs={}, target=target, epochs=epochs,
                    peak_rate=peak_rate, seed=seed, attacker=attacker)
    try:
        if output.exists():
            raise UsageError(f"{output} exists", "Choose another output, or remove it first.")
        if (attacker == "extractor") != (clean is not None):
            raise UsageError("--clean belongs to the attacker `extractor`, and he needs it", "See --help.")
        make: Callable[[], nn.Module] | None = None if clean is None else functools.partial(head_frozen, clean)
        attack = Patch()
        network, spec, measured = make_model(recipe, make=make, penalty=penalty_of(attacker, attack, target, weight),
                                             say=click.echo)
        save_folder(network, spec, recipe, measured, output)
    except DeepSanitizerError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    click.echo(json.dumps({"output": str(output), "attacker": attacker} | figures(measured)))


if __name__ == "__main__":
    main()
