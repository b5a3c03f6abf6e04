"""Dummies without a local trigger: the windows in which patches were found show another part of the same image.

What: each window that a patch of the bank occupies is filled with what lies elsewhere in the dummy; the classifier
answers the result anew.
Why it works: dummies curated on a trojaned network carry the trigger. Where one class is the goal, its dummies can be
left out; where every class is one, what they carry must go. On own all-to-all networks a repair from such dummies
leaves an ASR of 6 where plain ones leave 9 to 53 (docs/research/log.md, 38).
Limits: only triggers whose place is known; what a dummy carries at other places stays.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.types import Dummies, Run, Trigger


def cleansed(classifier: Classifier, dummies: Dummies, found: Sequence[Trigger], run: Run, *,
             purpose: str = "cleanse") -> Dummies:
    """The dummies with the windows of all patches in `found` filled; the same ones where there is no such patch."""
    windows = [trigger.params for trigger in found if trigger.family == "place"]
    if not windows:
        return dummies
    generator, (height, width) = run.generator(purpose), dummies.images.shape[2:]
    images = dummies.images.clone()
    for params in windows:
        (top, left), side = params["corner"][0].tolist(), params["picture"].shape[-1]
        down, right = (int(torch.randint(size // 4, size - size // 4 + 1, (), generator=generator))
                       for size in (height, width))
        elsewhere = torch.roll(dummies.images, (down, right), (2, 3))
        inside = (..., slice(top, top + side), slice(left, left + side))
        images[inside] = elsewhere[inside]
    run.meter.add(len(images), backward=False)
    return replace(dummies, images=images, logits=logits_of(classifier, images).to(dummies.logits.device))
