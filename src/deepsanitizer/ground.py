"""The ground of a repair: what all attempts on one model share, and how a candidate is proven on it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from deepsanitizer.calibration import LEVEL, shipped
from deepsanitizer.classifier import Classifier
from deepsanitizer.curate import curate_ordinary, invert
from deepsanitizer.facts import round_like
from deepsanitizer.policy import LAST_RESORT, Plan, leads_for
from deepsanitizer.repair import bank
from deepsanitizer.split import Split
from deepsanitizer.types import Checkpoint, Dummies, Run, SignalResult, Suspect
from deepsanitizer.verdict import SUSPICIOUS_FROM
from deepsanitizer.verify import Attack, Proof, attack, prove, second_look


class Stage(Protocol):
    """Opens a named stage of which time and passes are counted."""

    def __call__(self, name: str, /) -> AbstractContextManager[None]:
        """Count what happens inside."""
        ...


@dataclass(frozen=True, slots=True)
class Repaired:
    """A candidate, the proof it stood or failed, and how it came about."""

    classifier: Classifier
    proof: Proof
    steps: tuple[str, ...]
    loss_step0: float | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What all attempts on one model share."""

    parts: Split
    dummies: Dummies  # those of the scan, on which triggers are searched
    ordinary: Dummies  # what a repair learns from
    fresh: Dummies
    leads: tuple[bank.Lead, ...]  # those that fill the bank
    before: tuple[Attack, ...]
    unit: float
    stored_as: Checkpoint | None
    run: Run
    stage: Stage
    quick: bool
    suspected: bool  # not where a repair was forced, or a class named, without any suspicion
    second_look: bool = True

    def instead(self) -> "Ground | None":
        """The same with quantised colours as the only lead, where they accuse, too, and do not lead yet.

        To a network that such a trigger was planted in any noise of its size is the trigger. Additive patterns reach
        ten times the margin there, and to unlearn these may ruin it (docs/research/log.md, 52 and 53).
        """
        mine = [attacked for attacked in self.before if attacked.found.lead.family == LAST_RESORT]
        if not mine or self.leads[0].family == LAST_RESORT:
            return None
        rest = [attacked for attacked in self.before if attacked is not mine[0]]
        return replace(self, leads=(mine[0].found.lead,), before=(mine[0], *rest))

    def proven(self, candidate: Classifier, number: int, steps: Sequence[str], *, another: bool = False) -> Repaired:
        """Round to the stored precision, then search anew: what is proven is what will be in the file.

        Where `another` round can follow, nothing is searched on weights that the old patterns refute.
        """
        with self.stage("verify"):
            round_like(candidate, self.stored_as)
            proof = prove(candidate, self.fresh, self.before, self.run, plain_margin=self.unit,
                          purpose=f"verify {number}", accused=len(self.leads), must_repeat=self.suspected,
                          quick=self.quick, another=another)
        goal, spec = self.leads[0].target, candidate.spec
        covered = shipped(spec.shape[0]).covers(spec.num_classes, spec.shape)
        if proof.accepted and goal is not None and covered:
            if not self.second_look:
                return Repaired(candidate, replace(proof, reason=(
                    f"{proof.reason} The repaired network was not scanned anew: this effort leaves that out.")),
                    tuple(steps))
            with self.stage("second look"):
                proof = self._looked_at_again(candidate, proof, goal, f"second look {number}")
        return Repaired(candidate, proof, tuple(steps))

    def _looked_at_again(self, candidate: Classifier, proof: Proof, goal: int, purpose: str) -> Proof:
        """Refused where a scan would still accuse the goal; its strongest family then fills the bank, too."""
        look = second_look(candidate, goal, self.run, purpose=purpose, source=self.leads[0].source)
        said = look.share
        if said is None:
            return replace(proof, reason=f"{proof.reason} A new scan of the repaired network says nothing: its "
                                         "dummies reach too few classes.")
        if said > LEVEL:
            return replace(proof, reason=f"{proof.reason} A new scan of the repaired network does not accuse the goal: "
                                         f"{said:.0%} of clean networks show as much.")
        leads = bank.matched(self.parts.classifier, self.dummies, look.leads, self.run, plain_margin=self.unit)
        found = look.triggers + tuple(trigger for lead in leads for trigger in bank.follow(
            self.parts.classifier, self.dummies, lead, self.run, purpose=purpose,
            **(bank.QUICK if self.quick else bank.FULL)).triggers)
        named = f" ({leads[0].family})" if leads else " (stamps)" if look.triggers else ""
        return replace(proof, accepted=False, to_unlearn=found, reason=(
            f"A new screen of the repaired network still speaks of the same goal{named}: of clean networks "
            f"{said:.0%} show as much."))


def prepare(parts: Split, dummies: Dummies, results: Sequence[SignalResult], suspects: Sequence[Suspect], plan: Plan,
            run: Run, stage: Stage, *, stored_as: Checkpoint | None) -> Ground:
    """Fresh dummies, the leads with matched strengths, and the attack on the old weights; shared by all methods."""
    old, unit = parts.classifier, dummies.plain_margin
    with stage("fresh dummies"):
        fresh = invert(old, plan.fresh, run, purpose="fresh dummies")
    ordinary = dummies  # untried without statistics to match
    if dummies.matched:
        with stage("ordinary dummies"):
            ordinary = curate_ordinary(old, plan.ordinary, run, purpose="ordinary dummies")
    with stage("attack before"):
        first, further = (bank.matched(old, dummies, some, run, plain_margin=unit)
                          for some in leads_for(suspects, results, old.spec.shape, movable=dummies.movable))
        before = attack(old, fresh, [*first, *further], run, purpose="verify before", quick=plan.quick)
    return Ground(parts, dummies, ordinary, fresh, tuple(first), before, unit, stored_as, run, stage, plan.quick,
                  suspected=suspects[0].score >= SUSPICIOUS_FROM, second_look=plan.second_look)
