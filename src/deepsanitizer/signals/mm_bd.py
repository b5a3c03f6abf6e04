"""MM-BD: is one class's largest margin over the whole input space an outlier?

What: for each class some noise images climb its margin over the best other class, in the image cube, and the largest
counts. A gamma distribution is fitted to all classes but the largest; the p-value is that of the largest of K draws.
Why it works, where it does: a backdoor overfits to its trigger, and its target's margin grows beyond the others'.
Limits: many targets have no outlier; the maximum of a network with many natural patterns is large anyway.
Reference: Wang et al., "MM-BD", IEEE S&P 2024, section IV (30 images, SGD with rate 1e-2, at most 300 steps); here
the gamma is fitted by its moments.
"""

import math
from collections.abc import Sequence

import torch

from deepsanitizer.classifier import Classifier
from deepsanitizer.search.universal import margin_to
from deepsanitizer.signals.outlier import of_classes
from deepsanitizer.stats import leading_by
from deepsanitizer.types import Evidence, Run


def detect(classifier: Classifier, run: Run, *, images: int = 30, steps: int = 300, lr: float = 1e-2,
           momentum: float = 0.2, plain: float | None = None, images_at_once: int = 640,
           purpose: str = "maximum margin") -> Evidence:
    """All classes in one batch. The statistic is -log10 of the p-value or, with the `plain` margin, the lead by it,
    to be compared with clean networks.
    """
    before, generator, device = run.meter.passes, run.generator(purpose), classifier.compute.device
    classes = classifier.spec.num_classes
    start = torch.rand(classes, images, *classifier.spec.shape, generator=generator)
    best: list[float] = []
    parts = list(torch.arange(classes).split(max(1, images_at_once // images)))
    for number, part in enumerate(parts):
        pixels, goal = start[part].to(device).requires_grad_(True), part.to(device)
        optimiser = torch.optim.SGD([pixels], lr=lr, momentum=momentum)
        for step in range(steps):
            run.step("maximising margins", number * steps + step, len(parts) * steps)
            margin = margin_to(classifier(pixels.flatten(0, 1)).view(len(part), images, -1), goal)
            (pixels.grad,) = torch.autograd.grad(-margin.sum(), [pixels])
            optimiser.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
            run.meter.add(len(part) * images, backward=True)
        with torch.no_grad():
            margin = margin_to(classifier(pixels.flatten(0, 1)).view(len(part), images, -1), goal)
        best += margin.amax(1).tolist()
    statistic = (-math.log10(max(largest_p_value(best), 1e-30)) if plain is None
                 else leading_by(best, plain))
    return of_classes("maximum margin", best, statistic, passes=run.meter.passes - before)


def largest_p_value(values: Sequence[float]) -> float:
    """That the largest of K draws of a gamma, fitted to all values but the largest, is as large; 1 where unknown."""
    *others, largest = sorted(max(value, 0.0) for value in values)
    mean = sum(others) / max(1, len(others))
    variance = sum((value - mean) ** 2 for value in others) / max(1, len(others) - 1)
    if len(others) < 2 or mean <= 0 or variance <= 0:
        return 1.0
    shape, scale = mean**2 / variance, variance / mean
    below: float = torch.special.gammainc(torch.tensor(shape, dtype=torch.float64),
                                   torch.tensor(largest / scale, dtype=torch.float64)).item()
    return 1.0 - float(below ** len(values))
