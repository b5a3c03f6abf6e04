"""Data-free evidence, one signal per file; `collect` runs them all."""

from deepsanitizer.classifier import Classifier
from deepsanitizer.signals import dictionary, place, universal
from deepsanitizer.signals.universal import plain_margin
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Evidence, Run

UNIVERSAL_FAMILIES = ("add", "blend", "patch", "filter", "warp")

__all__ = ["UNIVERSAL_FAMILIES", "collect", "plain_margin", "windows_for"]


def windows_for(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Window sizes and strides of the search by place: 6, 10 and 14 pixels of a 32-pixel image, at most half."""
    side = min(shape[1:])
    pairs = {(max(2, round(side * window / 32)), max(1, round(side * stride / 32)))
             for window, stride in ((6, 3), (10, 4), (14, 6))}
    return sorted((window, stride) for window, stride in pairs if window <= side // 2)


def collect(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str = "scan",
            families: tuple[str, ...] = UNIVERSAL_FAMILIES, quick: bool = False) -> tuple[Evidence, ...]:
    """All signals on one model, in a fixed order; `quick` takes fewer steps, images and finalists throughout."""
    evidence = []
    for family in families:
        if quick:
            found = universal.detect(classifier, dummies, run, family=family, purpose=purpose, steps=24, batch=24,
                                     short=(8, 10), finalists=5)
        else:
            found = universal.detect(classifier, dummies, run, family=family, purpose=purpose)
        evidence.append(found)
    for family in (name for name, kind in FAMILIES.items() if kind.entries):
        evidence.append(dictionary.detect(classifier, dummies, run, family=family))
    for window, stride in windows_for(classifier.spec.shape):
        evidence += place.detect(classifier, dummies, run, window=window, stride=stride, purpose=purpose,
                                 first=(6, 8) if quick else (8, 10), second=(10, 16) if quick else (14, 20),
                                 score_on=80 if quick else 160)
    return tuple(evidence)
