"""The dictionary's margins: does one entry send everything to one class?

What: every entry of a family's fixed dictionary, or every probe of a kind, is tried forward, all classes are read from
the same logits. The class that its best entry reaches most is compared with the best that any entry does for any other
class.
Why it works: a single grating moves the classes of a network without a backdoor hardly at all. Probes need not be the
trigger: a backdoor answers to what is like it, too (`search.probes`).
Limits: only what is in the dictionary or like a probe. Reference: none known for the forward scan; gratings as triggers
are those of Barni et al., ICIP 2019.
"""

from dataclasses import replace

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import PROBES, Probes, column_means, dictionary
from deepsanitizer.signals.universal import ACCUSE_AT, unit_of
from deepsanitizer.stats import ahead_of_all, lead_over, leading_by, robust_z, top_two
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult, Trigger


def probe(classifier: Classifier, dummies: Dummies, run: Run, *, kind: str, first: int = 24,
          second: int = 96) -> Evidence:
    """Probes of one kind of `search.PROBES`, tried as a dictionary is."""
    probes = PROBES[kind](classifier.spec.shape, run.generator(f"probes {kind}"))
    tried = detect(classifier, dummies, run, family=probes.family, first=first, second=second, probes=probes)
    # Where one class after another is reached, a lead is no surprise.
    statistic = ahead_of_all(tried.result.per_target, dummies.plain_margin)
    return replace(tried, result=replace(tried.result, name=kind, statistic=statistic))


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, family: str, first: int = 16, second: int = 96,
           probes: Probes | None = None) -> Evidence:
    """One dictionary: the leading class, scored as `signals.universal` does."""
    before = run.meter.passes
    found = dictionary(classifier, dummies, family, run, first=first, second=second, probes=probes)
    columns = column_means(found.cells)
    values = columns.max(0).values.tolist()
    target, margin, runner_up = top_two(values)
    entry = int(columns[:, target].argmax())
    reached = found.cells[entry, :, target]
    unit = ACCUSE_AT.get(family, 1.0) * unit_of(dummies)
    result = SignalResult(
        name=family, applicable=True, family=family, per_target=list(values), target=target, margin=margin,
        runner_up=runner_up, z=robust_z(values), success=(reached[reached.isfinite()] > 0).float().mean().item(),
        score=lead_over(margin, runner_up) / unit, threshold=max(runner_up, 0.0) + unit,
        statistic=leading_by(values, dummies.plain_margin),
        strength=found.strength, passes=run.meter.passes - before)
    order = columns[:, target].argsort(descending=True)[:3].tolist()
    triggers = tuple(Trigger(family, {n: v[i:i + 1] for n, v in found.params.items()}, found.strength,
                             target, None, columns[i, target].item()) for i in order)
    return Evidence(result, triggers)
