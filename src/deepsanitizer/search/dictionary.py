"""The dictionary: structured transformations on a grid fixed in advance, forward only, all classes from one pass.

Why: a gradient sees a grating only among many natural patterns; trying each frequency and phase reads it exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search.cells import cells_of, column_means
from deepsanitizer.search.probes import Probes
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Run


@dataclass(frozen=True, slots=True)
class Scanned:
    """The entries that reached most for any class, with their source x goal margins `cells` (P, K, K)."""

    family: str
    params: dict[str, Tensor]
    strength: float
    cells: Tensor


def dictionary(classifier: Classifier, dummies: Dummies, family: str, run: Run, *, first: int = 16, second: int = 96,
               keep: int = 32, images_at_once: int = 640, probes: Probes | None = None) -> Scanned:
    """Try all entries on `first` dummies, the best `keep` for any class on `second`; where there are no more, once.
    They are the family's own dictionary at its strength, or `probes`.

    Every class keeps its own best entry, so that the runner-up is measured as well as the winner.
    """
    if probes is None:
        entries = FAMILIES[family].entries
        assert entries is not None, family
        probes = Probes(family, entries(classifier.spec.shape), FAMILIES[family].strength)
    strength = probes.strength
    params = {name: value.to(classifier.compute.device) for name, value in probes.params.items()}
    if len(next(iter(params.values()))) > keep:
        run.step(f"trying {family} entries", 0, 2)
        cells = cells_of(classifier, dummies, family, params, run, strength=strength, count=first,
                         images_at_once=images_at_once)
        means = column_means(cells)
        chosen = torch.cat([means.max(1).values.topk(keep).indices, means.argmax(0)]).unique()
        params = {name: value[chosen.to(value.device)] for name, value in params.items()}
    run.step(f"trying {family} entries", 1, 2)
    cells = cells_of(classifier, dummies, family, params, run, strength=strength, count=second,
                     images_at_once=images_at_once)
    return Scanned(family, params, strength, cells)
