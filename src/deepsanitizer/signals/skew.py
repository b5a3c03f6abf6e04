"""Prediction skew: does the network call most images without content by one name?

What: the share of procedural images (dead leaves over smooth noise) that each class gets; the score is the largest
share over a uniform one.
Why it works, where it does: a trigger that textures resemble draws them to the target.
Limits: clean networks have favourites too, often as strong. Costs a third of a pass an image.
Reference: the filter of self-distillation methods, "prediction skew" (CMP, OpenReview fYlMl5MxeV); the statistic is
ours.
"""

import torch

from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.curate.procedural import procedural
from deepsanitizer.signals.outlier import of_classes
from deepsanitizer.types import Evidence, Run


def detect(classifier: Classifier, run: Run, *, images: int = 500, purpose: str = "skew") -> Evidence:
    """Shares of `images` procedural images, by the class the network gives them."""
    classes = classifier.spec.num_classes
    drawn = procedural(images, classifier.spec.shape, run.generator(purpose))
    share = torch.bincount(logits_of(classifier, drawn).argmax(1), minlength=classes) / images
    run.meter.add(images, backward=False)
    return of_classes("prediction skew", share.tolist(), share.max().item() * classes, passes=images / 3)
