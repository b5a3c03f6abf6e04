"""A stamp that carries one class to another and leaves all else as it is: evidence for source-specific backdoors.

What: the patches of `search.probes.stamps`, tried forward on dummies of all classes, each with a quarter of a natural
image in it. What a stamp is worth for a source and a goal is the share of the source's dummies that it sends to the
goal, less where it changes other classes' answers (`calm`), where the goal's dummies are like the source (`unlike`) and
where what they show at the same place, put on the source's, does the same (`shown`). The statistic is the best worth of
any pair.
Why it works: an attacker trains the trigger to change nothing on other classes, and what is like the trigger inherits
that; source and goal need not be alike. A natural stamp covers or draws what tells two classes of one kind apart: they
are alike, their own images do it at that place, and other classes are disturbed.
Limits: patches only, and such as are like a stamp. Where source and goal are alike, a trigger is worth less. Without
dummies of a class nothing is said of it. Reference: none known; measured in docs/research/log.md, 57.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.curate import blended
from deepsanitizer.search import PROBES, answers_of, cells_of
from deepsanitizer.signals.place import as_matrix
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult, Trigger

LEAST_CLASSES = 4  # of three, one would be left to say that nothing else changes


@dataclass(frozen=True, slots=True)
class Stamped:
    """S stamps: their params, the share of each class's dummies that gives each answer under them, and their worth
    before what the goals show is known, both (S, K, K).
    """

    params: dict[str, Tensor]
    shares: Tensor
    worth: Tensor


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, window: int, first: int = 60, per_class: int = 2,
           keep: int = 24, pairs: int = 16) -> Evidence:
    """All stamps on `first` dummies, at least `per_class` of each class; the `keep` best on all; of the `pairs` best
    pairs what the goal's dummies show.

    `window` is that with which a repair searches; `success` the share of the source's dummies sent to the goal.
    """
    before, plain, classes = run.meter.passes, dummies.plain_margin, classifier.spec.num_classes
    dummies = blended(classifier, dummies, run)
    empty = SignalResult(name="stamped pairs", kind="specific", applicable=True, family="place", window=window)
    if len(dummies.labels.unique()) < LEAST_CLASSES:
        return Evidence(replace(empty, applicable=False, passes=run.meter.passes - before,
                                reason=f"it is for dummies of at least {LEAST_CLASSES} classes"))
    tried = _tried(classifier, dummies, run, max(first, per_class * classes), keep)
    best, stamp = tried.worth.max(0)
    run.step("trying stamps by pair", 2, 3)
    matrix = torch.full((classes, classes), -torch.inf)
    for pair in best.flatten().topk(min(pairs, classes * (classes - 1))).indices.tolist():
        source, target = divmod(pair, classes)
        if best[source, target] > 0:
            place = tried.params["corner"][int(stamp[source, target])].tolist()
            natural = shown(classifier, dummies, source, target, place, tried.params["picture"].shape[-1], run)
            matrix[source, target] = best[source, target] * (1 - natural) ** 2
    if not matrix.isfinite().any():
        return Evidence(replace(empty, statistic=0.0, success=0.0, reason="no stamp carries one class to another",
                                passes=run.meter.passes - before))
    source, target = divmod(int(matrix.argmax()), classes)
    strongest = tried.worth[:, source, target].topk(min(3, len(tried.worth))).indices
    params = {key: value[strongest.to(value.device)] for key, value in tried.params.items()}
    cells = cells_of(classifier, dummies, "place", params, run, strength=1.0, count=len(dummies))
    others = cells[0][torch.arange(classes) != source]
    margins, runner_up = cells[:, source, target].tolist(), others[others.isfinite()].max().item()
    result = replace(
        empty, source=source, target=target, margin=margins[0], runner_up=runner_up,
        threshold=max(runner_up, 0.0) + plain, statistic=matrix[source, target].item(), matrix=as_matrix(matrix),
        success=tried.shares[strongest[0], source, target].item(), passes=run.meter.passes - before)
    return Evidence(result, tuple(
        Trigger("place", {key: value[k:k + 1] for key, value in params.items()}, 1.0, target, source, margin)
        for k, margin in enumerate(margins)))


def _tried(classifier: Classifier, dummies: Dummies, run: Run, first: int, keep: int) -> Stamped:
    """All stamps on the first dummies, those that are worth most for any pair on all."""
    probes = PROBES["stamps"](classifier.spec.shape, run.generator("probes stamps"))
    params = {key: value.to(classifier.compute.device) for key, value in probes.params.items()}
    run.step("trying stamps by pair", 0, 3)
    early = calm(*answers_of(classifier, dummies, "place", params, run, strength=1.0, count=first))
    chosen = early.amax((1, 2)).topk(min(keep, len(early))).indices
    params = {key: value[chosen.to(value.device)] for key, value in params.items()}
    run.step("trying stamps by pair", 1, 3)
    shares, met = answers_of(classifier, dummies, "place", params, run, strength=1.0, count=len(dummies))
    return Stamped(params, shares, calm(shares, met) * unlike(dummies))


def calm(shares: Tensor, met: Tensor) -> Tensor:
    """Shares (P, K, K) of each class's dummies by answer, and how many there are (K,), to the share sent from each
    source to each goal, times the square of the share of all other classes' dummies that keep their answer (P, K, K).

    One dummy more that does not obey is counted for each source: of a few, all obey by chance.
    """
    known = (met > 0).float()
    stay = shares.diagonal(dim1=1, dim2=2) * known
    others = known.sum() - known[:, None] - known
    kept = (stay.sum(1)[:, None, None] - stay[:, :, None] - stay[:, None, :]) / others.clamp_min(1)
    sent = shares * (met / (met + 1))[:, None]
    return (sent * kept ** 2).masked_fill(torch.eye(len(met), dtype=torch.bool), 0.0)


def unlike(dummies: Dummies) -> Tensor:
    """The square root of how far each source's logit on each goal's dummies is below their own, from the median of all
    other classes (0 to 1), by source and goal (K, K); 0 where there are no dummies of the goal.

    The other way round the trigger itself makes a source like its goal.
    """
    logits, labels = dummies.logits.float().cpu(), dummies.labels.cpu()
    classes = logits.shape[1]
    rows = torch.nn.functional.one_hot(labels, classes).float()
    mean = rows.T @ logits / rows.sum(0).clamp_min(1)[:, None]
    own = torch.eye(classes, dtype=torch.bool)
    middle = mean.masked_fill(own, torch.nan).nanmedian(1, keepdim=True).values
    lean = (mean - middle) / (mean.diagonal()[:, None] - middle).clamp_min(1e-6)
    lean = lean.clamp(0, 1).masked_fill((rows.sum(0) == 0)[:, None], 1.0)
    return (1 - lean.T).sqrt()


@torch.no_grad()
def shown(classifier: Classifier, dummies: Dummies, source: int, target: int, corner: list[int], side: int, run: Run, *,
          count: int = 96) -> float:
    """The share of `count` dummies of the source that is given the goal where they have what the goal's dummies show at
    the place, and a little around it.
    """
    mine, theirs = (dummies.images[dummies.labels == label] for label in (source, target))
    if len(theirs) == 0:
        return 1.0
    generator = run.generator(f"stamped pairs {source} {target}")
    images = mine.repeat(-(-count // len(mine)), 1, 1, 1)[:count]
    donors = theirs[torch.randint(len(theirs), (len(images),), generator=generator).to(theirs.device)]
    around = max(1, round(side * 2 / 5))
    rows, columns = (slice(max(0, start - around), start + side + around) for start in corner)
    images[:, :, rows, columns] = donors[:, :, rows, columns]
    run.meter.add(len(images), backward=False)
    return float((classifier(images).argmax(1) == target).float().mean())
