"""The dictionary's margins: does one entry send everything to one class?

What: every entry of a family's fixed dictionary is tried forward, all classes are read from the same logits. The
class that its best entry reaches most is compared with the best that any entry does for any other class.
Why it works: a single grating moves the classes of a network without a backdoor hardly at all.
Limits: only what is in the dictionary. Reference: none known for the forward scan; the trigger is that of Barni et
al., ICIP 2019.
"""

from deepsanitizer.classifier import Classifier
from deepsanitizer.search import column_means, dictionary
from deepsanitizer.signals.universal import ACCUSE_AT, unit_of
from deepsanitizer.stats import lead_over, leading_by, robust_z, top_two
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult, Trigger


def detect(classifier: Classifier, dummies: Dummies, run: Run, *, family: str, first: int = 16,
           second: int = 96) -> Evidence:
    """One dictionary: the leading class, scored as `signals.universal` does."""
    before = run.meter.passes
    found = dictionary(classifier, dummies, family, run, first=first, second=second)
    columns = column_means(found.cells)
    values = columns.max(0).values.tolist()
    target, margin, runner_up = top_two(values)
    entry = int(columns[:, target].argmax())
    reached = found.cells[entry, :, target]
    unit = ACCUSE_AT[family] * unit_of(dummies)
    result = SignalResult(
        name=family, applicable=True, family=family, per_target=list(values), target=target, margin=margin,
        runner_up=runner_up, z=robust_z(values), success=(reached[reached.isfinite()] > 0).float().mean().item(),
        score=lead_over(margin, runner_up) / unit, threshold=max(runner_up, 0.0) + unit,
        statistic=leading_by(values, dummies.plain_margin),
        strength=FAMILIES[family].strength, passes=run.meter.passes - before)
    order = columns[:, target].argsort(descending=True)[:3].tolist()
    triggers = tuple(Trigger(family, {n: v[i:i + 1] for n, v in found.params.items()}, FAMILIES[family].strength,
                             target, None, columns[i, target].item()) for i in order)
    return Evidence(result, triggers)
