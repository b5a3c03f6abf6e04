"""Bounded activations, made drop-in, to compare with: no channel may answer a trigger more than it answers dummies.

What: the bound of a channel is the median (`quantile`), over plain dummies, of its largest value in an image, after
each batch-norm (each convolution in a network without). A bounded network needs operations that the checkpoint's
architecture does not have, so the plain one is relearned in closed form to answer T(x) as the bounded one does.
Why it is here: bounds fall local triggers almost free, and need no goal.
Limits: a full-image trigger drives no channel beyond its bound; the relearning does need transformations that act as
the trigger does. Transformers are bounded at their convolutions only.
Reference: Wang et al., "MM-BD", IEEE S&P 2024, section V (bounds there are optimised on a few clean images).
"""

from collections.abc import Sequence

from deepsanitizer.channels import bounded, bounds
from deepsanitizer.classifier import Classifier
from deepsanitizer.repair import closed_form
from deepsanitizer.types import Dummies, Run, Trigger


def repair(original: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *, quantile: float = 0.5,
           keep: float = 4.0, pairs: int = 1000, purpose: str = "bound") -> Classifier:
    """A new classifier that answers transformed dummies as the bounded original does."""
    limits = bounds(original, dummies.images, quantile=quantile)
    run.meter.add(len(dummies), backward=False)
    return next(closed_form.ladder(original, dummies, bank, run, keeps=(keep,), pairs=pairs, purpose=purpose,
                                   answering=lambda: bounded(original, limits)))
