"""Old weights against new ones, on fresh dummies: is accuracy kept, is the backdoor gone?

Agreement stands in for accuracy. An independent search, run with seeds and dummies that the repair has not seen,
on the old and on the new weights, stands in for the attack.
Limits: both are proxies. Agreement on dummies is not accuracy on real images, and a trigger of no family searched
stays unseen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from deepsanitizer.calibration import REACHED, STAMPED_PAIRS, by_goal, p_value, scores_of, shipped
from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.curate import invert
from deepsanitizer.repair.bank import FULL, QUICK, Followed, Lead, follow, lead_of
from deepsanitizer.signals import SCREEN_DUMMIES, on_dummies, screen, windows_for
from deepsanitizer.triggers import apply_trigger
from deepsanitizer.types import Agreement, Dummies, Run, SearchComparison, Trigger


@dataclass(frozen=True, slots=True)
class Attack:
    """What a fresh search for one lead reached on one set of weights, and its success on dummies.

    `natural` are its strongest triggers at about the strength that these weights need, `rivals` those of other classes
    at the same share of their strength.
    """

    found: Followed
    success: float
    natural: tuple[Trigger, ...]
    rivals: tuple[Trigger, ...] = ()
    lifted: float = 0.0  # see `lift`; only where dummies are not movable


@dataclass(frozen=True, slots=True)
class Proof:
    """The evidence for accepting or rolling back; `attacks` are those on the new weights."""

    agreement: Agreement
    comparisons: tuple[SearchComparison, ...]
    accepted: bool
    reason: str
    attacks: tuple[Attack, ...]
    left: tuple[SearchComparison, ...]  # those that show the backdoor still there
    to_unlearn: tuple[Trigger, ...]  # what new searches found that still succeed, and old patterns of untouched leads
    repeated: bool  # an attack succeeded on the old weights, so that its failure on the new ones says something


def agreement(fresh: Dummies, new: Classifier) -> Agreement:
    """Share of dummies on which the new classifier answers as the old one did, over all and per class."""
    labels = fresh.labels.cpu()
    same = (logits_of(new, fresh.images).argmax(1) == labels).float()
    per_class = [same[labels == k].mean().item() if (labels == k).any() else None
                 for k in range(fresh.logits.shape[1])]
    return Agreement(overall=same.mean().item(), per_class=per_class)


def kept_agreement(fresh: Dummies, new: Classifier, leave_out: int | None) -> tuple[float, float]:
    """Agreement on the dummies without those of the accused class: the mean over classes, and on the surer half.

    Dummies lie closer to the boundaries than real images do, and dummies of the target may carry the trigger: what
    changes there is not accuracy. Without batch-norm a few classes may hold most of the dummies, and count once each.
    """
    top = fresh.logits.topk(2, 1).values
    margin, labels = top[:, 0] - top[:, 1], fresh.labels
    use = torch.ones_like(labels, dtype=torch.bool)
    if leave_out is not None and fresh.logits.shape[1] > 3:  # of two or three classes none can be spared
        use = labels != leave_out
    same = (logits_of(new, fresh.images[use]).argmax(1) == labels[use].cpu()).float()
    sure = (margin[use] >= margin[use].median()).cpu()
    by_class = [same[labels[use].cpu() == k].mean() for k in labels[use].unique().tolist()]
    return torch.stack(by_class).mean().item(), same[sure].mean().item()


def attack(classifier: Classifier, fresh: Dummies, leads: Sequence[Lead], run: Run, *,
           purpose: str, quick: bool = False) -> tuple[Attack, ...]:
    """For each lead a fresh search, and how many dummies its strongest result sends to the goal."""
    attacks = []
    for lead in leads:
        found = follow(classifier, fresh, lead, run, purpose=purpose, compete=True, **(QUICK if quick else FULL))
        natural = tuple(at_natural_strength(classifier, trigger, fresh, run) for trigger in found.triggers[:3])
        share = natural[0].strength / found.triggers[0].strength
        rivals = tuple(replace(rival, strength=share * rival.strength) for rival in found.rivals)
        lifted = 0.0 if fresh.movable else lift(classifier, found.triggers[:3], fresh, run)
        attacks.append(Attack(found, success(classifier, found.triggers[:1], fresh, run), natural, rivals, lifted))
    return tuple(attacks)


def at_natural_strength(classifier: Classifier, trigger: Trigger, dummies: Dummies, run: Run, *,
                        shares: tuple[float, ...] = (0.06, 0.12, 0.25, 0.35), works: float = 0.9) -> Trigger:
    """The trigger at twice the least share of its strength that sends `works` of the dummies to the goal.

    At generous strength a pattern moves dummies of any network; near the least strength that works only the backdoor
    answers. The real trigger is somewhat stronger than the least that works. A trigger that needs more than half of
    its strength is left as it is.
    """
    for share in shares:
        weaker = replace(trigger, strength=trigger.strength * share)
        if success(classifier, [weaker], dummies, run, most=100) >= works:
            return replace(trigger, strength=trigger.strength * 2 * share)
    return trigger


@torch.no_grad()
def success(classifier: Classifier, triggers: Sequence[Trigger], dummies: Dummies, run: Run, *,
            most: int = 200) -> float:
    """Share of dummies that triggers send to their goals, of those to which they apply, over all triggers."""
    hits = count = 0
    for trigger in triggers:
        goals = trigger.goals_of(dummies.labels)
        usable = (goals >= 0).nonzero()[:most, 0]
        if len(usable):
            run.meter.add(len(usable), backward=False)
            said = logits_of(classifier, apply_trigger(trigger, dummies.images[usable])).argmax(1)
            hits += int((said == goals[usable].cpu()).sum())
            count += len(usable)
    return hits / max(1, count)


@torch.no_grad()
def lift(classifier: Classifier, triggers: Sequence[Trigger], dummies: Dummies, run: Run, *, most: int = 200) -> float:
    """By how much more triggers raise the logit of their goal than the median other class, mean over dummies.

    Success asks whether a goal wins over a dummy's own class, of which dummies in place are far surer than real images:
    what sends a third of these to the goal sends no dummy there. What it adds to the goal shows all the same
    (docs/research/log.md, 45).
    """
    found = []
    for trigger in triggers:
        goals = trigger.goals_of(dummies.labels)
        usable = (goals >= 0).nonzero()[:most, 0]
        if not len(usable):
            continue
        run.meter.add(2 * len(usable), backward=False)
        changed = logits_of(classifier, apply_trigger(trigger, dummies.images[usable])).float()
        risen = changed - logits_of(classifier, dummies.images[usable]).float()
        goal, own = goals[usable].cpu()[:, None], dummies.labels[usable].cpu()[:, None]
        others = risen.scatter(1, own, float("nan")).scatter(1, goal, float("nan")).nanmedian(1).values
        found.append((risen.gather(1, goal)[:, 0] - others).nanmean())
    return torch.stack(found).mean().item() if found else 0.0


def still_lifted(new: Classifier, before: Attack, fresh: Dummies, run: Run) -> float:
    """The share of what the old patterns lifted the goal by that they lift it by now; 0 where that was not measured."""
    return lift(new, before.found.triggers[:3], fresh, run) / before.lifted if before.lifted > 0 else 0.0


def prove(new: Classifier, fresh: Dummies, before: Sequence[Attack], run: Run, *, plain_margin: float, purpose: str,
          accused: int, must_repeat: bool = True, quick: bool = False, another: bool = False,
          least_by_class: float = 0.8, least_sure: float = 0.9, gone_share: float = 0.4, most_success: float = 0.2,
          tolerated_share: float = 0.5, tolerated_lead: float = 0.1, mostly: float = 0.5,
          most_lifted: float = 0.15) -> Proof:
    """Accept where fresh dummies are answered as before and no lead reaches its goal more easily than others do.

    `before` are the attacks on the old weights, of which the first `accused` filled the bank. A lead is gone where
    its margin is now at most what other classes reach on the new weights (or `gone_share` of a plain margin where
    that is more) and beyond it `tolerated_share` of the lead for which a scan accuses, or `tolerated_lead` of what they
    reach where that is more: one class must be the easiest of a clean network, too, and of those whose other classes
    reach five plain margins half lead by more than 7 %. For the strongest, and for other goals, also the patterns found
    on the old weights, at their natural strength, may send at most `most_success` of the dummies to the goal, or as
    many as the old patterns of a rival class send to that class at such a strength, about which nothing was done; this
    proves nothing alone. A further lead, which did not fill the bank, fails where its old patterns work `mostly`: then
    it may be the trigger itself, of which the bank held a substitute; where `another` round can follow, nothing is
    searched then. Where no attack on the old weights succeeds, its failure on the new ones proves nothing
    (`must_repeat`). Agreement is asked for in the mean over classes (`least_by_class`) and on the surer half
    (`least_sure`), as `kept_agreement` counts them. On dummies that are not movable the old patterns may lift the goal
    by at most `most_lifted` of what they did before.
    """
    agreed = agreement(fresh, new)
    run.meter.add(2 * len(fresh), backward=False)
    if not logits_of(new, fresh.images).isfinite().all():
        return Proof(agreed, (), False, "The new weights give answers that are not finite.", (), (), (), False)
    repeated = not must_repeat or any(
        old.found.margin > max(old.found.others, gone_share * plain_margin) for old in before[:accused])
    worked = [success(new, old.natural, fresh, run) for old in before]
    untouched = [number >= accused and share >= mostly for number, share in enumerate(worked)]
    if another and repeated and any(untouched):
        refuting = [(old, share) for old, share, works in zip(before, worked, untouched, strict=True) if works]
        told = ", ".join(f"{_named(old)}, {share:.0%}" for old, share in refuting)
        return Proof(agreed, (), False, f"Patterns that did not fill the bank still reach the goal ({told}).", (), (),
                     tuple(trigger for old, _ in refuting for trigger in old.found.triggers), repeated)
    after = attack(new, fresh, [old.found.lead for old in before], run, purpose=purpose, quick=quick)
    by_class, sure = kept_agreement(fresh, new, before[0].found.lead.target if before else None)
    others = [max(now.found.others, gone_share * plain_margin) for now in after]
    comparisons = [SearchComparison(
        family=_named(old), target=old.found.lead.target, margin_before=old.found.margin,
        success_before=old.success, margin_after=now.found.margin, success_after=now.success, others_after=reach,
        tolerated=max(tolerated_share * old.found.lead.unit, tolerated_lead * reach),
        old_success_after=share)
        for old, now, reach, share in zip(before, after, others, worked, strict=True)]
    goal = comparisons[0].target if comparisons else None
    easier = [c.margin_after > c.others_after + c.tolerated for c in comparisons]
    above_rivals = [c.old_success_after > max((success(new, [t], fresh, run) for t in old.rivals), default=0.0)
                    for c, old in zip(comparisons, before, strict=True)]
    to_unlearn = tuple(t for attacks, apply in ((after, easier), (before, untouched))
                       for item, applies in zip(attacks, apply, strict=True) if applies for t in item.found.triggers)
    left = [c for number, c in enumerate(comparisons) if easier[number] or untouched[number]
            or ((number == 0 or c.target != goal) and c.old_success_after > most_success and above_rivals[number])]
    lifted = still_lifted(new, before[0], fresh, run) if before else 0.0
    if lifted > most_lifted:
        to_unlearn += before[0].found.triggers
    if by_class < least_by_class:
        reason = (f"The new weights agree with the old ones on only {by_class:.1%} of the fresh dummies in the mean "
                  f"over other classes (at least {least_by_class:.0%} is asked).")
    elif sure < least_sure:
        reason = (f"The new weights agree with the old ones on only {sure:.1%} of the surer fresh dummies "
                  f"(at least {least_sure:.0%} is asked).")
    elif not repeated:
        reason = "The accusation could not be repeated on the old weights with other seeds, so nothing is proven."
    elif left:
        names = ", ".join(sorted({c.family for c in left}))
        reason = f"The goal is still reached ({names}): more easily than other classes, or by the old patterns."
    elif lifted > most_lifted:
        reason = (f"The old patterns still raise the goal by {lifted:.0%} of what they did (at most {most_lifted:.0%} "
                  "is asked, for dummies of this network are far surer than real images).")
    else:
        reason = (f"{agreed.overall:.1%} of fresh dummies ({sure:.1%} of the surer half) are answered as before" +
                  (", and what new searches reach is in line with other classes." if after else "."))
    accepted = (by_class >= least_by_class and sure >= least_sure and repeated and not left
                and lifted <= most_lifted)
    return Proof(agreed, tuple(comparisons), accepted, reason, after, tuple(left), to_unlearn, repeated)


def _named(attacked: Attack) -> str:
    """The lead of an attack as a report names it."""
    lead = attacked.found.lead
    return f"place {lead.window}" if lead.window else lead.family


@dataclass(frozen=True, slots=True)
class SecondLook:
    """The share of clean networks about which a new scan says as much of the goal (None: it says nothing), a lead to
    the goal's strongest family, and what was found on the new weights.
    """

    share: float | None
    leads: tuple[Lead, ...] = ()
    triggers: tuple[Trigger, ...] = ()


def second_look(new: Classifier, goal: int, run: Run, *, purpose: str, source: int | None = None) -> SecondLook:
    """What a new scan of the new weights says of `goal`; where it was reached from one `source`, stamped pairs, too.

    A proof searches the families that were repaired; the trigger may be of another one. The screen has all families,
    other seeds and dummies of the new weights, and a null distribution of its own. Where these dummies reach fewer
    classes than on the calibration networks it says nothing, and the share is None. The goal is known beforehand, while
    the null holds each clean network's leading one: the share errs on the side of accepting.
    """
    calibration = shipped(new.spec.shape[0])
    dummies = invert(new, SCREEN_DUMMIES, run, purpose=purpose)
    if len(dummies.labels.unique()) < REACHED * dummies.logits.shape[1]:
        return SecondLook(None)
    results = calibration.placed([item.result for item in screen(new, dummies, run, purpose=purpose)])
    # The last layer's weights lean towards the goal as before: they are no sign that anything still works.
    shares = {name: share for name, share in scores_of(results).items() if name != "screen head weights"}
    told = by_goal(results, shares).get(goal, 0.0) * calibration.threshold()
    mine = sorted((r for r in results if r.target == goal and r.kind == "all2one" and r.family and r.margin is not None
                   and shares.get(r.name, 0.0) > 0), key=lambda r: -shares[r.name])
    strides = dict(windows_for(new.spec.shape))
    share = p_value(told, calibration.combined)
    look = SecondLook(share, tuple(lead_of(r, strides.get(r.window, 1)) for r in mine[:1]))
    if source is None or STAMPED_PAIRS not in calibration.nulls:
        return look
    (pair,) = on_dummies(new, dummies, run, names=("stamped pairs",))
    if (pair.result.source, pair.result.target) != (source, goal):
        return look
    by_stamps = p_value(pair.result.statistic or 0.0, calibration.nulls[STAMPED_PAIRS])
    return SecondLook(by_stamps, (), pair.triggers) if by_stamps < share else look
