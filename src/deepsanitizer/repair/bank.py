"""The bank: the transformations that a repair unlearns, searched anew for each accusation.

What: for an image family, restarts for the target in one batch, of which the strongest are kept; for patches, the
search by place at the window size that accused.
Why it works: one search may meet a natural pattern, the strongest of several meets the trigger. A pattern far
stronger than the trigger would swamp the least squares, so the strength is first lowered until the margin is no
more than `most_plain_margins` times the network's own plain margin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.search import (
    column_means,
    corners,
    dictionary,
    permutation,
    permuting,
    places,
    places_for,
    routed,
    routes,
    triggers_at,
    universal,
)
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Kind, Run, SignalResult, Trigger


@dataclass(frozen=True, slots=True)
class Lead:
    """One accusation to follow: a family (for patches with window and stride), the kind, its classes.

    `limit` is the margin that other classes reach: below it the target is as hard to reach as they are. `rivals` are
    the classes that come closest.
    """

    family: str
    kind: Kind
    source: int | None
    target: int | None
    limit: float
    window: int = 0
    stride: int = 0
    strength: float = 0.0  # of an image family, matched to the network
    rivals: tuple[int, ...] = ()
    natural_share: float = 0.0  # of its margin, in the scan, that other classes reach
    unit: float = 0.0  # the lead over other classes for which the scan gives a score of 1


def match_strength(classifier: Classifier, dummies: Dummies, family: str, target: int, run: Run, *,
                   plain_margin: float, most_plain_margins: float = 25.0,
                   ladder: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125), steps: int = 20,
                   batch: int = 32) -> float:
    """The largest rung of the ladder whose pattern is not absurdly strong, in the family's units."""
    strengths = torch.tensor(ladder) * FAMILIES[family].strength
    found = universal(classifier, dummies, family, [target] * len(ladder), run, steps=steps, batch=batch,
                      strengths=strengths, purpose=f"strength {family} {target}", score_on=64)
    fit = found.margin <= most_plain_margins * plain_margin
    return strengths[int(fit.int().argmax()) if fit.any() else -1].item()


class Thrift(TypedDict, total=False):
    """Keywords of `follow` that an effort sets."""

    restarts: int
    steps: int
    batch: int


QUICK: Thrift = {"restarts": 6}
FULL: Thrift = {}


@dataclass(frozen=True, slots=True)
class Followed:
    """What a search for one lead found, strongest first (at least one), and what other classes reach beside it, with
    the strongest trigger of each rival where rivals were searched.
    """

    lead: Lead
    triggers: tuple[Trigger, ...]
    others: float
    rivals: tuple[Trigger, ...] = ()

    @property
    def margin(self) -> float:
        """Of the strongest."""
        return self.triggers[0].margin


def follow(classifier: Classifier, dummies: Dummies, lead: Lead, run: Run, *, purpose: str,
           restarts: int = 8, steps: int = 25, batch: int = 12, keep: float = 0.7, compete: bool = False,
           rival_restarts: int = 2) -> Followed:
    """Search what one lead says on this classifier.

    Image families take `restarts` at the lead's strength; those below `keep` of the strongest are dropped, and other
    classes are those of the scan. Many short restarts give a more various bank than few long ones, at less cost; weaker
    patterns in it leave more of the trigger (docs/research/log.md, 8). Where they are to `compete`, the search is at
    the family's full strength, as in the scan, and the rivals are searched beside it on the same weights. By place,
    classes compete in any case.
    """
    if lead.family == "place":
        if lead.kind == "all2all":
            return _follow_permutation(classifier, dummies, lead, run, purpose)
        if lead.source is not None:
            return _follow_route(classifier, dummies, lead, run, purpose)
        return _follow_place(classifier, dummies, lead, run, purpose)
    assert lead.target is not None
    start = _best_entries(classifier, dummies, lead, run, restarts) if FAMILIES[lead.family].entries else None
    strength = FAMILIES[lead.family].strength if compete else lead.strength
    found = universal(classifier, dummies, lead.family, [lead.target] * restarts, run, start=start,
                      strengths=torch.full((restarts,), strength), source=lead.source, steps=steps, batch=batch,
                      purpose=f"{purpose} {lead.family} {lead.target}")
    others, rivals = lead.limit, []
    if compete and lead.rivals:
        against = universal(classifier, dummies, lead.family, [k for k in lead.rivals for _ in range(rival_restarts)],
                            run, steps=steps, batch=batch, purpose=f"{purpose} {lead.family} rivals")
        others = against.margin.max().item()
        for first, rival in enumerate(lead.rivals):
            best = first * rival_restarts + int(against.margin[first * rival_restarts:][:rival_restarts].argmax())
            rivals.append(Trigger(lead.family, against.take(best), against.strength[best].item(), rival, None,
                                  against.margin[best].item()))
    floor = found.margin.max() - (1 - keep) * found.margin.max().abs()  # also right where nothing succeeds
    order = [i for i in found.margin.argsort(descending=True).tolist() if found.margin[i] >= floor]
    return Followed(lead, tuple(Trigger(lead.family, found.take(i), found.strength[i].item(), lead.target, lead.source,
                                        found.margin[i].item()) for i in order), others, tuple(rivals))


