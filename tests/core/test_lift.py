"""What old patterns add to the goal, on dummies that are far surer of their class than real images."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers.planted import CPU, SPEC, TARGET, Attack, Planted
from torch import nn

from deepsanitizer import removal, verify
from deepsanitizer.classifier import Classifier, classifier_of
from deepsanitizer.ground import Ground
from deepsanitizer.repair import bank
from deepsanitizer.repair.bank import Followed, Lead
from deepsanitizer.split import split
from deepsanitizer.types import Agreement, Dummies, InputSpec, Run, Trigger

PlantedOf = Callable[[Attack], Planted]
DummiesOf = Callable[[Attack], Dummies]

LEAD = Lead("add", "all2one", None, TARGET, 3.0, strength=0.1)
BLANK = Trigger("add", {"pattern": torch.zeros(1, *SPEC.shape)}, 0.1, TARGET, None, 50.0)


def test_lift_is_the_goals_gain_over_the_median_other_class() -> None:
    """On a linear network it is known exactly, whatever class wins; a dummy's own class does not count."""
    spec = InputSpec((1, 2, 2), 5, (0.0,), (1.0,))
    head = nn.Linear(4, 5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])[:, None].expand(5, 4))
        head.bias.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0, 0.0]))  # every dummy is of class 0, and stays there
    classifier = classifier_of(nn.Sequential(nn.Flatten(), head), spec, CPU)
    images = torch.full((6, 1, 2, 2), 0.5)
    some = Dummies(images, classifier(images).detach(), "test", matched=False, movable=False)
    trigger = Trigger("add", {"pattern": torch.full((1, 1, 2, 2), 50.0)}, 0.1, 3, None, 1.0)  # 0.1 more everywhere
    run = Run(CPU)
    assert verify.success(classifier, [trigger], some, run) == 0
    # The goal gains 1.6; classes 1, 2 and 4 gain 0.4, 0.8 and 3.2.
    assert verify.lift(classifier, [trigger], some, run) == pytest.approx(1.6 - 0.8, abs=1e-4)
    assert verify.lift(classifier, [replace(trigger, target=1)], some, run) == pytest.approx(0.4 - 1.6, abs=1e-4)
    assert verify.lift(classifier, [replace(trigger, target=0)], some, run) == 0  # applies to no dummy


