"""A second look: the screen of a repaired network must no longer accuse the goal."""

import dataclasses
from contextlib import nullcontext

import pytest
from helpers.planted import CPU

from deepsanitizer import verify
from deepsanitizer.calibration import LEVEL, STAMPED_PAIRS
from deepsanitizer.classifier import Classifier, classifier_of
from deepsanitizer.curate import invert
from deepsanitizer.demo import truth
from deepsanitizer.demo.run import load_model
from deepsanitizer.ground import Ground
from deepsanitizer.policy import EFFORTS
from deepsanitizer.repair.bank import Lead
from deepsanitizer.signals import SCREEN_DUMMIES, screen
from deepsanitizer.split import split
from deepsanitizer.types import Agreement, Evidence, Run, SignalResult, Trigger
from deepsanitizer.verify import Proof, SecondLook

TARGET: int = truth.planted()["target"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def demo() -> Classifier:
    loaded = load_model()
    return classifier_of(loaded.network, loaded.spec, CPU)


def ground_of(demo: Classifier, lead: Lead) -> Ground:
    run = Run(CPU)
    dummies = invert(demo, 43, run, purpose="test", steps=5)
    return Ground(split(demo, "auto"), dummies, dummies, dummies, (lead,), (), 5.0, None, run,
                          lambda name, /: nullcontext(), quick=True, suspected=True)


def test_a_network_that_still_carries_its_backdoor_is_told_and_of_another_class_nothing_is_said(
        demo: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    # One screen for both questions: the goal is asked of it afterwards.
    dummies = invert(demo, SCREEN_DUMMIES, Run(CPU, 1), purpose="test")
    looked = screen(demo, dummies, Run(CPU, 1), purpose="test")
    monkeypatch.setattr(verify, "invert", lambda *args, **kwargs: dummies)
    monkeypatch.setattr(verify, "screen", lambda *args, **kwargs: looked)
    look = verify.second_look(demo, TARGET, Run(CPU, 1), purpose="test")
    assert look.share is not None
    assert look.share <= LEVEL
    assert [lead.target for lead in look.leads] == [TARGET]
    assert look.leads[0].family in ("blend", "add")
    other = (TARGET + 7) % demo.spec.num_classes
    look = verify.second_look(demo, other, Run(CPU, 1), purpose="test")
    assert look.share is not None
    assert look.share > LEVEL
    assert all(lead.target == other for lead in look.leads)


@pytest.mark.parametrize(("statistic", "source", "refused"), [
    (9.0, 3, True), (9.0, 4, False), (0.0, 3, False), (9.0, None, False)])
def test_a_pair_is_looked_for_again_by_its_stamps(statistic: float, source: int | None, refused: bool,
                                                  demo: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch from one class was accepted at an ASR of 21, for no screen sees such a trigger (docs/research/log.md,
    57).
    """
    other = (TARGET + 7) % demo.spec.num_classes
    stamp = Trigger("place", {}, 1.0, other, 3, 1.0)
    told = SignalResult(name=STAMPED_PAIRS, kind="specific", applicable=True, source=3, target=other,
                        statistic=statistic)
    dummies = invert(demo, SCREEN_DUMMIES, Run(CPU, 1), purpose="test", steps=20)
    monkeypatch.setattr(verify, "REACHED", 0.0)
    monkeypatch.setattr(verify, "invert", lambda *args, **kwargs: dummies)
    monkeypatch.setattr(verify, "screen", lambda *args, **kwargs: ())
    monkeypatch.setattr(verify, "on_dummies", lambda *args, **kwargs: iter([Evidence(told, (stamp,))]))
    look = verify.second_look(demo, other, Run(CPU, 1), purpose="test", source=source)
    assert look.share is not None
    assert (look.share <= LEVEL) == refused
    assert look.triggers == ((stamp,) if refused else ())


def test_an_effort_that_leaves_it_out_says_so(demo: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = Lead("add", "all2one", None, TARGET, 0.0, strength=0.12)
    fine = Proof(Agreement(overall=1.0, per_class=[]), (), True, "fine", (), (), (), True)
    monkeypatch.setattr("deepsanitizer.ground.prove", lambda *args, **kwargs: fine)
    ground = dataclasses.replace(ground_of(demo, lead), second_look=EFFORTS["fast"].second_look)
    proof = ground.proven(demo.clone(), 0, ["a step"]).proof
    assert proof.accepted
    assert "not scanned anew" in proof.reason
    assert EFFORTS["standard"].second_look
    assert EFFORTS["thorough"].second_look


@pytest.mark.parametrize(("said", "accepted"), [(0.01, False), (0.4, True), (None, True)])
def test_what_the_screen_still_speaks_of_is_refused_and_joins_the_bank(
        said: float | None, accepted: bool, demo: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = Lead("add", "all2one", None, TARGET, 0.0, strength=0.12)
    fine = Proof(Agreement(overall=1.0, per_class=[]), (), True, "fine", (), (), (), True)
    monkeypatch.setattr("deepsanitizer.ground.prove", lambda *args, **kwargs: fine)
    monkeypatch.setattr("deepsanitizer.ground.second_look", lambda *args, **kwargs: SecondLook(said, (lead,)))
    proof = ground_of(demo, lead).proven(demo.clone(), 0, ["a step"]).proof
    assert proof.accepted == accepted
    assert all((t.family, t.target) == ("add", TARGET) for t in proof.to_unlearn)
    assert bool(proof.to_unlearn) == (not accepted)
    assert ("still speaks" in proof.reason) == (not accepted)
    assert ("40% of clean networks" in proof.reason) == (said == 0.4)
    assert ("says nothing" in proof.reason) == (said is None)
