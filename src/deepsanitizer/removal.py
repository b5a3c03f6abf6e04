"""Removal: bank, closed form, a tune, proof, and further rounds while a new search still succeeds.

Stopping is by adversarial evidence. That the patterns found no longer work proves nothing; a candidate passes when
new searches, with seeds and dummies that the repair has not seen, reach the goal no more easily than other classes.
What such a search finds where it does succeed joins the bank for the next round.
"""

from collections.abc import Sequence
from dataclasses import replace

from deepsanitizer.classifier import Classifier
from deepsanitizer.curate import curate_features
from deepsanitizer.errors import CannotJudgeError, DeadlineReachedError
from deepsanitizer.ground import Ground, Repaired
from deepsanitizer.repair import bank, bound, cleanse, closed_form, clp, confine, overshoot, paper, sharp, shift, tune
from deepsanitizer.types import Dummies, Run, Trigger
from deepsanitizer.verify import Proof, kept_agreement, still_lifted, success

KEEPS = (16.0, 4.0, 1.0, 0.25)  # weights on plain dummies in the closed form, heaviest first
BEYOND = (1.2, 1.5, 1.8)  # how far the whole step goes, in its own lengths


def remove(ground: Ground, method: str, *, rounds: int) -> Repaired:
    """Repair with a method of `repair.METHODS`; the last candidate, accepted or not.

    Raises DeadlineReachedError where the time limit comes before a candidate is accepted.
    """
    if method == "paper":
        return _published(ground)
    if method == "clp":
        return _pruned(ground)
    if method == "shift":
        return _unshifted(ground)
    if method == "auto" and ground.leads[0].kind == "all2all":
        return _unpermuted(ground, rounds)
    best: Repaired | None = None
    old, dummies, run = ground.parts.classifier, ground.dummies, ground.run
    # What nobody accused are natural patterns, which go on working: to go further costs accuracy for nothing.
    keeps, beyond = (KEEPS, BEYOND) if ground.suspected else (KEEPS[:1], (1.0,))
    try:
        with ground.stage("repair"):
            plan = bank.QUICK if ground.quick else bank.FULL
            found = [t for lead in ground.leads
                     for t in bank.follow(old, dummies, lead, run, purpose="bank", **plan).triggers]
            steps = [f"searched a bank of {len(found)} transformations ({_names(found)})"]
            learned_from = without_goals(ground.ordinary, found)
            candidate, weight = old, 0.0
            if method == "tune":
                candidate = tune.repair(old, learned_from, found, run)
                steps.append("tuned on pairs of dummies")
            elif method == "sharp":
                candidate = tune.repair(old, learned_from, found, run, radius=sharp.RADIUS)
                steps.append("tuned on pairs of dummies, with sharpness-aware steps")
            elif method == "bound":
                candidate = bound.repair(old, learned_from, found, run)
                steps.append("bounded activations by what dummies reach, relearned in closed form")
            else:
                candidate, weight, told = _relearned(ground, learned_from, found, tuned=method == "auto",
                                                     keeps=keeps, beyond=beyond)
                steps.append(told)
        rounds = rounds if method == "auto" else 0
        best = ground.proven(candidate, 0, steps, another=rounds > 0)
        other = ground.instead() if rounds and not best.proof.accepted else None
        if other is not None:
            last = remove(other, method, rounds=rounds)
            steps.append(f"not gone yet ({_left(best.proof)}): anew, from quantised colours alone")
            return replace(last, steps=(*steps, *last.steps))
        for number in range(1, rounds + 1):
            if best.proof.accepted or not best.proof.repeated:
                break
            found += best.proof.to_unlearn
            learned_from = without_goals(ground.ordinary, found)
            with ground.stage("repair"):
                # Anew, from the original: one more tune of a tuned candidate costs up to 8 points (log, 29).
                if number > 1 and ground.suspected:
                    weight /= 4
                candidate, _, told = _relearned(ground, learned_from, found, tuned=True, keeps=(weight,),
                                                beyond=beyond, again=f" {number}")
            steps.append(f"not gone yet ({_left(best.proof)}): anew, on {len(found)} transformations, {told}")
            best = ground.proven(candidate, number, steps, another=number < rounds)
    except DeadlineReachedError:
        if best is None or not best.proof.accepted:
            raise
    return best


def _unpermuted(ground: Ground, rounds: int, *, searches: int = 3, times: int = 2, keep: float = 0.25) -> Repaired:
    """Goals of their own: relearned `times` over in each round, each time from the last candidate, never tuned.

    Every class is a goal, so that no dummies can be left out: the windows of what was found are filled instead. A tune
    brings the backdoor back there, and a second closed form halves what is left (docs/research/log.md, 38).
    """
    old, run, plan = ground.parts.classifier, ground.run, bank.QUICK if ground.quick else bank.FULL
    best: Repaired | None = None
    try:
        with ground.stage("repair"):
            found = [t for number in range(searches) for lead in ground.leads
                     for t in bank.follow(old, ground.dummies, lead, run, purpose=f"bank {number}", **plan).triggers]
        steps, candidate = [f"searched a bank of {len(found)} transformations ({_names(found)})"], old
        for number in range(rounds + 1):
            with ground.stage("repair"):
                dummies = cleanse.cleansed(old, ground.ordinary, found, run, purpose=f"cleanse {number}")
                for again in range(times):
                    candidate = closed_form.repair(candidate, dummies, found, run, keep=keep,
                                                   purpose=f"closed form {number} {again}")
            steps.append(f"relearned every linear map in closed form {times} times, on dummies whose windows were "
                         f"filled and {len(found)} transformations")
            best = ground.proven(candidate, number, steps)
            if best.proof.accepted or not best.proof.repeated:
                break
            steps.append(f"not gone yet ({_left(best.proof)})")
            found += best.proof.to_unlearn
    except DeadlineReachedError:
        if best is None or not best.proof.accepted:
            raise
    assert best is not None
    return best


