"""From evidence to a verdict and ranked suspects.

The verdict is not calibrated yet: the threshold is where one signal's lead is as large as the network's own plain
margin (see `signals`), not a stated false-alarm rate. Unknown is never clean: where the dummies do not represent
the network, the verdict is inconclusive.
"""

from collections.abc import Sequence

import torch

from deepsanitizer.types import Dummies, Evidence, Suspect, Verdict

THRESHOLD = 1.0
SUSPICIOUS_FROM = 0.85


def judge(evidence: Sequence[Evidence], dummies: Dummies, *, suspicious_from: float = SUSPICIOUS_FROM,
          least_success: float = 0.5, least_classes: float = 0.5) -> Verdict:
    """The verdict. A score of THRESHOLD or more with success on dummies is `backdoored`.

    `least_classes`: share of the classes that the dummies must reach for any verdict.
    """
    classes = dummies.logits.shape[1]
    reached = len(dummies.labels.unique()) / classes
    suspects = tuple(suspects_of(evidence, at_least=suspicious_from))
    score = max((e.result.score or 0.0 for e in evidence if e.result.applicable), default=0.0)
    if suspects and suspects[0].score >= THRESHOLD:
        lead = next(e.result for e in leading(evidence) if e.result.score == suspects[0].score)
        sure = lead.kind == "specific" or lead.success is None or lead.success >= least_success
        name = "backdoored" if sure else "suspicious"
        words = ("A small universal change of the image reaches one goal far more easily than any other."
                 if lead.kind != "all2all" else "One small patch sends each class to a goal of its own.")
    elif not torch.isfinite(dummies.logits).all() or reached < least_classes:
        return Verdict("inconclusive", score, THRESHOLD, False, suspects,
                       f"The curated dummies reach {reached:.0%} of the classes only: they do not represent the "
                       "network well enough for a verdict.")
    elif suspects:
        name, words = "suspicious", "One goal is easier to reach than others, but not clearly so."
    else:
        name, words = "clean", "No universal change that was searched reaches one goal more easily than others."
    return Verdict(name, score, THRESHOLD, False, suspects, words)  # type: ignore[arg-type]


def leading(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Applicable evidence, highest score first."""
    known = [e for e in evidence if e.result.applicable and e.result.score is not None]
    return sorted(known, key=lambda e: -(e.result.score or 0.0))


def suspects_of(evidence: Sequence[Evidence], *, at_least: float) -> list[Suspect]:
    """The accusations with at least that score, one for each kind, source and target, strongest first."""
    suspects: list[Suspect] = []
    seen = set()
    for item in leading(evidence):
        result = item.result
        key = (result.kind, result.source, result.target)
        if (result.score or 0.0) < at_least or key in seen or not item.triggers:
            continue
        seen.add(key)
        suspects.append(Suspect(kind=result.kind, source=result.source, target=result.target,
                                family=item.triggers[0].family, score=result.score or 0.0))
    return suspects
