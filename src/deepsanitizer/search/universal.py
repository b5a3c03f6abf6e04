"""Searches for universal, label-changing transformations of one family, all classes or restarts in one batch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.triggers import FAMILIES, Family
from deepsanitizer.types import Dummies, Run


@dataclass(frozen=True, slots=True)
class Found:
    """G transformations of one family: parameters, strengths, mean margins and success shares, each (G, ...)."""

    family: str
    params: dict[str, Tensor]
    strength: Tensor
    margin: Tensor
    success: Tensor

    def take(self, index: int) -> dict[str, Tensor]:
        """The parameters of one of them, leading dimension 1."""
        return {name: value[index:index + 1] for name, value in self.params.items()}


def margin_to(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits (G, B, K) and a class for each group (G,) -> margin of it over the best other class (G, B)."""
    index = classes.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    own = logits.gather(2, index)[..., 0]
    return own - logits.scatter(2, index, float("-inf")).amax(2)


def universal(classifier: Classifier, dummies: Dummies, family: str, classes: list[int], run: Run, *, purpose: str,
              strengths: Tensor | None = None, start: dict[str, Tensor] | None = None, steps: int = 40,
              batch: int = 32, noise: float | None = None, lr: float | None = None, source: int | None = None,
              score_on: int = 96, images_at_once: int = 640) -> Found:
    """Search one transformation for each entry of `classes` (repeat a class for restarts), side by side.

    `strengths` (G,) and `lr` replace the family's own, `start` its random parameters; `source` keeps to
    dummies of one class. At most `images_at_once` images go through the network together.
    Costs len(classes) * batch * steps passes and a little for the scores.
    """
    kind, generator, device = FAMILIES[family], run.generator(purpose), classifier.compute.device
    goal = torch.tensor(classes, device=device)
    strength = torch.full((len(classes),), kind.strength) if strengths is None else strengths
    strength = strength.to(device)
    rate = kind.lr if lr is None else lr
    deviation = kind.noise if noise is None else noise
    begin = kind.init(len(classes), classifier.spec.shape, generator) if start is None else start
    params = {name: value.detach().clone().to(device).requires_grad_(value.is_floating_point())
              for name, value in begin.items()}
    free = [value for value in params.values() if value.requires_grad]
    optimiser = torch.optim.Adam(free, lr=rate, betas=(0.5, 0.9))
    images, labels = _of_source(dummies, source)
    for step in range(steps):
        run.step(f"searching {family} triggers", step, steps)
        optimiser.param_groups[0]["lr"] = rate * (0.3 + 0.35 * (1 + math.cos(math.pi * step / steps)))
        chosen = torch.randint(len(images), (min(batch, len(images)),), generator=generator).to(device)
        grain = (deviation * torch.randn(images[chosen].shape, generator=generator)).to(device) if deviation else None
        optimiser.zero_grad()
        for part in torch.arange(len(classes)).split(max(1, images_at_once // len(chosen))):
            span = slice(int(part[0]), int(part[-1]) + 1)
            changed = kind.apply({n: v[span] for n, v in params.items()}, images[chosen], strength[span])
            margin = _margins(classifier, changed if grain is None else changed + grain, goal[span])
            others = (labels[chosen][None] != goal[span, None]).float()
            (-(margin * others).sum(1) / others.sum(1).clamp_min(1)).sum().backward()
        optimiser.step()
        run.meter.add(len(classes) * len(chosen), backward=True)
    final = {name: value.detach() for name, value in params.items()}
    margin, success = score(classifier, (images[:score_on], labels[:score_on]), kind, final, strength, goal, run,
                            images_at_once=images_at_once)
    return Found(family, final, strength, margin, success)


@torch.no_grad()
def score(classifier: Classifier, dummies: tuple[Tensor, Tensor], kind: Family, params: dict[str, Tensor],
          strength: Tensor, goal: Tensor, run: Run, *, images_at_once: int = 640) -> tuple[Tensor, Tensor]:
    """Mean margins and success shares (G,) of transformations on (images, labels) of other classes, on the CPU."""
    images, labels = dummies
    rows = []
    for groups in torch.arange(len(goal)).split(images_at_once):
        span = slice(int(groups[0]), int(groups[-1]) + 1)
        some = {name: value[span] for name, value in params.items()}
        rows.append(torch.cat([_margins(classifier, kind.apply(some, part, strength[span]), goal[span])
                               for part in images.split(max(1, images_at_once // len(groups)))], 1))
    run.meter.add(len(goal) * len(images), backward=False)
    margin, others = torch.cat(rows), (labels[None] != goal[:, None]).float()
    count = others.sum(1).clamp_min(1)
    return ((margin * others).sum(1) / count).cpu(), (((margin > 0) * others).sum(1) / count).cpu()


def _margins(classifier: Classifier, changed: Tensor, goal: Tensor) -> Tensor:
    """Transformed images (G, B, C, H, W) -> margins (G, B)."""
    return margin_to(classifier(changed.flatten(0, 1)).view(*changed.shape[:2], -1), goal)


def _of_source(dummies: Dummies, source: int | None) -> tuple[Tensor, Tensor]:
    labels = dummies.labels
    if source is None or not (labels == source).any():
        return dummies.images, labels
    return dummies.images[labels == source], labels[labels == source]