def _best_entries(classifier: Classifier, dummies: Dummies, lead: Lead, run: Run, count: int) -> dict[str, Tensor]:
    """The dictionary's best entries for the target, from which a search then climbs."""
    found = dictionary(classifier, dummies, lead.family, run)
    order = column_means(found.cells)[:, lead.target].argsort(descending=True)
    order = order[torch.arange(count) % len(order)]
    return {name: value[order.to(value.device)] for name, value in found.params.items()}


def _follow_place(classifier: Classifier, dummies: Dummies, lead: Lead, run: Run, purpose: str, *,
                  most_rivals: int = 3) -> Followed:
    where = places(classifier, dummies, run, purpose=f"{purpose} place {lead.window}", window=lead.window,
                   stride=lead.stride, first=(6, 8), second=(12, 16), keep=16, only_best=True)
    assert lead.target is not None
    columns = column_means(where.cells)
    values, rest = columns[:, lead.target], columns.max(0).values.clone()
    rest[lead.target] = float("-inf")
    rivals = tuple(triggers_at(where, columns[:, k], target=k, source=None)[0]
                   for k in rest.topk(min(most_rivals, len(rest) - 1)).indices.tolist() if rest[k].isfinite())
    if not values.isfinite().any():  # minus infinity would pass for a trigger that is gone
        raise CannotJudgeError("no dummy is of a class from which the accused trigger could start",
                               "Take more dummies with --effort, or name a class with --target.")
    return Followed(lead, triggers_at(where, values, target=lead.target, source=None), rest.max().item(), rivals)


def _follow_route(classifier: Classifier, dummies: Dummies, lead: Lead, run: Run, purpose: str, *,
                  most_rivals: int = 3) -> Followed:
    """From one source: the accused route at every place, and the source's routes to all other goals at a few."""
    assert lead.source is not None
    assert lead.target is not None
    route, shape = (lead.source, lead.target), classifier.spec.shape
    found = routes(classifier, dummies, run, purpose=f"{purpose} route", window=lead.window, wanted=[route],
                   where=corners(shape[1:], lead.window, lead.stride), first=(4, 6), second=(12, 16), keep=16)
    if not found.pairs:  # minus infinity would pass for a trigger that is gone
        raise CannotJudgeError(f"no dummy is of class {lead.source}, from which the accused trigger starts",
                               "Take more dummies with --effort, or name a class with --target.")
    classes = classifier.spec.num_classes
    against = routes(classifier, dummies, run, purpose=f"{purpose} other routes", window=lead.window,
                     wanted=[(lead.source, k) for k in range(classes) if k != lead.target],
                     where=places_for(shape, lead.window, classes), first=(4, 4), second=(12, 16), keep=16)
    nearest = list(dict.fromkeys(against.pairs))[:most_rivals]
    rivals = tuple(routed(against, pair, most=1)[0] for pair in nearest)
    return Followed(lead, routed(found, route), max((rival.margin for rival in rivals), default=0.0), rivals)


def lead_of(result: SignalResult, stride: int = 0, *, most_rivals: int = 3) -> Lead:
    """The lead that a signal gives; an image family's strength is its own until it is matched."""
    known = [(value, k) for k, value in enumerate(result.per_target) if value is not None and k != result.target]
    limit = max(result.runner_up or 0.0, 0.0)
    share = min(1.0, limit / max(result.margin or 0.0, 1e-6))
    unit = 0.0 if result.threshold is None else max(0.0, result.threshold - limit)
    return Lead(result.family, result.kind, result.source, result.target, limit, result.window, stride,
                FAMILIES[result.family].strength, tuple(k for _, k in sorted(known, reverse=True)[:most_rivals]), share,
                unit)


def matched(classifier: Classifier, dummies: Dummies, leads: Sequence[Lead], run: Run, *,
            plain_margin: float) -> list[Lead]:
    """The leads with strengths that fit the network; patches keep theirs."""
    return [lead if lead.family == "place" or lead.target is None else
            replace(lead, strength=match_strength(classifier, dummies, lead.family, lead.target, run,
                                                  plain_margin=plain_margin)) for lead in leads]


def _follow_permutation(classifier: Classifier, dummies: Dummies, lead: Lead, run: Run, purpose: str) -> Followed:
    plain = dummies.plain_margin
    found = permutation(classifier, dummies, run, purpose=f"{purpose} permutation", window=lead.window,
                        stride=lead.stride, plain_margin=plain)
    return Followed(lead, permuting(found, plain), max(0.0, found.elsewhere + plain))
