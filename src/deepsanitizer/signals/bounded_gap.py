"""The gap to the bounded network: which class lives from activations that dummies never reach?

What: bounds on every channel (`channels.bounds`, a quantile of what plain dummies reach), then the mean fall of each
class's logit on noise and on procedural images when the bounds are put on; the score is the largest fall's distance
from the median class, in median absolute deviations.
Why it works, where it does: a local trigger's channel answers beyond what ordinary images reach.
Limits: full-image triggers stay within the bounds. Transformers are bounded at their convolutions only.
Reference: Wang et al., "MM-BD", IEEE S&P 2024, section V; the statistic is ours.
"""

import torch

from deepsanitizer.channels import bounded, bounds
from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.curate.procedural import procedural
from deepsanitizer.signals.outlier import not_applicable, of_classes
from deepsanitizer.stats import robust_z
from deepsanitizer.types import Dummies, Evidence, Run


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, quantile: float = 0.9, images: int = 200,
           purpose: str = "bounded gap") -> Evidence:
    """Not applicable to networks without a convolution or batch-norm to bound."""
    limits = bounds(classifier, dummies.images, quantile=quantile)
    if not any(len(limit) for limit in limits):
        return not_applicable("bounded gap", "no layer can be bounded")
    generator, shape = run.generator(purpose), classifier.spec.shape
    drawn = torch.cat([procedural(images // 2, shape, generator), torch.rand(images // 2, *shape, generator=generator)])
    plain = logits_of(classifier, drawn)
    with bounded(classifier, limits):
        held = logits_of(classifier, drawn)
    fall = ((plain - plain.mean(1, keepdim=True)) - (held - held.mean(1, keepdim=True))).mean(0)
    run.meter.add(len(dummies) + 2 * len(drawn), backward=False)
    return of_classes("bounded gap", fall.tolist(), robust_z(fall.tolist(), least_spread=1e-2),
                      passes=(len(dummies) + 2 * len(drawn)) / 3)
