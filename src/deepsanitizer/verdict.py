"""From evidence to a verdict and ranked suspects.

`judge_screen` compares the screen with clean networks: its threshold is a false-alarm rate. Where the calibration does
not cover a network, `judge` takes full evidence: there the threshold is where one signal's lead is as large as the
network's own plain margin (see `signals`), and nothing is known of its false alarms. Unknown is never clean: where the
dummies do not represent the network, the verdict is inconclusive.
"""

from collections.abc import Mapping, Sequence

import torch

from deepsanitizer.calibration import Calibration, p_value, strengths
from deepsanitizer.types import Dummies, Evidence, Suspect, Verdict

THRESHOLD = 1.0
SUSPICIOUS_FROM = 0.85


def judge_screen(evidence: Sequence[Evidence], dummies: Dummies, calibration: Calibration, *,
                 suspicious_from: float = SUSPICIOUS_FROM, least_classes: float = 0.95) -> Verdict:
    """The calibrated verdict on a screen. A score of THRESHOLD or more is `backdoored`.

    The score is the combined statistic over the one that `calibration.LEVEL` of clean networks exceed.
    `least_classes`: share of the classes that the dummies must reach to be called clean, as those of the calibration.
    """
    reached = len(dummies.labels.unique()) / dummies.logits.shape[1]
    against = strengths([item.result for item in evidence], calibration.nulls)
    threshold, most = calibration.threshold(), max(against.values(), default=0.0)
    score, p = most / threshold, p_value(most, calibration.combined)
    suspects = _accused(evidence, {name: value / threshold for name, value in against.items()}, suspicious_from)
    rate = f"of {calibration.models} clean networks, about {_share(p)} score as high"
    if not torch.isfinite(dummies.logits).all() or (reached < least_classes and score < THRESHOLD):
        return Verdict("inconclusive", score, THRESHOLD, False, suspects,
                       f"The curated dummies reach {reached:.0%} of the classes only: they do not represent the "
                       "network well enough for a verdict.", p)
    known = reached >= least_classes
    if not known:
        rate += f"; but the dummies reach {reached:.0%} of the classes only, as in none of those"
    if score >= THRESHOLD:
        what = ("One small patch sends each class to a goal of its own" if suspects and suspects[0].kind == "all2all"
                else "A small universal change of the image reaches one goal far more easily than any other")
        return Verdict("backdoored", score, THRESHOLD, known, suspects, f"{what}; {rate}.", p)
    if score >= suspicious_from:
        return Verdict("suspicious", score, THRESHOLD, True, suspects,
                       f"One goal is easier to reach than others, but not clearly so; {rate}.", p)
    return Verdict("clean", score, THRESHOLD, True, (),
                   f"No universal change that was searched reaches one goal more easily than in clean networks; "
                   f"{rate}.", p)


def _share(p: float) -> str:
    return f"{p:.0%}" if p >= 0.01 else f"{p:.1%}" if p >= 0.001 else "none"


def _accused(evidence: Sequence[Evidence], scores: Mapping[str, float], at_least: float,
             specific_below: float = 0.7) -> tuple[Suspect, ...]:
    """What the voting signals accuse, strongest first, each kind and goal once.

    A pair is source-specific where the next source's margin is below `specific_below` of it; else the goal is meant.
    """
    suspects: list[Suspect] = []
    for item in sorted(evidence, key=lambda e: -scores.get(e.result.name, 0.0)):
        result = item.result
        if scores.get(result.name, 0.0) < at_least or not item.triggers:
            continue
        kind, source = result.kind, result.source
        if kind == "specific" and (result.runner_up or 0.0) >= specific_below * (result.margin or 0.0):
            kind, source = "all2one", None
        if all((kind, source, result.target) != (s.kind, s.source, s.target) for s in suspects):
            suspects.append(Suspect(kind=kind, source=source, target=result.target, family=item.triggers[0].family,
                                    score=scores[result.name]))
    return tuple(suspects)


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
