"""A patch that carries one class to one goal, and hardly any other class: evidence for source-specific backdoors.

What: the search of `search.routes` over all pairs of source and goal. A patch's value is its margin times the share
of other classes' dummies that it does not carry along. The statistic is the best route's lead over the next one, by the
plain margin and by what patches do elsewhere (the median): networks with small plain margins let all patches through.
Why it works: a trigger trained not to work on other classes does not; a natural patch that carries a class to another
makes objects of the other class, which carry more classes along.
Limits: patches only; on small networks natural routes are nearly as strong (docs/research/log.md, 44).
"""

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import Routes, places_for, routed, routes
from deepsanitizer.signals.place import as_matrix
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult

MOST_CLASSES = 50  # the search takes some patches for every pair


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, window: int, purpose: str = "scan") -> Evidence:
    """One window size. `success` is the share of other classes' dummies that the best patch does not carry along."""
    name, classes = "routes", classifier.spec.num_classes
    if not 3 <= classes <= MOST_CLASSES:
        return Evidence(SignalResult(name=name, kind="specific", applicable=False,
                                     reason=f"it is for 3 to {MOST_CLASSES} classes"))
    before, plain = run.meter.passes, dummies.plain_margin
    found = routes(classifier, dummies, run, purpose=f"{purpose} routes", window=window,
                   where=places_for(classifier.spec.shape, window, classes))
    values = valued(found)
    if len(values) < 2:
        return Evidence(SignalResult(name=name, kind="specific", applicable=False,
                                     reason="the dummies are of too few classes"))
    (source, target), (_, runner_up) = values[0][0], values[1]
    value = values[0][1]
    unit = plain + found.elsewhere.abs().median().item()
    result = SignalResult(
        name=name, kind="specific", applicable=True, source=source, target=target, margin=value, runner_up=runner_up,
        threshold=max(runner_up, 0.0) + plain, statistic=(value - runner_up) / unit, family="place", window=window,
        success=1 - found.carried[found.pairs.index((source, target))].item(),
        matrix=as_matrix(_as_cells(values, classes)), passes=run.meter.passes - before)
    return Evidence(result, routed(found, (source, target)))


def valued(found: Routes) -> list[tuple[tuple[int, int], float]]:
    """Each route with the value of its best patch, highest first."""
    value = found.margin * (1 - found.carried)
    best: dict[tuple[int, int], float] = {}
    for pair, worth in zip(found.pairs, value.tolist(), strict=True):
        best[pair] = max(best.get(pair, float("-inf")), worth)
    return sorted(best.items(), key=lambda item: -item[1])


def _as_cells(values: list[tuple[tuple[int, int], float]], classes: int) -> Tensor:
    cells = torch.full((classes, classes), float("-inf"))
    for (source, target), value in values:
        cells[source, target] = value
    return cells
