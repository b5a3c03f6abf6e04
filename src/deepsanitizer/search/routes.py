"""The search by route: a patch that carries one class, the source, to one goal.

What: for every source and goal, patterns at a few places take some Adam steps on dummies of the source alone; the
strongest take more.
Why it works: a trigger that answers to one class only is worth little to a search over all classes, which finds
natural patterns instead, and a search in which every image picks its easiest goal never asks for it. Asked for, it
leads all other routes from the first steps on.
Limits: patches only; with many classes fewer places.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search.cells import balanced, margins_of_all
from deepsanitizer.search.places import corners
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Run, Trigger


@dataclass(frozen=True, slots=True)
class Routes:
    """G patches, strongest first, each with its route and what it does.

    `pairs`: source and goal of each. `margin` (G,): the goal's mean margin over dummies of the source. `elsewhere`
    (G,): the same over dummies of all other classes. `carried` (G,): the share of those that reach the goal, too.
    """

    params: dict[str, Tensor]
    pairs: tuple[tuple[int, int], ...]
    margin: Tensor
    elsewhere: Tensor
    carried: Tensor


def routes(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str, window: int, where: Tensor,
           wanted: Sequence[tuple[int, int]] | None = None, lr: float = 0.5, first: tuple[int, int] = (4, 3),
           second: tuple[int, int] = (16, 6), keep: int = 80, score_on: int = 120,
           images_at_once: int = 640) -> Routes:
    """Search every pair of `wanted` (all by default) at the places `where` (P, 2), then the `keep` strongest longer.

    `first` and `second` are steps and images a step. Sources with fewer than two dummies are left out.
    """
    generator, device = run.generator(purpose), classifier.compute.device
    mine = [(dummies.labels == k).nonzero()[:, 0] for k in range(classifier.spec.num_classes)]
    met = [k for k, rows in enumerate(mine) if len(rows) >= 2]
    asked = [(s, t) for s in met for t in met if s != t] if wanted is None else [
        (s, t) for s, t in wanted if s in met and s != t]
    if not asked:
        nothing = torch.zeros(0)
        return Routes({}, (), nothing, nothing, nothing)
    pairs = torch.tensor(asked, dtype=torch.long).repeat_interleave(len(where), 0)
    size = min(window, *classifier.spec.shape[1:])
    picture = 0.5 * torch.randn(len(pairs), classifier.spec.shape[0], size, size, generator=generator)
    params = {"picture": picture.to(device), "corner": where.repeat(len(asked), 1).to(device)}
    total = first[0] + second[0]
    early = _climb(classifier, dummies, mine, pairs, params, run, generator, lr, first, (0, total), images_at_once)
    best = early.topk(min(keep, len(early))).indices.sort().values
    pairs, params = pairs[best], {name: value[best.to(device)] for name, value in params.items()}
    _climb(classifier, dummies, mine, pairs, params, run, generator, lr, second, (first[0], total), images_at_once)
    return _scored(classifier, dummies, pairs, params, run, max(score_on, 4 * classifier.spec.num_classes),
                   images_at_once)


def places_for(shape: tuple[int, int, int], window: int, classes: int, *, most: int = 4000,
               along: int = 4) -> Tensor:
    """Top left corners (P, 2): `along` x `along` of them, fewer where all routes would make more than `most` patches,
    but at least 2 x 2.
    """
    per_route = max(4, most // max(1, classes * (classes - 1)))
    steps = min(along, math.isqrt(per_route))
    room = min(shape[1:]) - window
    return corners(shape[1:], window, max(1, math.ceil(room / (steps - 1))))


def routed(found: Routes, route: tuple[int, int], *, share: float = 0.5, most: int = 6) -> tuple[Trigger, ...]:
    """The patches of one route with at least `share` of its best margin, strongest first, as triggers."""
    mine = [number for number, pair in enumerate(found.pairs) if pair == route]
    if not mine:
        return ()
    least = min(share * found.margin[mine[0]].item(), found.margin[mine[0]].item())
    return tuple(Trigger("place", {name: value[number:number + 1] for name, value in found.params.items()}, 1.0,
                         route[1], route[0], found.margin[number].item())
                 for number in mine if found.margin[number] >= least)[:most]


def _climb(classifier: Classifier, dummies: Dummies, mine: Sequence[Tensor], pairs: Tensor,
           params: dict[str, Tensor], run: Run, generator: torch.Generator, lr: float, plan: tuple[int, int],
           span: tuple[int, int], images_at_once: int) -> Tensor:
    """Adam on all pictures, in place; returns the last mean margin of each, (G,)."""
    kind, device, (steps, batch) = FAMILIES["place"], classifier.compute.device, plan
    picture = params["picture"].requires_grad_(True)
    optimiser = torch.optim.Adam([picture], lr=lr, betas=(0.5, 0.9))
    last, goal = torch.zeros(len(pairs)), pairs[:, 1].to(device)
    of_source = [(s, (pairs[:, 0] == s).nonzero()[:, 0]) for s in pairs[:, 0].unique().tolist()]
    for step in range(steps):
        run.step("searching patches by route", span[0] + step, span[1])
        optimiser.zero_grad()
        for source, rows in of_source:
            chosen = mine[source][torch.randint(len(mine[source]), (batch,), generator=generator).to(device)]
            for part in rows.split(max(1, images_at_once // batch)):
                here = part.to(device)
                changed = kind.apply({"picture": picture[here], "corner": params["corner"][here]},
                                     dummies.images[chosen], torch.ones(len(part), device=device))
                margin = margins_of_all(classifier(changed.flatten(0, 1)).float().view(len(part), batch, -1))
                gain = margin.gather(2, goal[here].view(-1, 1, 1).expand(-1, batch, 1))[..., 0].mean(1)
                (-gain.sum()).backward()
                last[part] = gain.detach().cpu()
        optimiser.step()
        run.meter.add(len(pairs) * batch, backward=True)
    params["picture"] = picture.detach()
    return last


@torch.no_grad()
def _scored(classifier: Classifier, dummies: Dummies, pairs: Tensor, params: dict[str, Tensor], run: Run, count: int,
            images_at_once: int) -> Routes:
    """What patches do to `count` dummies of all classes."""
    device = classifier.compute.device
    order = balanced(dummies, torch.Generator().manual_seed(0))[:count]
    images, own, goal, rows = dummies.images[order], dummies.labels[order], pairs[:, 1].to(device), []
    for part in torch.arange(len(pairs), device=device).split(max(1, images_at_once // len(order))):
        changed = FAMILIES["place"].apply({name: value[part] for name, value in params.items()}, images,
                                          torch.ones(len(part), device=device))
        margin = margins_of_all(classifier(changed.flatten(0, 1)).float().view(len(part), len(order), -1))
        rows.append(margin.gather(2, goal[part].view(-1, 1, 1).expand(-1, len(order), 1))[..., 0].cpu())
    run.meter.add(len(pairs) * len(order), backward=False)
    reached = torch.cat(rows)
    source, other = (own.cpu()[None] == pairs[:, :1]).float(), own.cpu()[None]
    rest = ((other != pairs[:, :1]) & (other != pairs[:, 1:])).float()
    margin = (reached * source).sum(1) / source.sum(1).clamp_min(1)
    margin = margin.masked_fill(source.sum(1) == 0, float("-inf"))
    of_rest = rest.sum(1).clamp_min(1)
    strongest = margin.argsort(descending=True)
    return Routes({name: value[strongest.to(device)] for name, value in params.items()},
                  tuple((s, t) for s, t in pairs[strongest].tolist()), margin[strongest],
                  ((reached * rest).sum(1) / of_rest)[strongest],
                  (((reached > 0) * rest).sum(1) / of_rest)[strongest])
