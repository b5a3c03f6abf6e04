"""One small patch that permutes the classes: evidence for all-to-all backdoors.

What: the search of `search.permutation` at every place. Two statistics count, of which the weaker is the score: how far
the best patch brings each source towards a goal of its own, and the share of sources that it sends there in the mean.
On dummies at most `MOST_SOURCES` classes are sources.
Why it works: no natural patch sends different classes to different goals; on clean networks hardly any class obeys.
Limits: patches only, and all classes: a backdoor that moves a few classes to goals of their own reaches a small share.
"""

import math

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import permutation, permuting
from deepsanitizer.signals.place import as_matrix
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult

MOST_CLASSES = 100  # beyond it the cells of every place are too many
MOST_SOURCES = 20  # of more classes so many are drawn (docs/research/log.md, 58)


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, window: int, stride: int, purpose: str = "scan",
           most_sources: int | None = MOST_SOURCES, accuse_at: tuple[float, float] = (0.55, 0.25),
           least_distinct: float = 0.8) -> Evidence:
    """Windows of one size, `stride` apart. `accuse_at`: the margin, in plain margins, and the share of classes reached
    for a score of 1 (docs/research/log.md, 38).
    """
    name, classes = f"permutation {window}", classifier.spec.num_classes
    if not 3 <= classes <= MOST_CLASSES:
        return Evidence(SignalResult(name=name, kind="all2all", applicable=False,
                                     reason=f"it is for 3 to {MOST_CLASSES} classes"))
    before, plain = run.meter.passes, dummies.plain_margin
    found = permutation(classifier, dummies, run, purpose=f"{purpose} permutation {window}", window=window,
                        stride=stride, plain_margin=plain, most_sources=most_sources)
    goals = [goal for goal in found.goals[0].tolist() if goal >= 0]
    apart = len(set(goals)) >= least_distinct * len(goals)
    reached = found.reached[0].item()
    # From where untouched dummies are, so that a margin is above 0 where the patch brings the goals nearer.
    margin, runner_up = found.margin[0].item() + plain, found.elsewhere + plain
    # On clean networks it is mostly below 0: cut off there, it would have no null distribution.
    statistic = min(margin / (accuse_at[0] * plain), reached / accuse_at[1], math.inf if apart else 0.0)
    result = SignalResult(
        name=name, kind="all2all", applicable=True, family="place", window=window, margin=margin,
        runner_up=runner_up, threshold=max(runner_up, 0.0) + 0.3 * plain, success=reached,
        score=max(0.0, statistic), statistic=statistic, passes=run.meter.passes - before,
        reason="" if apart else "several classes share a goal",
        matrix=as_matrix(found.cells[0]))
    return Evidence(result, permuting(found, plain))
