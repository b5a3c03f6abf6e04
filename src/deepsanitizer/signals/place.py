"""The search by place: every window of the image, every image its own goal, all kinds of local trigger at once.

What: from the source x goal margins at each place come three statistics. All-to-one: the best class's mean margin
against the best of any other class anywhere and against its own at the median place. All-to-all: the mean over
sources of their best goal where the goals differ from each other. Source-specific: one cell (source, goal) against
the best other cell anywhere.
What is compared with clean networks is the lead by the plain margin, for all-to-all the product of the leads over the
best shared goal and over other places, for a pair the lead over any other.
Why it works: a small patch cannot do that without a backdoor; the other places are the null distribution.
Limits: only square windows of the sizes searched; windows of a third of the image and more reach natural evidence.
"""

import math

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import Places, column_means, own_goals, places, triggers_at
from deepsanitizer.signals.universal import unit_of
from deepsanitizer.stats import lead_over, leading_by, robust_z, separation, top_two
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, window: int, stride: int, purpose: str = "scan",
           first: tuple[int, int] = (8, 10), second: tuple[int, int] = (14, 20), score_on: int = 160,
           accuse_at: tuple[float, float, float] = (1.0, 0.3, 1.0)) -> tuple[Evidence, ...]:
    """One window size: evidence for all-to-one, all-to-all and source-specific, in this order.

    `first` and `second` are the rounds of the search (steps, images a step). `accuse_at` are the plain margins by
    which each of them must lead for a score of 1.
    """
    before = run.meter.passes
    found = places(classifier, dummies, run, purpose=f"{purpose} place {window}", window=window, stride=stride,
                   first=first, second=second, score_on=score_on)
    # Natural evidence grows with the area: the unit is that of 6 pixels of 32.
    scale = max(1.0, (window * 32 / min(classifier.spec.shape[1:]) / 6) ** 2)
    passes, unit = run.meter.passes - before, unit_of(dummies) * scale
    plain = dummies.plain_margin
    one = _all2one(found, unit * accuse_at[0], passes, plain)
    return one, _all2all(found, unit * accuse_at[1], plain), _specific(found, unit * accuse_at[2], plain)


def _all2one(found: Places, unit: float, passes: float, plain: float) -> Evidence:
    columns = column_means(found.cells)
    values = columns.max(0).values.tolist()
    target, margin, runner_up = top_two(values)
    place = int(columns[:, target].argmax())
    # Two nulls: what other classes reach anywhere, and what the target reaches at other places. A full-image
    # trigger is reached from everywhere and is no local one.
    statistic = leading_by(values, plain)  # the median place hides strong triggers (log, 36)
    runner_up = max(runner_up, columns[:, target].median().item())
    reached = found.cells[place, :, target]
    success = (reached[reached.isfinite()] > 0).float().mean().item()
    result = SignalResult(
        name=f"place {found.window}", applicable=True, per_target=list(values), target=target, margin=margin,
        threshold=max(runner_up, 0.0) + unit, runner_up=runner_up, z=robust_z(columns[:, target].tolist()),
        success=success,
        score=lead_over(margin, runner_up) / unit, statistic=statistic, family="place", window=found.window,
        matrix=as_matrix(found.cells[place]), passes=passes)
    return Evidence(result, triggers_at(found, columns[:, target], target=target, source=None))


def _all2all(found: Places, unit: float, plain: float) -> Evidence:
    mean, goals = own_goals(found.cells)
    classes = found.cells.shape[1]
    distinct = torch.tensor([len(set(row) - {-1}) for row in goals.tolist()])
    met = (goals >= 0).sum(1)
    # Where most sources share a goal it is all-to-one, or natural; a patch that permutes the classes is neither.
    permutes = (distinct >= 0.6 * met) & (met >= min(3, classes))
    value = torch.where(permutes, mean, torch.full_like(mean, float("-inf")))
    place = int(value.argmax())
    if not permutes.any():
        reason = "no place sends different classes to different goals"
        return Evidence(SignalResult(name=f"own goals {found.window}", kind="all2all", applicable=True, reason=reason,
                                     score=0.0, family="place", window=found.window))
    margin = value[place].item()
    shared = column_means(found.cells)[place].max().item()  # the best goal for all sources alike, at the same place
    null = mean[mean.argsort()[: max(1, len(mean) // 2)]].max().item()
    cells = found.cells[place].max(1).values
    result = SignalResult(
        name=f"own goals {found.window}", kind="all2all", applicable=True, margin=margin, runner_up=null,
        z=robust_z(mean.tolist()), success=(cells[cells.isfinite()] > 0).float().mean().item(),
        score=lead_over(margin, null) / unit, statistic=_permuting(margin, shared, null, plain, classes),
        family="place", window=found.window, matrix=as_matrix(found.cells[place]))
    return Evidence(result, triggers_at(found, value, target=None, source=None, goals=goals))


def _permuting(margin: float, shared: float, null: float, plain: float, classes: int) -> float:
    """What is compared with clean networks: own goals must lead the best shared goal at the place, which with more
    classes they do anyway, and own goals at other places.
    """
    over_shared = max(0.0, separation(margin, shared, plain)) / math.log(max(classes, 2))
    return over_shared * max(0.0, separation(margin, null, plain))


def _specific(found: Places, unit: float, plain: float) -> Evidence:
    classes = found.cells.shape[1]
    best, where = found.cells.max(0)  # over places
    cell, margin, runner_up = top_two(best.flatten().tolist())
    source, target = divmod(cell, classes)
    place = int(where[source, target])
    # A column in which other sources are carried along is all-to-one, told by that statistic.
    column = found.cells[place, :, target]
    others = column[column.isfinite() & (torch.arange(classes) != source)]
    carried = (others > 0).float().mean().item() if len(others) else 1.0
    lead = lead_over(margin, runner_up) / unit
    result = SignalResult(
        name=f"pairs {found.window}", kind="specific", applicable=True, source=source, target=target, margin=margin,
        runner_up=runner_up, success=carried, score=lead if carried < 0.5 else 0.0, family="place",
        statistic=separation(margin, runner_up, plain) / math.log(max(classes, 2)), window=found.window,
        reason="" if carried < 0.5 else "other sources are carried along: see all-to-one",
        matrix=as_matrix(found.cells[place]))
    return Evidence(result, triggers_at(found, found.cells[:, source, target], target=target, source=source))


def as_matrix(cells: Tensor, most: int = 50) -> list[list[float | None]] | None:
    """Cells as rows of numbers for the report; none above `most` classes."""
    if len(cells) > most:
        return None
    return [[round(value, 3) if math.isfinite(value) else None for value in row] for row in cells.tolist()]
