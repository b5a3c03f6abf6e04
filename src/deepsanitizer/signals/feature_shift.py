"""Universal shift in feature space: which class does one small shift at the inspection layer reach most easily?

What: for each class one shift of the features of dummies at the inspection layer climbs the class's mean margin
(`search/shifts.py`). The score is the target's lead over the next class, in plain margins.
Why it works, where it does: whatever the trigger looks like in the image, in the features it is close to one direction.
Limits: every class has a direction in the last layers; a lead there says little. Costs the head only.
"""

import torch

from deepsanitizer.search import shifts
from deepsanitizer.signals.outlier import of_classes
from deepsanitizer.split import Split
from deepsanitizer.stats import lead_over, top_two
from deepsanitizer.types import Dummies, Evidence, Run


def detect(parts: Split, dummies: Dummies, run: Run, *, radius: float = 0.5, steps: int = 20, lr: float = 0.1,
           batch: int = 24, memory_bytes: int = 1 << 29, purpose: str = "feature shift") -> Evidence:
    """All classes side by side, as many at once as `memory_bytes` of features allow."""
    before = run.meter.passes
    with torch.no_grad():
        features = torch.cat([parts.extractor(some) for some in dummies.images[:256].split(64)])
    run.meter.add(len(features), backward=False, share=parts.share_before)
    found = shifts(parts, features, dummies.labels[: len(features)], range(parts.classifier.spec.num_classes), run,
                   generator=run.generator(purpose), radius=radius, steps=steps, lr=lr, batch=batch,
                   memory_bytes=memory_bytes)
    margins = found.margin.tolist()
    _, best, runner_up = top_two(margins)
    return of_classes("feature shift", margins, lead_over(best, runner_up) / dummies.plain_margin,
                      passes=run.meter.passes - before)
