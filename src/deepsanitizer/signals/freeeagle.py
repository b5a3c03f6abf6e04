"""FreeEagle: does the head lean towards one class on features made for others?

What: for each class a dummy feature at the inspection layer that the head takes for it (`curate/posterior.py`). The
softmax of the other classes on it, row by row, is a class-by-class matrix; the mean of each column is the class's
statistic, and the score is (largest - third quartile) / interquartile range.
Why it works, where it does: the head of a trojaned network keeps a path to the target open from any class.
Limits: a trojan that lives in the extractor alone leaves the head as it was. On the networks measured here the score
hardly tells trojaned from clean (docs/research/log.md): it supports a verdict, it makes none.
Reference: Fu et al., "FreeEagle", USENIX Security 2023, sections 4.2 and 4.3.
"""

import torch
from torch import Tensor

from deepsanitizer.curate import curate_features
from deepsanitizer.signals.outlier import of_classes, quartile_score
from deepsanitizer.split import Split
from deepsanitizer.types import Evidence, FeatureDummies, Run


def detect(parts: Split, run: Run, *, repeats: int = 1, steps: int = 1000) -> Evidence:
    """The matrix at the split's layer, all classes and repeats in one batch."""
    before = run.meter.passes
    matrix = posterior_matrix(parts, curate_features(parts, run, repeats=repeats, steps=steps))
    means = column_means(matrix)
    target = int(means.argmax())
    return of_classes("freeeagle", means.tolist(), quartile_score(means.tolist()), matrix=matrix.tolist(),
                      source=int(matrix[:, target].argmax()), passes=run.meter.passes - before)


@torch.no_grad()
def posterior_matrix(parts: Split, dummies: FeatureDummies) -> Tensor:
    """(K, K): the head's mean softmax of each class (column) on features made for a class (row); diagonal 0."""
    classes = parts.classifier.spec.num_classes
    with parts.classifier.exact():
        answers = torch.cat([parts.head(some) for some in dummies.features.split(256)]).softmax(1)
    matrix = torch.zeros(classes, classes, device=answers.device).index_add_(0, dummies.labels, answers)
    count = torch.bincount(dummies.labels, minlength=classes).clamp_min(1)
    return (matrix / count[:, None]).fill_diagonal_(0).cpu()


def column_means(matrix: Tensor) -> Tensor:
    """Mean of each column over the other classes' rows, (K,)."""
    return matrix.sum(0) / max(1, len(matrix) - 1)
