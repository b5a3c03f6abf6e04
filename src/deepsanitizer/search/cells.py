"""Source x goal margins of many transformations at once: what every own-goal search and the dictionary score by."""

from collections.abc import Callable

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Run


def cells_of(classifier: Classifier, dummies: Dummies, family: str, params: dict[str, Tensor], run: Run, *,
             strength: float, count: int, images_at_once: int = 640) -> Tensor:
    """Mean margins (P, K, K) of goal over source, with `count` dummies of all classes; -inf where not met.

    All goals are read from the same logits: the cost does not depend on the number of classes.
    """
    cells, met = _averaged(classifier, dummies, family, params, run, margins_of_all, strength, count, images_at_once)
    never = torch.eye(len(met), dtype=torch.bool) | (met == 0)[:, None]
    return cells.masked_fill(never, float("-inf"))


def answers_of(classifier: Classifier, dummies: Dummies, family: str, params: dict[str, Tensor], run: Run, *,
               strength: float, count: int, images_at_once: int = 640) -> tuple[Tensor, Tensor]:
    """The share (P, K, K) of each class's dummies that is given each answer, and how many there are (K,)."""
    def answers(logits: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)

    return _averaged(classifier, dummies, family, params, run, answers, strength, count, images_at_once)


@torch.no_grad()
def _averaged(classifier: Classifier, dummies: Dummies, family: str, params: dict[str, Tensor], run: Run,
              of: Callable[[Tensor], Tensor], strength: float, count: int, images_at_once: int
              ) -> tuple[Tensor, Tensor]:
    """What `of` makes of the logits under each of P transformations, averaged over each class's dummies (P, K, K), and
    how many these are (K,).
    """
    classes, kind, device = classifier.spec.num_classes, FAMILIES[family], classifier.compute.device
    order = balanced(dummies, torch.Generator().manual_seed(0))[:count]
    images, own = dummies.images[order], dummies.labels[order]
    rows = torch.nn.functional.one_hot(own, classes).float()
    met = rows.sum(0)
    rows = rows / met.clamp_min(1)
    total, parts = len(next(iter(params.values()))), []
    for some in torch.arange(total).split(max(1, images_at_once // len(order))):
        here = {name: value[some.to(device)] for name, value in params.items()}
        changed = kind.apply(here, images, torch.full((len(some),), strength, device=device))
        logits = classifier(changed.flatten(0, 1)).view(len(some), len(order), -1)
        parts.append(torch.einsum("ns,pnj->psj", rows, of(logits)).cpu())
    run.meter.add(total * len(order), backward=False)
    return torch.cat(parts), met.cpu()


def column_means(cells: Tensor) -> Tensor:
    """Cells (P, K, K) -> mean margin of each goal over the sources met (P, K)."""
    met = cells.isfinite()
    return cells.masked_fill(~met, 0).sum(1) / met.sum(1).clamp_min(1)


def own_goals(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Cells (P, K, K) -> mean over sources of their best goal's margin (P,), and the goals (P, K), -1: not met."""
    best = cells.max(2)
    met = best.values.isfinite()
    mean = best.values.masked_fill(~met, 0).sum(1) / met.sum(1).clamp_min(1)
    return mean, best.indices.masked_fill(~met, -1)


def margins_of_all(logits: Tensor) -> Tensor:
    """Logits (..., K) -> margin of each class over the best other one (..., K)."""
    top, where = logits.topk(2, -1)
    best = top[..., :1].expand_as(logits)
    return logits - best.scatter(-1, where[..., :1], top[..., 1:2])


def balanced(dummies: Dummies, generator: torch.Generator) -> Tensor:
    """An order of the dummies in which the classes take turns."""
    labels = dummies.labels.cpu()
    order = torch.randperm(len(labels), generator=generator)
    turn = torch.zeros(len(labels), dtype=torch.long)
    for label in labels.unique():
        mine = (labels[order] == label).nonzero()[:, 0]
        turn[mine] = torch.arange(len(mine))
    jitter = torch.rand(len(labels), generator=generator)
    return order[(turn + jitter).argsort()].to(dummies.images.device)
