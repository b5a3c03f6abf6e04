"""Old weights against new ones, on fresh dummies: is accuracy kept, is the backdoor gone?

Agreement stands in for accuracy. An independent search, run with seeds and dummies that the repair has not seen,
on the old and on the new weights, stands in for the attack.
Limits: both are proxies. Agreement on dummies is not accuracy on real images, and a trigger of no family searched
stays unseen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.repair.bank import Lead, follow
from deepsanitizer.triggers import apply_trigger
from deepsanitizer.types import Agreement, Dummies, Run, SearchComparison, Trigger


@dataclass(frozen=True, slots=True)
class Attack:
    """What a fresh search for one lead reached on one set of weights."""

    lead: Lead
    margin: float
    success: float
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """The evidence for accepting or rolling back; `attacks` are those on the new weights."""

    agreement: Agreement
    comparisons: tuple[SearchComparison, ...]
    accepted: bool
    reason: str
    attacks: tuple[Attack, ...]


def agreement(fresh: Dummies, new: Classifier) -> Agreement:
    """Share of dummies on which the new classifier answers as the old one did, over all and per class."""
    labels = fresh.labels.cpu()
    same = (logits_of(new, fresh.images).argmax(1) == labels).float()
    per_class = [same[labels == k].mean().item() if (labels == k).any() else None
                 for k in range(fresh.logits.shape[1])]
    return Agreement(overall=same.mean().item(), per_class=per_class)


def attack(classifier: Classifier, fresh: Dummies, leads: Sequence[Lead], run: Run, *,
           purpose: str) -> tuple[Attack, ...]:
    """For each lead a fresh search, and how many dummies its strongest result sends to the goal."""
    attacks = []
    for lead in leads:
        triggers = follow(classifier, fresh, lead, run, purpose=purpose)
        attacks.append(Attack(lead, triggers[0].margin, success(classifier, triggers[0], fresh, run), triggers))
    return tuple(attacks)


@torch.no_grad()
def success(classifier: Classifier, trigger: Trigger, dummies: Dummies, run: Run, *, most: int = 200) -> float:
    """Share of dummies that a trigger sends to its goal, of those to which it applies."""
    goals = trigger.goals_of(dummies.labels)
    usable = (goals >= 0).nonzero()[:most, 0]
    if not len(usable):
        return 0.0
    run.meter.add(len(usable), backward=False)
    said = logits_of(classifier, apply_trigger(trigger, dummies.images[usable])).argmax(1)
    return (said == goals[usable].cpu()).float().mean().item()


def prove(new: Classifier, fresh: Dummies, before: Sequence[Attack], run: Run, *, plain_margin: float, purpose: str,
          least_agreement: float = 0.9, gone_share: float = 0.4) -> Proof:
    """Accept where fresh dummies are answered as before and no lead reaches its goal more easily than others do.

    `before` are the attacks on the old weights. A lead is gone where its margin is now below what other classes
    reach, or below `gone_share` of the network's plain margin where that is more.
    """
    after = attack(new, fresh, [old.lead for old in before], run, purpose=purpose)
    agreed = agreement(fresh, new)
    run.meter.add(len(fresh), backward=False)
    comparisons = tuple(SearchComparison(
        family=old.lead.family if not old.lead.window else f"place {old.lead.window}", target=old.lead.target,
        margin_before=old.margin, success_before=old.success, margin_after=now.margin, success_after=now.success,
        others_after=old.lead.limit) for old, now in zip(before, after, strict=True))
    left = [now for now in after if now.margin > max(now.lead.limit, gone_share * plain_margin)]
    if agreed.overall < least_agreement:
        reason = (f"The new weights agree with the old ones on only {agreed.overall:.1%} of fresh dummies "
                  f"(at least {least_agreement:.0%} is asked).")
    elif left:
        names = ", ".join(sorted({item.lead.family for item in left}))
        reason = f"A new search ({names}) still reaches the goal more easily than it reaches other classes."
    else:
        reason = f"{agreed.overall:.1%} of fresh dummies are answered as before" + (
            ", and new searches no longer reach the goal more easily than other classes." if after else ".")
    return Proof(agreed, comparisons, agreed.overall >= least_agreement and not left, reason, after)
