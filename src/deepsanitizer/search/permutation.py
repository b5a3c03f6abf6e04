"""The search for a permutation: one patch that sends every class to a goal of its own, no two to the same.

What: patterns at many places take Adam steps on the margins (source, goal) under a soft assignment, in which every goal
has one source (Sinkhorn's balancing of the margins averaged over the steps).
Why it works: a natural pattern pulls all images towards one or two classes, which is worth nothing once they must go
to different ones. Where each source simply takes the goal it is sent to most easily, such patterns beat the trigger.
Of many classes some are sources enough: with all of 43 a step sees too few images of each pair (docs/research/log.md,
58).
Limits: two classes that share a goal are met in part. Full-image patterns are hardly found so (docs/research/log.md,
38).
Reference: Sinkhorn, "A relationship between arbitrary positive matrices and doubly stochastic matrices", Annals of
Mathematical Statistics 1964.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search.cells import balanced, cells_of, margins_of_all
from deepsanitizer.search.places import corners
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Run, Trigger

FORGET = 0.7  # what the average of the margins keeps at each step


@dataclass(frozen=True, slots=True)
class Permuting:
    """Patterns at P places, strongest first, and what they do.

    `cells` (P, K, K): mean margin of goal j over dummies of source s, -inf where s == j or s is no source or was not
    met. `goals` (P, K): the goal assigned to each source, -1 where there is none. `margin` (P,): their mean margin.
    `reached` (P,): the share of sources whose mean margin is above 0. `elsewhere`: the median place's margin after the
    first round.
    """

    params: dict[str, Tensor]
    cells: Tensor
    goals: Tensor
    margin: Tensor
    reached: Tensor
    elsewhere: float


def permutation(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str, window: int, stride: int,
                plain_margin: float, lr: float = 0.5, first: tuple[int, int] = (8, 20),
                second: tuple[int, int] = (30, 40), keep: int = 6, per_class: int = 2,
                score_per_class: int = 20, most_sources: int | None = None) -> Permuting:
    """Search a square window at every place, then the `keep` best places longer.

    `first` and `second` are steps and images a step, of which there are at least `per_class` for each source: all
    classes, or `most_sources` drawn of those that the dummies have.
    """
    generator, device = run.generator(purpose), classifier.compute.device
    dummies, sources = _draw_sources(dummies, classifier.spec.num_classes, most_sources, generator)
    count = int(sources.sum())
    where = corners(classifier.spec.shape[1:], window, stride)
    size = min(window, *classifier.spec.shape[1:])
    params = {"picture": (0.5 * torch.randn(len(where), classifier.spec.shape[0], size, size,
                                            generator=generator)).to(device), "corner": where.to(device)}
    temperature, least = 0.3 * plain_margin, per_class * count
    total = first[0] + second[0]
    params = _climb(classifier, dummies, sources, params, run, generator, (first[0], max(first[1], least)), (0, total),
                    lr, temperature)
    early = _assigned(cells_of(classifier, dummies, "place", params, run, strength=1.0, count=max(60, least)),
                      sources, temperature)[1]
    best = early.topk(min(keep, len(early))).indices.to(device)
    params = _climb(classifier, dummies, sources, {name: value[best] for name, value in params.items()}, run, generator,
                    (second[0], max(second[1], least)), (first[0], total), 0.6 * lr, temperature)
    cells = cells_of(classifier, dummies, "place", params, run, strength=1.0, count=score_per_class * count)
    goals, margin, reached = _assigned(cells, sources, temperature)
    order = margin.argsort(descending=True)
    return Permuting({name: value[order.to(device)] for name, value in params.items()}, cells[order], goals[order],
                     margin[order], reached[order], early.median().item())


def _draw_sources(dummies: Dummies, classes: int, most: int | None,
                  generator: torch.Generator) -> tuple[Dummies, Tensor]:
    """The dummies of at most so many classes, and which these are (K,) bool: all of both where there are no more."""
    device = dummies.images.device
    if most is None or classes <= most:
        return dummies, torch.ones(classes, dtype=torch.bool, device=device)
    known = dummies.labels.unique()
    chosen = known[torch.randperm(len(known), generator=generator)[:most].to(known.device)]
    sources = torch.zeros(classes, dtype=torch.bool, device=device)
    sources[chosen] = True
    mine = sources[dummies.labels]
    return replace(dummies, images=dummies.images[mine], logits=dummies.logits[mine]), sources


def permuting(found: Permuting, plain_margin: float, *, share: float = 0.5) -> tuple[Trigger, ...]:
    """The patches that reach at least `share` as many classes as the strongest does, as triggers.

    Their margins are counted from where untouched dummies are: above 0 where the patch brings the goals nearer.
    """
    least = share * found.reached[0].item()
    return tuple(
        Trigger("place", {name: value[k:k + 1] for name, value in found.params.items()}, 1.0, None, None,
                found.margin[k].item() + plain_margin, tuple(found.goals[k].tolist()))
        for k in range(len(found.margin)) if k == 0 or found.reached[k] >= least)


def _climb(classifier: Classifier, dummies: Dummies, sources: Tensor, params: dict[str, Tensor], run: Run,
           generator: torch.Generator, plan: tuple[int, int], span: tuple[int, int], lr: float, temperature: float, *,
           images_at_once: int = 640) -> dict[str, Tensor]:
    """Adam on the pictures of all places; the params with the last pictures."""
    kind, device, classes = FAMILIES["place"], classifier.compute.device, classifier.spec.num_classes
    (steps, batch), (begun, total) = plan, span
    picture, corner = params["picture"].clone().requires_grad_(True), params["corner"]
    optimiser = torch.optim.Adam([picture], lr=lr, betas=(0.5, 0.9))
    order, places = balanced(dummies, generator), len(picture)
    summed, weight = (torch.zeros(places, classes, classes, device=device), torch.zeros(classes, device=device))
    for step in range(steps):
        run.step("searching permutations", begun + step, total)
        chosen = order[torch.arange(step * batch, (step + 1) * batch) % len(order)]
        images = dummies.images[chosen]
        rows = torch.nn.functional.one_hot(dummies.labels[chosen], classes).float()
        met = rows.sum(0)
        weight = FORGET * weight + met
        optimiser.zero_grad()
        for part in torch.arange(places).split(max(1, images_at_once // batch)):
            some = slice(int(part[0]), int(part[-1]) + 1)
            changed = kind.apply({"picture": picture[some], "corner": corner[some]}, images,
                                 torch.ones(len(part), device=device))
            margin = margins_of_all(classifier(changed.flatten(0, 1)).float().view(len(part), batch, -1))
            of_pairs = torch.einsum("ns,pnj->psj", rows, margin)
            summed[some] = FORGET * summed[some] + of_pairs.detach()
            share = assignment(summed[some] / weight.clamp_min(1e-3)[None, :, None], sources, temperature)
            gain = (share * of_pairs / met.clamp_min(1)[None, :, None]).sum((1, 2)) / (met > 0).sum()
            (-gain.sum()).backward()
        optimiser.step()
        run.meter.add(places * batch, backward=True)
    return {"picture": picture.detach(), "corner": corner}


def assignment(margins: Tensor, sources: Tensor, temperature: float, *, rounds: int = 30) -> Tensor:
    """Margins (P, K, K) -> shares (P, K, K) >= 0 of goal j for source s, no diagonal: the rows of `sources` (K,) bool
    sum to 1, the others to 0; columns to 1, or to no more where there are fewer sources than goals.
    """
    own = torch.eye(margins.shape[-1], dtype=torch.bool, device=margins.device)
    none, every = ~sources[:, None], bool(sources.all())
    log = (margins / temperature).masked_fill(own, -1e4)
    for _ in range(rounds):
        log = (log - log.logsumexp(-1, keepdim=True)).masked_fill(none, -1e4)
        taken = log.logsumexp(-2, keepdim=True)
        log = log - (taken if every else taken.clamp_min(0))
    return log.exp()


def _assigned(cells: Tensor, sources: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cells -> each source's goal, the mean margin of these, and the share of sources with one above 0."""
    met = cells.isfinite().any(2)
    share = assignment(cells.masked_fill(~cells.isfinite(), -1e3), sources.cpu(), temperature)
    goals = share.argmax(2)
    value = cells.gather(2, goals[..., None])[..., 0]
    usable = met & value.isfinite()
    count = usable.sum(1).clamp_min(1)
    return (goals.masked_fill(~usable, -1), value.masked_fill(~usable, 0).sum(1) / count,
            (usable & (value > 0)).sum(1) / count)
