"""The search by place: a window at every place, every image its own goal, all places in one batch."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search.cells import balanced, cells_of, margins_of_all
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Run, Trigger


@dataclass(frozen=True, slots=True)
class Places:
    """A search by place: patterns at P places, and what each sends where.

    `cells` (P, K, K): mean margin of goal j over dummies of source s, -inf where s == j or s was not met.
    """

    window: int
    params: dict[str, Tensor]
    cells: Tensor
    kept: Tensor  # (P,) bool: searched to the end; the others stopped after the first round


def places(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str, window: int, stride: int,
           lr: float = 0.5, first: tuple[int, int] = (8, 10), second: tuple[int, int] = (14, 20), keep: int = 24,
           score_per_class: int = 4, score_on: int = 160, only_best: bool = False, images_at_once: int = 640) -> Places:
    """Search a square window at every place; every image picks the goal that it is sent to most easily.

    One search tells all-to-one, source-specific and all-to-all triggers, at a cost that does not depend on the
    number of classes: `first` (steps, images a step) for all places, `second` for the `keep` best ones. The
    objective adds, per place, the log-sum-exp over classes of the mean margin and the mean over images of the
    log-sum-exp over classes of the image's margins. With `only_best` the places stopped early are left out.
    """
    generator, device = run.generator(purpose), classifier.compute.device
    where = corners(classifier.spec.shape[1:], window, stride)
    size = min(window, *classifier.spec.shape[1:])
    picture = 0.5 * torch.randn(len(where), classifier.spec.shape[0], size, size, generator=generator)
    params = {"picture": picture.to(device), "corner": where.to(device)}
    everywhere = torch.arange(len(where))
    total = first[0] + second[0]
    early = _climb(classifier, dummies, params, everywhere, run, generator, lr, first, (0, total), images_at_once)
    alive = early.topk(min(keep, len(where))).indices.sort().values
    _climb(classifier, dummies, params, alive, run, generator, lr, second, (first[0], total), images_at_once)
    kept = torch.zeros(len(where), dtype=torch.bool)
    kept[alive] = True
    everything = Places(window, params, torch.empty(0), kept)
    if only_best:
        params = {name: value[kept.to(device)] for name, value in params.items()}
        everything = Places(window, params, torch.empty(0), kept[kept])
    cells = cells_of(classifier, dummies, "place", params, run, strength=1.0,
                     count=min(score_on, score_per_class * classifier.spec.num_classes), images_at_once=images_at_once)
    return replace(everything, cells=cells)


def _climb(classifier: Classifier, dummies: Dummies, params: dict[str, Tensor], which: Tensor, run: Run,
           generator: torch.Generator, lr: float, plan: tuple[int, int], span: tuple[int, int],
           images_at_once: int) -> Tensor:
    """Adam on the pictures at some places, in place; returns the last objective of each."""
    kind, device, (steps, batch) = FAMILIES["place"], classifier.compute.device, plan
    picture = params["picture"][which.to(device)].clone().requires_grad_(True)
    corner = params["corner"][which.to(device)]
    optimiser = torch.optim.Adam([picture], lr=lr, betas=(0.5, 0.9))
    labels, order = dummies.labels, balanced(dummies, generator)
    objective = torch.zeros(len(which))
    for step in range(steps):
        run.step("searching patches by place", span[0] + step, span[1])
        chosen = order[torch.arange(step * batch, (step + 1) * batch) % len(order)]
        images, own = dummies.images[chosen], labels[chosen]
        optimiser.zero_grad()
        for part in torch.arange(len(which)).split(max(1, images_at_once // batch)):
            some = slice(int(part[0]), int(part[-1]) + 1)
            opacity = torch.ones(len(part), device=device)
            changed = kind.apply({"picture": picture[some], "corner": corner[some]}, images, opacity)
            margin = margins_of_all(classifier(changed.flatten(0, 1)).view(len(part), batch, -1))
            is_own = torch.nn.functional.one_hot(own, margin.shape[2]).bool()[None]
            mean = margin.masked_fill(is_own, 0).sum(1) / (~is_own).sum(1).clamp_min(1)
            each = torch.logsumexp(margin.masked_fill(is_own, float("-inf")), 2).mean(1)
            gain = torch.logsumexp(mean, 1) + each
            (-gain.sum()).backward()
            objective[some] = gain.detach().cpu()
        optimiser.step()
        run.meter.add(len(which) * batch, backward=True)
    params["picture"][which.to(device)] = picture.detach()
    return objective


def triggers_at(found: Places, values: Tensor, *, target: int | None, source: int | None, share: float = 0.5,
                least: float = 1.0, most: int = 6, goals: Tensor | None = None) -> tuple[Trigger, ...]:
    """The places with at least `share` of the best value, strongest first, as triggers."""
    limit = max(share * values.max().item(), least)
    order = [place for place in values.argsort(descending=True).tolist()
             if bool(found.kept[place]) and values[place] >= limit]
    order = order or [int(values.argmax())]
    return tuple(
        Trigger("place", {name: value[place:place + 1] for name, value in found.params.items()}, 1.0, target, source,
                values[place].item(), None if goals is None else tuple(goals[place].tolist()))
        for place in order[:most])


def corners(size: tuple[int, ...], window: int, stride: int) -> Tensor:
    """Top left corners (P, 2) that cover an image with windows."""
    def along(length: int) -> list[int]:
        last = max(0, length - window)
        return sorted({*range(0, last + 1, stride), last})

    return torch.tensor([(row, column) for row in along(size[0]) for column in along(size[1])])
