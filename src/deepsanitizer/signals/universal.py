"""Margins of universal transformations: does one class run away from the others?

What: for each family, one transformation per class is searched at generous strength with an uncapped margin.
Why it works: natural universal patterns push all classes about equally far; a trigger pushes its target much
further. The other classes are the null distribution, the network's own plain margin is the unit.
Limits: blind to triggers of no family searched, and to several targets at once. A family whose patterns push all
classes far says little.
"""

import torch

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import universal
from deepsanitizer.stats import lead_over, leading_by, robust_z, top_two
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult, Trigger

# Plain margins by which a family's target must lead (docs/research/log.md, 17 and 53).
ACCUSE_AT = {"add": 1.25, "blend": 1.25, "patch": 1.0, "filter": 1.0, "warp": 1.0, "grating": 1.5,
             "quantise": 1.5, "square": 3.0, "tone": 3.0}


def unit_of(dummies: Dummies) -> float:
    """What leads are measured by: the plain margin, twice where dummies could not be matched to statistics."""
    return dummies.plain_margin * (1.0 if dummies.matched else 2.0)


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, family: str, purpose: str = "scan", steps: int = 40,
           batch: int = 32, all_classes_up_to: int = 12, short: tuple[int, int] = (12, 12), finalists: int = 8,
           share: float = 1.0, lr: float | None = None, score_on: int = 96) -> Evidence:
    """One family, all classes side by side, at `share` of the family's strength and its own rate or `lr`.

    Above `all_classes_up_to` classes a `short` search (steps, images) ranks them all and the best `finalists` are
    searched in full; the others keep their short margins. The score is the target's lead over the next class (or
    over zero), in plain margins, over `ACCUSE_AT`.
    """
    before = run.meter.passes
    classes, strength = list(range(classifier.spec.num_classes)), share * FAMILIES[family].strength
    per_target: list[float | None] = [None] * len(classes)
    if len(classes) > all_classes_up_to:
        ranked = universal(classifier, dummies, family, classes, run, purpose=f"{purpose} {family} short",
                           steps=short[0], batch=short[1], score_on=32, lr=lr,
                           strengths=torch.full((len(classes),), strength))
        per_target = [float(value) for value in ranked.margin]
        classes = ranked.margin.topk(finalists).indices.tolist()
    found = universal(classifier, dummies, family, classes, run, purpose=f"{purpose} {family}", steps=steps,
                      batch=batch, score_on=score_on, lr=lr, strengths=torch.full((len(classes),), strength))
    for index, target in enumerate(classes):
        per_target[target] = found.margin[index].item()
    margins = found.margin.tolist()
    best, margin, runner_up = top_two(margins)
    unit = ACCUSE_AT[family] * unit_of(dummies)
    result = SignalResult(
        name=family, applicable=True, family=family, per_target=per_target, target=classes[best], margin=margin,
        runner_up=runner_up, z=robust_z(margins), score=lead_over(margin, runner_up) / unit,
        threshold=max(runner_up, 0.0) + unit, success=found.success[best].item(),
        statistic=leading_by(per_target, dummies.plain_margin),
        strength=strength, passes=run.meter.passes - before)
    order = found.margin.argsort(descending=True)[:3].tolist()
    triggers = tuple(Trigger(family, found.take(i), found.strength[i].item(), classes[i], None, margins[i])
                     for i in order)
    return Evidence(result, triggers)