def _relearned(ground: Ground, dummies: Dummies, found: Sequence[Trigger], *, tuned: bool,
               keeps: tuple[float, ...] = KEEPS, beyond: tuple[float, ...] = BEYOND, gone: float = 0.004,
               enough: float = 0.05, most_lost: float = 0.02, most_lifted: float = 0.1,
               again: str = "") -> tuple[Classifier, float, str]:
    """The closed form, `tuned` and overshot or not, with the weight on plain dummies and the factor chosen on dummies
    that neither has seen.

    The heaviest weight and the least factor `beyond` come first. The factor grows while the strongest old patterns
    still send more than `gone` of the fresh dummies to the goal: a longer step costs accuracy where the last one was
    long enough (docs/research/log.md, 42). Where the longest leaves more than `enough`, a lighter weight is tried, and
    either is taken only if it loses at most `most_lost` of the agreement. What a light weight removes it removes on
    dummies: a tune from there finds nothing left to do (log, 26). Where dummies are not movable, the old patterns must
    lift the goal by at most `most_lifted` of what they did, too: there no success says little (log, 45).
    """
    old, chosen, factors = ground.parts.classifier, None, beyond if tuned else (1.0,)
    kept, weight, told = 0.0, keeps[0], ""
    strongest = ground.before[0]  # of the leads
    ladder = closed_form.ladder(old, dummies, found, ground.run, keeps=keeps, purpose=f"closed form{again}")
    for keep, relearned in zip(keeps, ladder, strict=True):
        step, hits, fallen = relearned, 1.0, True
        if tuned:
            step = confined_tune(old, relearned, dummies, found, ground.run, purpose=f"tune{again}")
        for factor in factors:
            far = f", overshot by {factor:g}" if factor != 1 else ""
            candidate, left = overshoot.repair(old, step, beyond=factor), hits
            hits = success(candidate, strongest.natural, ground.fresh, ground.run)
            fallen = still_lifted(candidate, strongest, ground.fresh, ground.run) <= most_lifted
            _, agreed = kept_agreement(ground.fresh, candidate, strongest.found.lead.target)
            if chosen is None:
                kept = agreed
            elif agreed < kept - most_lost:
                if factor == factors[0] or left <= enough:
                    return chosen, weight, told
                hits = left
                break  # not further with this weight; a lighter one may do
            chosen, weight = candidate, keep
            told = (f"relearned every linear map in closed form, weight {keep:g} on plain dummies"
                    f"{f', tuned, confined{far}' if tuned else ''}: the old patterns now send "
                    f"{hits:.1%} of fresh dummies to the goal")
            if hits <= gone and fallen:
                break
        if hits <= enough and fallen:
            break
    assert chosen is not None
    return chosen, weight, told


def confined_tune(old: Classifier, start: Classifier, dummies: Dummies, found: Sequence[Trigger], run: Run, *,
                  purpose: str = "tune", keep: float = 1.0, radius: float = 0.0) -> Classifier:
    """A tune from `start`, confined. What protects accuracy is the confinement: plain dummies weigh less than alone."""
    tuned = tune.repair(old, dummies, found, run, start=start, keep=keep, radius=radius, purpose=purpose)
    return confine.repair(start, tuned, dummies, found, run, purpose=f"{purpose}, confined")


def without_goals(dummies: Dummies, found: Sequence[Trigger]) -> Dummies:
    """Without the accused goals' own dummies: curated on a trojaned network they carry the trigger, and to keep what
    it does there keeps the backdoor (docs/research/log.md, 21).
    """
    return dummies.without({t.target for t in found if t.target is not None})


def _published(ground: Ground) -> Repaired:
    parts = ground.parts
    with ground.stage("repair"):
        features = curate_features(parts, ground.run)
        candidate, loss = paper.repair(parts, features, ground.run)
    step = (f"fine-tuned the head after {parts.layer} on {len(features.labels)} dummy features; "
            f"loss at step 0: {loss:.4f}")
    return replace(ground.proven(candidate, 0, [step]), loss_step0=loss)


def _pruned(ground: Ground) -> Repaired:
    with ground.stage("repair"):
        candidate, silenced = clp.repair(ground.parts.classifier)
    return ground.proven(candidate, 0, [f"silenced {silenced} channels of outlying Lipschitz bound"])


def _unshifted(ground: Ground) -> Repaired:
    goal, parts = ground.leads[0].target, ground.parts
    if goal is None:
        raise CannotJudgeError("shifts of features are searched for one class, and every class has a goal of its own",
                               "Take --method auto, or name a class with --target.")
    with ground.stage("repair"):
        candidate, reached = shift.repair(parts, ground.ordinary.without({goal}), goal, ground.run)
    told = ", ".join(f"{margin:.1f}" for margin in reached)
    return ground.proven(candidate, 0, [f"tuned the head after {parts.layer} against universal shifts of its features, "
                                        f"searched {len(reached)} times (margins reached: {told})"])


def _left(proof: Proof) -> str:
    """What still stood in a proof's way, for the report."""
    told = [f"{c.family}: margin {c.margin_after:.1f}, others {c.others_after:.1f} + {c.tolerated:.1f}, old patterns "
            f"{c.old_success_after:.0%}" for c in proof.left]
    return "; ".join(told) or proof.reason.removesuffix(".")


def _names(found: Sequence[Trigger]) -> str:
    families = [t.family for t in found]
    return ", ".join(f"{families.count(name)} {name}" for name in sorted(set(families)))
