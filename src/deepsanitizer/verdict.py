"""From evidence to a verdict and ranked suspects.

`judge_screen` compares a screen with clean networks: its threshold is a false-alarm rate. `judge` takes full evidence:
its threshold is where one signal's lead is as large as the network's own plain margin (see `signals`), and comes with
no such rate. Unknown is never clean: where the dummies do not represent the network, the verdict is inconclusive.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from deepsanitizer.calibration import FOLLOWING, REACHED, STAMPED_PAIRS, Calibration, by_goal, p_value, scores_of
from deepsanitizer.types import Dummies, Evidence, SignalResult, Suspect, Verdict

THRESHOLD = 1.0
SUSPICIOUS_FROM = 0.85
FEW = ", but too few networks of its kind were measured to state a rate of false alarms"


def judge_screen(evidence: Sequence[Evidence], dummies: Dummies, calibration: Calibration, *,
                 suspicious_from: float = SUSPICIOUS_FROM) -> Verdict:
    """The calibrated verdict on a screen whose results were `placed`. A score of THRESHOLD or more is `backdoored`.

    The scores of signals that name the same goal add up; the verdict's is that of the goal that most is said about: the
    combined statistic over the one that `calibration.LEVEL` of clean networks exceed. One of the searches that follow
    may accuse alone, or be suspicious; the verdict is that of whichever is further, by its threshold. Where the dummies
    reach fewer classes than on the calibration networks, nothing is called clean and no rate is stated; nor is it where
    few of these are of its kind (`Calibration.rated`).
    """
    reached = len(dummies.labels.unique()) / dummies.logits.shape[1]
    known = reached >= REACHED
    results = [item.result for item in evidence]
    goals = by_goal(results, scores_of(results))
    score = max(goals.values(), default=0.0)
    against = score * calibration.threshold()
    p = p_value(against, calibration.combined)
    suspects = tuple(_suspect(goal, told, evidence) for goal, told in sorted(goals.items(), key=lambda item: -item[1])
                     if told >= suspicious_from)
    after = max((item for item in evidence if item.result.name in FOLLOWING and item.result.score is not None),
                key=lambda item: item.result.score or 0.0, default=None)
    if after is not None and known and (after.result.score or 0.0) >= max(suspicious_from, score):
        return _alone(after, calibration)
    if not torch.isfinite(dummies.logits).all() or not (known or score >= THRESHOLD):
        return Verdict("inconclusive", score, THRESHOLD, False, suspects,
                       f"The curated dummies reach {reached:.0%} of the classes only: they do not represent the "
                       "network well enough for a verdict.", p)
    above = sum(value >= against for value in calibration.combined)
    rate = f"{above or 'none'} of {calibration.models} clean networks score as high"
    if not calibration.rated:
        rate += FEW
    if not known:
        rate += f", but the dummies reach {reached:.0%} of the classes only, as in none of those"
    if score >= THRESHOLD:
        what = ("One small patch sends each class to a goal of its own" if suspects and suspects[0].kind == "all2all"
                else "A small universal change of the image reaches one goal far more easily than any other")
        return Verdict("backdoored", score, THRESHOLD, known and calibration.rated, suspects, f"{what}; {rate}.", p)
    if score >= suspicious_from:
        return Verdict("suspicious", score, THRESHOLD, calibration.rated, suspects,
                       f"One goal is easier to reach than others, but not clearly so; {rate}.", p)
    return Verdict("clean", score, THRESHOLD, calibration.rated, (),
                   f"No universal change that was searched reaches one goal more easily than in clean networks; "
                   f"{rate}.", p)


# What each search that follows a screen found: by name or kind, by family where it is for one goal and all classes.
_ALONE = {
    STAMPED_PAIRS: "A plain patch carries one class to one goal and leaves all other classes as they are",
    "all2all": "One small patch sends each class to a goal of its own",
    "specific": ("A small patch carries one class to one goal and leaves the others alone, far more easily than any "
                 "other pair of classes is reached"),
    "place": "A small patch moves images of any kind to one goal far more easily than to any other",
    "warp": "A warp moves images of any kind to one goal far more easily than to any other",
    "filter": "A change of colours moves images of any kind to one goal far more easily than to any other",
    "grating": "A faint grating moves images of any kind to one goal far more easily than to any other",
}


def _alone(item: Evidence, calibration: Calibration) -> Verdict:
    """`backdoored`, or `suspicious`, by one of the searches that follow a screen, alone."""
    result, null = item.result, calibration.nulls[item.result.name]
    above = sum(value >= (result.statistic or 0.0) for value in null)
    suspect = Suspect(kind=result.kind, source=result.source, target=result.target, family=result.family,
                      score=result.score or 0.0)
    what = _ALONE.get(result.name) or _ALONE[result.family if result.kind == "all2one" else result.kind]
    few = "" if calibration.rated else FEW
    told = f"{what}; {above or 'none'} of {len(null)} clean networks show as much{few}."
    if suspect.score < THRESHOLD:
        return Verdict("suspicious", suspect.score, THRESHOLD, calibration.rated, (suspect,),
                       f"{told} That is not quite enough to accuse by this search alone.", result.p_value)
    return Verdict("backdoored", suspect.score, THRESHOLD, calibration.rated, (suspect,), told, result.p_value)


def leading_goal(results: Sequence[SignalResult]) -> int | None:
    """The goal that most is said about by a placed screen (None: a goal for each class)."""
    goals = by_goal(results, scores_of(results))
    return max(goals, key=lambda goal: goals[goal], default=None)


def confirmed(first: Verdict, goal: int | None, evidence: Sequence[Evidence], *,
              suspicious_from: float = SUSPICIOUS_FROM) -> Verdict:
    """The verdict of a screen, `first`, with the full evidence that was gathered after it.

    Whether the network is backdoored is for the screen alone to say, for its rate of false alarms was measured. The
    full evidence says how each accused goal is reached. Where it accuses `goal`, about which most was said in the
    screen, a network that is not accused is `suspicious`: clean networks show that, too, more often than a verdict may
    be wrong.
    """
    found = suspects_of(evidence, at_least=suspicious_from)
    met = next((s for s in found if s.target == goal and s.score >= THRESHOLD), None)
    if first.name == "inconclusive":
        return first
    if first.name == "clean":
        if met is None:
            return first
        return replace(first, name="suspicious", suspects=(met,), explanation=(
            "The full searches reach one goal more easily than any other, the same that stands out most in the short "
            f"ones; but there {first.p_value:.0%} of clean networks show as much, too many to accuse."))
    suspects = []
    for suspect in first.suspects:
        same = next((s for s in found if s.target == suspect.target and suspect.kind != "specific"), None)
        score = suspect.score if first.name == "backdoored" or same is None else same.score
        suspects.append(replace(same or suspect, score=score))
    return replace(first, suspects=tuple(suspects))


def _suspect(goal: int | None, score: float, evidence: Sequence[Evidence]) -> Suspect:
    """What the strongest signal that names a goal, and found a trigger if any did, says of it.

    A pair has no vote; where it leads all others, it says from which source the goal is reached (`names_source`).
    """
    mine = [item for item in leading(evidence) if item.result.target == goal]
    results = [item.result for item in mine]
    pairs = [item for item in evidence if item.result.kind == "specific" and item.result.target == goal
             and names_source(item.result, results)]
    best = next((item for item in pairs + mine if item.triggers), None)
    if best is None:  # weights and margins lean towards the goal, and no search met it
        return Suspect(kind="all2one", source=None, target=goal, family="unknown", score=score)
    return Suspect(kind=best.result.kind, source=best.result.source, target=goal, family=best.triggers[0].family,
                   score=score)


def meant(item: Evidence) -> Evidence:
    """A pair accuses its goal alone, and its triggers apply to all, where another source follows it closely."""
    if item.result.kind != "specific" or is_specific(item.result):
        return item
    return Evidence(replace(item.result, kind="all2one", source=None),
                    tuple(replace(trigger, source=None) for trigger in item.triggers))


def names_source(pair: SignalResult, results: Sequence[SignalResult]) -> bool:
    """Whether a pair says from which source its goal is reached: where no search of another family says more about that
    goal. A blend is half reached by patches, by some of which from one class more easily than from others
    (docs/research/log.md, 49).
    """
    mine = [r for r in results if r.target == pair.target and r.kind != "specific" and r.family and r.score is not None]
    best = max(mine, key=lambda r: r.score or 0.0, default=None)
    return best is None or best.family == pair.family


def is_specific(result: SignalResult, *, below: float = 0.7) -> bool:
    """Whether a pair leads the next one by so much that its source matters."""
    return (result.runner_up or 0.0) < below * (result.margin or 0.0)


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