@pytest.mark.parametrize(("lifted", "left", "stands"), [(8.0, 2.0, False), (8.0, 1.0, True), (0.0, 2.0, True)])
def test_a_proof_in_place_refuses_what_still_lifts_the_goal(
        lifted: float, left: float, stands: bool, planted: PlantedOf, dummies_for: DummiesOf,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """An own transformer was accepted at an ASR of 37 whose dummies the old patterns no longer sent anywhere."""
    before = (verify.Attack(Followed(LEAD, (BLANK,), 3.0), 0.9, (BLANK,), lifted=lifted),)
    after = (verify.Attack(Followed(LEAD, (replace(BLANK, margin=-5.0),), 3.0), 0.0, (BLANK,)),)
    monkeypatch.setattr(verify, "attack", lambda *arguments, **options: after)
    monkeypatch.setattr(verify, "lift", lambda *arguments, **options: left)
    told = verify.prove(planted("none").classifier(), dummies_for("none"), before, Run(CPU),
                        plain_margin=10.0, purpose="test", accused=1)
    assert told.accepted is stands
    assert [t.margin for t in told.to_unlearn] == ([] if stands else [50.0])
    assert ("25% of what they did" in told.reason) is not stands


def test_an_attack_in_place_tells_how_far_it_lifts(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    for movable in (True, False):
        some = replace(dummies_for("blend"), movable=movable)
        (told,) = verify.attack(planted("blend").classifier(), some, [replace(LEAD, family="blend")], Run(CPU),
                                purpose="test", quick=True)
        assert (told.lifted == 0) is movable
        assert told.lifted >= 0


def test_a_repair_in_place_goes_on_while_old_patterns_lift(planted: PlantedOf, dummies_for: DummiesOf,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    some, parts = dummies_for("none"), split(planted("none").classifier(), "auto")
    ground = Ground(parts, some, some, some, (LEAD,), (
        verify.Attack(Followed(LEAD, (BLANK,), 3.0), 0.9, (BLANK,), lifted=8.0),), 5.0, None, Run(CPU),
        lambda name, /: nullcontext(), quick=True, suspected=True)
    monkeypatch.setattr(removal, "success", lambda *arguments, **options: 0.0)
    for lifts, weight, factor in (([0.5], 16, "1.2"), ([2.0, 1.0, 0.5], 16, "1.8"), ([2.0, 2.0, 2.0, 0.5], 4, "1.2")):
        told = iter(lifts)
        monkeypatch.setattr(verify, "lift", lambda *arguments, told=told, **options: next(told))
        _, kept, step = removal._relearned(ground, some, [BLANK], tuned=True, most_lost=1.0)
        assert kept == weight
        assert f"overshot by {factor}" in step


def test_where_a_longer_step_loses_agreement_a_lighter_weight_is_tried(planted: PlantedOf, dummies_for: DummiesOf,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised colours on signs were left at an ASR of 96: the first weight's longer step ended the search."""
    some, parts = dummies_for("none"), split(planted("none").classifier(), "auto")
    ground = Ground(parts, some, some, some, (LEAD,), (
        verify.Attack(Followed(LEAD, (BLANK,), 3.0), 0.9, (BLANK,)),), 5.0, None, Run(CPU),
        lambda name, /: nullcontext(), quick=True, suspected=True)
    for tuned, successes, agreed, weight in (
            (True, [0.9, 0.0, 0.0], [1.0, 0.9, 1.0], 4.0),  # the refused step had removed it, at too high a price
            (True, [0.9, 0.0, 0.9], [1.0, 0.9, 0.9], 16.0),  # the lighter weight costs as much: neither is taken
            (True, [0.03, 0.0], [1.0, 0.9], 16.0),  # nearly gone with the shorter step
            (False, [0.9, 0.0], [1.0, 0.9], 16.0)):
        hits, kept = iter(successes), iter(agreed)
        monkeypatch.setattr(removal, "success", lambda *arguments, hits=hits, **options: next(hits))
        monkeypatch.setattr(removal, "kept_agreement", lambda *arguments, kept=kept, **options: (1.0, next(kept)))
        _, chosen, step = removal._relearned(ground, some, [BLANK], tuned=tuned)
        assert chosen == weight
        assert "send 90.0%" in step if weight == 16 and successes[0] == 0.9 else "send 90.0%" not in step
        assert next(hits, None) is next(kept, None) is None


def test_where_a_repair_fails_quantised_colours_are_unlearned_instead(
        planted: PlantedOf, dummies_for: DummiesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Additive patterns reached ten times the margin; to unlearn them cost 17 and 67 points, these cost 3."""
    some, parts = dummies_for("none"), split(planted("none").classifier(), "auto")
    leads = [replace(LEAD, family=family) for family in ("add", "patch", "quantise")]
    attacks = tuple(verify.Attack(Followed(lead, (BLANK,), 3.0), 0.9, (BLANK,)) for lead in leads)
    whole = Ground(parts, some, some, some, (leads[0],), attacks, 5.0, None, Run(CPU),
                           lambda name, /: nullcontext(), quick=True, suspected=True, second_look=False)
    other = whole.instead()
    assert other is not None
    assert other.leads == (leads[2],)
    assert [attack.found.lead.family for attack in other.before] == ["quantise", "add", "patch"]
    assert other.instead() is None
    assert replace(whole, before=attacks[:2]).instead() is None
    followed: list[str] = []

    def follow(classifier: Classifier, dummies: Dummies, lead: Lead, run: Run, **options: object) -> Followed:
        followed.append(lead.family)
        return attacks[0].found

    monkeypatch.setattr(bank, "follow", follow)
    monkeypatch.setattr(removal, "_relearned", lambda *arguments, **options: (parts.classifier, 16.0, "relearned"))
    for method, accepted, families in (("auto", (True,), ["add"]), ("auto", (False, True), ["add", "quantise"]),
                                       ("closed_form", (False,), ["add"])):
        followed.clear()
        proofs = iter(verify.Proof(Agreement(overall=1.0, per_class=[]), (), good, "told", (), (), (), True)
                      for good in accepted)
        monkeypatch.setattr("deepsanitizer.ground.prove", lambda *arguments, proofs=proofs, **options: next(proofs))
        done = removal.remove(whole, method, rounds=3)
        assert followed == families
        assert done.proof.accepted is accepted[-1]
        assert any("quantised colours alone" in step for step in done.steps) is (len(families) > 1)
