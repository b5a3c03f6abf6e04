"""One pattern that permutes the classes, a small patch or a faint picture: evidence for all-to-all backdoors.

What: for patches the search of `search.permutation` at every place, for at most `MOST_SOURCES` classes. Two statistics
count, of which the weaker is the score: how far the best patch brings each class towards a goal of its own, and the
share of classes that it sends there in the mean.
Why it works: no natural patch sends different classes to different goals; on clean networks hardly any class obeys.
For pictures over the whole image, `detect_full`: on clean networks they bring classes as far, but no two starts do it
alike. What counts is how far, times how alike the two best starts are, and the share of classes to whose goals the
starts agree although untouched dummies do not lean there.
Limits: all classes: a backdoor that moves a few classes to goals of their own reaches a small share.
"""

import itertools
import math

from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import full_permutation, permutation, permuting
from deepsanitizer.signals.place import as_matrix
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult

MOST_CLASSES = 100  # beyond it the cells of every place are too many
MOST_SOURCES = 20


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, window: int, stride: int, purpose: str = "scan",
           accuse_at: tuple[float, float] = (0.55, 0.25), least_distinct: float = 0.8) -> Evidence:
    """Windows of one size, `stride` apart. `accuse_at`: the margin, in plain margins, and the share of classes reached
    for a score of 1 (docs/research/log.md, 38).
    """
    name, classes = f"permutation {window}", classifier.spec.num_classes
    if not 3 <= classes <= MOST_CLASSES:
        return Evidence(SignalResult(name=name, kind="all2all", applicable=False,
                                     reason=f"it is for 3 to {MOST_CLASSES} classes"))
    before, plain = run.meter.passes, dummies.plain_margin
    found = permutation(classifier, dummies, run, purpose=f"{purpose} permutation {window}", window=window,
                        stride=stride, plain_margin=plain, most_sources=MOST_SOURCES)
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


def detect_full(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str = "scan",
                accuse_at: float = 1.2) -> Evidence:
    """Blended pictures. `accuse_at`: the statistic for a score of 1 (docs/research/log.md, 58)."""
    name, classes = "permutation blend", classifier.spec.num_classes
    if not 3 <= classes <= MOST_CLASSES:
        return Evidence(SignalResult(name=name, kind="all2all", applicable=False,
                                     reason=f"it is for 3 to {MOST_CLASSES} classes"))
    before, plain = run.meter.passes, dummies.plain_margin
    found = full_permutation(classifier, dummies, run, purpose=f"{purpose} permutation blend", plain_margin=plain,
                             most_sources=MOST_SOURCES)
    assert found.untouched is not None
    margin, runner_up = found.margin[0].item() + plain, found.elsewhere + plain
    statistic = agreed(found.goals, found.untouched, margin / plain)
    result = SignalResult(
        name=name, kind="all2all", applicable=True, family="blend", margin=margin, runner_up=runner_up,
        threshold=max(runner_up, 0.0) + 0.3 * plain, success=found.reached[0].item(),
        score=max(0.0, statistic) / accuse_at, statistic=statistic, passes=run.meter.passes - before,
        matrix=as_matrix(found.cells[0]))
    return Evidence(result, permuting(found, plain))


def agreed(goals: Tensor, untouched: Tensor, reach: float) -> float:
    """Goals by start, the best first (P, K), and those that untouched dummies lean to (K,), -1 where there is no
    source -> `reach`, times the share of sources for which the two best starts agree, times how many goals are
    distinct; and the share, mean over pairs of starts, for which two agree on another goal than the untouched one.
    """
    mine = goals[:, goals[0] >= 0]
    sources = max(1, mine.shape[1])
    alike = (mine[0] == mine[1]).float().mean().item()
    distinct = len(mine[0].unique()) / sources
    anew: list[float] = [((first == second) & (first != untouched[goals[0] >= 0])).float().mean().item()
            for first, second in itertools.combinations(mine, 2)]
    return float(reach * alike * distinct + sum(anew) / len(anew))
