"""From made-up evidence: verdicts, suspects, leads, and what is accepted as proof."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import torch
from helpers.planted import CLASSES, CPU, SPEC, TARGET, Attack, Planted
from torch import nn

from deepsanitizer import stats, verify
from deepsanitizer.classifier import Classifier
from deepsanitizer.policy import EFFORTS, leads_for, suspect_for
from deepsanitizer.repair.bank import Followed, Lead, follow, lead_of
from deepsanitizer.report.words import comparison_in_line
from deepsanitizer.signals import UNIVERSAL_FAMILIES, collect, screen, told_again, windows_for
from deepsanitizer.signals.universal import unit_of
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Evidence, Run, SignalResult, Suspect, Trigger
from deepsanitizer.verdict import THRESHOLD, judge, suspects_of

PlantedOf: TypeAlias = Callable[[Attack], Planted]
DummiesOf: TypeAlias = Callable[[Attack], Dummies]
SHAPE = (3, 32, 32)


def signal(score: float | None, *, target: int | None = 2, **fields: Any) -> SignalResult:
    given: dict[str, Any] = {"name": fields.get("family", "add"), "family": "add", "applicable": True, "margin": 10.0,
                             "runner_up": 2.0, "success": 0.9, "per_target": [1.0, 2.0, 10.0, 0.0]} | fields
    return SignalResult(score=score, target=target, **given)


def evidence(score: float | None, **fields: Any) -> Evidence:
    result = signal(score, **fields)
    return Evidence(result, (Trigger(result.family, {}, 0.1, result.target, result.source, 5.0),))


def dummies(classes: int = 4, reached: int = 4) -> Dummies:
    logits = 5 * torch.eye(classes)[torch.arange(40) % reached]
    return Dummies(torch.zeros(40, 3, 8, 8), logits, "made up")


def test_the_four_verdicts() -> None:
    assert judge([evidence(THRESHOLD + 0.5)], dummies()).name == "backdoored"
    assert judge([evidence(0.95 * THRESHOLD)], dummies()).name == "suspicious"
    assert judge([evidence(0.1), evidence(-3.0), evidence(None)], dummies()).name == "clean"
    assert judge([evidence(0.1)], dummies(reached=1)).name == "inconclusive"
    assert judge([], dummies()).name == "clean"


def test_no_verdict_is_calibrated_yet_and_each_says_why() -> None:
    for score in (0.1, 0.9, 5.0):
        verdict = judge([evidence(score)], dummies())
        assert not verdict.calibrated
        assert verdict.explanation.endswith(".")
        assert verdict.threshold == THRESHOLD
        assert verdict.score == score


def test_unknown_is_never_clean() -> None:
    """Dummies of too few classes, or logits that are no numbers."""
    broken = dummies()
    broken.logits[0, 0] = float("nan")
    assert judge([evidence(0.1)], broken).name == "inconclusive"
    assert judge([evidence(0.9)], dummies(reached=1)).name == "inconclusive"
    assert judge([evidence(0.1)], dummies(classes=100, reached=40)).name == "inconclusive"


def test_a_lead_that_seldom_succeeds_is_only_suspicious() -> None:
    assert judge([evidence(3.0, success=0.1)], dummies()).name == "suspicious"


def test_an_inapplicable_signal_says_nothing() -> None:
    verdict = judge([evidence(9.0, applicable=False)], dummies())
    assert verdict.name == "clean"
    assert verdict.score == 0.0
    assert verdict.suspects == ()


def test_suspects_are_ranked_each_goal_once() -> None:
    found = suspects_of([
        evidence(2.0, target=1, family="blend"), evidence(9.0, target=3), evidence(4.0, target=1),
        evidence(5.0, kind="specific", source=0, target=1, family="place"),
        evidence(3.0, kind="all2all", target=None, family="place"), evidence(0.2, target=0),
        Evidence(signal(7.0, target=2)),  # recovered nothing: accuses no one
    ], at_least=1.0)
    assert [(s.kind, s.source, s.target, s.family, s.score) for s in found] == [
        ("all2one", None, 3, "add", 9.0), ("specific", 0, 1, "place", 5.0), ("all2one", None, 1, "add", 4.0),
        ("all2all", None, None, "place", 3.0)]


def suspect(**fields: Any) -> Suspect:
    return Suspect(**({"kind": "all2one", "source": None, "target": 2, "family": "add", "score": 5.0} | fields))


def test_leads_are_the_signals_that_accuse_the_goal_strongest_first() -> None:
    results = [signal(2.5, family="warp"), signal(4.9, family="blend"), signal(5.0), signal(8.0, target=1),
               signal(4.8, family="place", window=6), signal(4.9, kind="specific", source=0, family="place", window=6),
               signal(9.0, applicable=False, family="filter")]
    bank, further = leads_for([suspect()], results, SHAPE)
    assert [lead.family for lead in bank] == ["add", "blend"]  # one group of families; a filter is of another
    assert {lead.family for lead in further} == {"warp", "place"}
    for lead in [*bank, *further]:
        assert (lead.kind, lead.source, lead.target) == ("all2one", None, 2)
        assert lead.limit == 2.0
    by_place = next(lead for lead in further if lead.family == "place")
    assert (by_place.window, by_place.stride) == (6, dict(windows_for(SHAPE))[6])
    assert bank[0].strength == FAMILIES["add"].strength


def test_leads_of_further_suspects_are_checked_but_do_not_fill_the_bank() -> None:
    results = [signal(5.0), signal(4.0, target=1, family="blend"), signal(3.0, target=1), signal(3.5, target=0),
               signal(1.5, target=3)]  # the last is weak beside the best
    suspects = [suspect(target=target, score=score) for target, score in ((2, 5.0), (1, 4.0), (0, 3.5), (3, 1.5))]
    bank, further = leads_for(suspects, results, SHAPE)
    assert [(lead.family, lead.target) for lead in bank] == [("add", 2)]
    assert [(lead.family, lead.target) for lead in further] == [("blend", 1), ("add", 0)]
    assert leads_for(suspects, results, SHAPE, others=1)[1] == further[:1]
    assert leads_for(suspects[:1], results, SHAPE)[1] == []


def test_warps_lead_last_where_moved_images_lose_their_class() -> None:
    """A transformer sends any moved image to its favourite: a repair of warps left the blend that was planted."""
    results = [signal(9.0, family="warp"), signal(4.9, family="blend")]
    for movable, families in ((True, ["warp"]), (False, ["blend"])):
        bank, _ = leads_for([suspect()], results, SHAPE, movable=movable)
        assert [lead.family for lead in bank] == families
    (only,), _ = leads_for([suspect()], results[:1], SHAPE, movable=False)
    assert only.family == "warp"


def test_a_plain_square_leads_only_where_no_search_by_place_accuses() -> None:
    square, place = signal(9.0, family="square"), signal(2.0, family="place", window=6)
    for results, families in (([square, place], ["place"]), ([square], ["square"])):
        bank, _ = leads_for([suspect()], results, SHAPE)
        assert [lead.family for lead in bank] == families


def test_quantised_colours_that_accuse_come_first_among_what_is_checked() -> None:
    results = [signal(194.0, margin=243.0), signal(90.0, family="filter", margin=30.0),
               signal(100.0, family="place", window=6), signal(14.0, family="quantise", margin=22.0, success=1.0)]
    bank, further = leads_for([suspect()], results, SHAPE)
    assert [lead.family for lead in bank] == ["add"]
    assert [lead.family for lead in further] == ["quantise", "place"]
    results[3] = replace(results[3], score=0.9)
    assert [lead.family for lead in leads_for([suspect()], results, SHAPE)[1]] == ["place", "filter"]


def test_the_purest_leads_of_a_group_fill_the_bank() -> None:
    """A grating that only the target answers keeps out patterns that others answer half as much."""
    mixed = [signal(5.0, margin=50.0, runner_up=20.0), signal(4.0, family="grating", margin=24.0, runner_up=3.0)]
    assert [lead.family for lead in leads_for([suspect()], mixed, SHAPE)[0]] == ["grating"]
    alike = [signal(5.0, margin=50.0, runner_up=20.0), signal(4.0, family="blend", margin=50.0, runner_up=15.0)]
    assert [lead.family for lead in leads_for([suspect()], alike, SHAPE)[0]] == ["add", "blend"]


def test_a_lead_that_is_pure_enough_stays_beside_a_purer_one() -> None:
    """Once a patch search with no rival at all put out the search by place that knew the trigger."""
    results = [signal(5.0, family="place", window=6, margin=58.0, runner_up=6.0),
               signal(4.0, family="patch", margin=43.0, runner_up=0.2)]
    assert [lead.family for lead in leads_for([suspect()], results, SHAPE)[0]] == ["place", "patch"]


def test_dummies_without_statistics_ask_for_twice_the_lead() -> None:
    matched = dummies()
    assert unit_of(matched) == matched.plain_margin
    assert unit_of(replace(matched, matched=False)) == 2 * matched.plain_margin


def test_rivals_are_searched_on_the_same_weights_at_full_strength(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, some = planted("blend").classifier(), dummies_for("blend")
    others = tuple(k for k in range(CLASSES) if k != TARGET)
    lead = Lead("blend", "all2one", None, TARGET, 1234.0, strength=0.01, rivals=others[:2])
    alone, beside = (follow(classifier, some, lead, Run(CPU), purpose="test", restarts=2, steps=8, compete=compete)
                     for compete in (False, True))
    assert alone.others == 1234.0
    assert [t.strength for t in alone.triggers] == pytest.approx([0.01] * len(alone.triggers))
    assert [t.strength for t in beside.triggers] == pytest.approx([FAMILIES["blend"].strength] * len(beside.triggers))
    assert beside.others < beside.margin  # the planted class runs away from them
    nobody = follow(classifier, some, replace(lead, rivals=()), Run(CPU), purpose="test", restarts=2, steps=2,
                    compete=True)
    assert nobody.others == 1234.0


def test_leads_of_the_other_kinds() -> None:
    results = [signal(5.0), signal(4.0, kind="specific", source=0, family="place", window=6),
               signal(3.0, kind="all2all", target=None, family="place", window=10)]
    ((pair,), further) = leads_for([suspect(kind="specific", source=0)], results, SHAPE)
    assert (pair.kind, pair.source, pair.target, pair.window) == ("specific", 0, 2, 6)
    assert further == []
    ((permuting,), further) = leads_for([suspect(kind="all2all", target=None)], results, SHAPE)
    assert (permuting.kind, permuting.target, permuting.window) == ("all2all", None, 10)
    assert further == []


def test_a_goal_that_the_user_names_has_leads_though_nobody_accuses_it() -> None:
    results = [signal(5.0), signal(1.0, family="blend", per_target=[0.0, 9.0, 10.0, 0.0, 0.0]),
               signal(3.0, kind="all2all", target=None, per_target=[], family="place", window=10)]
    named = suspect_for(1, results)
    assert (named.kind, named.source, named.target, named.score) == ("all2one", None, 1, 0.0)
    leads, _ = leads_for([named], results, SHAPE)
    assert leads
    assert all((lead.kind, lead.source, lead.target) == ("all2one", None, 1) for lead in leads)
    assert leads[0].family == "blend"  # its margin stands out there
    assert suspect_for(2, results).score == 5.0  # this one is accused


def test_windows_fit_the_image() -> None:
    for shape in ((3, 32, 32), (1, 28, 20), (3, 8, 8), (3, 224, 224), (3, 4, 60)):
        for window, stride in windows_for(shape):
            assert 2 <= window <= min(shape[1:]) // 2
            assert 1 <= stride <= window
    assert windows_for((3, 32, 32)) == [(6, 3), (10, 4), (14, 6)]


def test_every_effort_is_more_work_than_the_one_below() -> None:
    fast, standard, thorough = (EFFORTS[name] for name in ("fast", "standard", "thorough"))
    for less, more in ((fast, standard), (standard, thorough)):
        assert less.dummies <= more.dummies
        assert less.fresh <= more.fresh
        assert less.rounds <= more.rounds


def test_robust_statistics() -> None:
    assert stats.robust_z([0.0, 2.0, 4.0, 6.0, 20.0]) == pytest.approx(8.0)
    assert stats.robust_z([1.0, 1.0, 1.0, 4.0]) == 3.0  # never divided by less than least_spread
    assert stats.robust_z([1.0, 1.0, 1.0, 4.0], least_spread=0.5) == 6.0
    assert stats.top_two([1.0, 7.0, 5.0]) == (1, 7.0, 5.0)
    assert stats.top_two([3.0]) == (0, 3.0, float("-inf"))


def test_the_unit_of_margins_is_at_least_one() -> None:
    assert dummies().plain_margin == 5.0
    assert Dummies(torch.zeros(3, 3, 8, 8), torch.zeros(3, 4), "").plain_margin == 1.0


def test_signals_on_a_planted_network_agree_with_what_was_planted(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    run = Run(CPU)
    found = collect(planted("blend").classifier(), dummies_for("blend"), run)
    results = [item.result for item in found]
    names = [result.name for result in results]
    assert len(names) == len(set(names))
    assert names[:len(UNIVERSAL_FAMILIES)] == list(UNIVERSAL_FAMILIES)
    for item in found:
        assert item.result.applicable
        for trigger in item.triggers:
            assert (trigger.target, trigger.source) == (item.result.target, item.result.source) or (
                item.result.name in UNIVERSAL_FAMILIES)
        if item.result.kind == "all2one":
            assert len(item.result.per_target) == CLASSES
            assert item.result.margin == max(v for v in item.result.per_target if v is not None)
    blend = next(result for result in results if result.name == "blend")
    assert blend.target == TARGET
    assert blend.score is not None
    assert blend.score > THRESHOLD
    assert sum(result.passes for result in results) == pytest.approx(run.meter.passes)


def test_what_a_screen_has_searched_is_told_again_and_not_searched_twice(planted: PlantedOf,
                                                                         dummies_for: DummiesOf) -> None:
    classifier, some, run = planted("blend").classifier(), dummies_for("blend"), Run(CPU)
    short = screen(classifier, some, run)
    before = run.meter.passes
    found = {item.result.name: item for item in collect(classifier, some, run, quick=True, screened=short)}
    cost, before = run.meter.passes - before, run.meter.passes
    anew = {item.result.name: item for item in collect(classifier, some, run, quick=True)}
    assert list(found) == list(anew)
    assert cost < 0.8 * (run.meter.passes - before)
    window = windows_for(SPEC.shape)[0][0]
    again = {item.result.name: item for told in told_again(short).values() for item in told}
    assert set(again) == {"blend", "filter", "warp", "grating", f"place {window}", f"pairs {window}"}
    for name, item in again.items():
        assert found[name].result == item.result
        assert found[name].triggers
        assert (item.result.stage, item.result.passes) == ("full", 0)
        if item.result.kind == "all2one":  # on the scale of full evidence: 1 at the threshold
            assert item.result.score is not None
            assert item.result.threshold is not None
            assert (item.result.score >= 1) == ((item.result.margin or 0) >= item.result.threshold)
    assert found["blend"].result.target == anew["blend"].result.target == TARGET


def test_searches_that_need_only_one_yes_stop_there_and_the_screen_tells_the_rest(planted: PlantedOf,
                                                                                 dummies_for: DummiesOf) -> None:
    classifier, some, run = planted("blend").classifier(), dummies_for("blend"), Run(CPU)
    short = screen(classifier, some, run)
    anew = {item.result.name: item for item in collect(classifier, some, run, quick=True)}
    before = run.meter.passes
    found = {item.result.name: item for item in collect(
        classifier, some, run, quick=True, screened=short, ahead=["blend"],
        until=lambda evidence: any((item.result.score or 0) >= THRESHOLD for item in evidence))}
    assert run.meter.passes - before == pytest.approx(anew["blend"].result.passes)
    assert next(iter(found)) == "blend"
    assert found["blend"].result == anew["blend"].result
    window = windows_for(SPEC.shape)[0][0]
    assert set(found) == {"blend", "filter", "warp", "grating", f"place {window}", f"pairs {window}"}
    assert [found["warp"].result] == [item.result for item in told_again(short)["warp"]]
    never = collect(classifier, some, run, quick=True, screened=short, ahead=["warp"], until=lambda evidence: False)
    told = [{item.result.name: replace(item.result, passes=round(item.result.passes, 6)) for item in some}
            for some in (never, anew.values())]
    assert told[0] == told[1]
    assert never[0].result.name == "warp"


def test_agreement_counts_answers_over_all_and_by_class(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, some = planted("none").classifier(), dummies_for("none")
    whole = verify.agreement(some, classifier)
    assert whole.overall == 1.0
    assert whole.per_class == [1.0] * CLASSES
    deaf = classifier.clone()
    last = [m for m in deaf.network.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] = -1e6
    part = verify.agreement(some, deaf)
    assert part.overall == pytest.approx((some.labels != 0).float().mean().item())
    assert part.per_class == [0.0] + [1.0] * (CLASSES - 1)
    only = Dummies(some.images[some.labels == 1], some.logits[some.labels == 1], "")
    assert verify.agreement(only, classifier).per_class == [None, 1.0] + [None] * (CLASSES - 2)


def proof(monkeypatch: pytest.MonkeyPatch, some: Dummies, new: Classifier, *, before: float, after: float,
          limit: float, leads: int = 1, accused: int = 1, worked: float = 0.9, unit: float = 0.0,
          another: bool = False) -> verify.Proof:
    """The proof where a fresh search reaches these margins."""
    lead = Lead("add", "all2one", None, TARGET, limit, strength=0.1, unit=unit)

    def attacks(margin: float) -> tuple[verify.Attack, ...]:
        trigger = Trigger("add", {"pattern": torch.zeros(1, *SPEC.shape)}, 0.1, TARGET, None, margin)
        return (verify.Attack(Followed(lead, (trigger,), limit), worked, (trigger,)),) * leads

    monkeypatch.setattr(verify, "attack", lambda *arguments, **options: attacks(after))
    return verify.prove(new, some, attacks(before), Run(CPU), plain_margin=10.0, purpose="test", accused=accused,
                        another=another)


def test_proof_accepts_what_agrees_and_no_longer_reaches_the_goal(planted: PlantedOf, dummies_for: DummiesOf,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    same, some = planted("none").classifier(), dummies_for("none")
    good = proof(monkeypatch, some, same, before=50.0, after=-5.0, limit=3.0, leads=2)
    assert good.accepted
    assert good.agreement.overall == 1.0
    assert [(c.family, c.target, c.margin_before, c.margin_after) for c in good.comparisons] == [
        ("add", TARGET, 50.0, -5.0)] * 2
    assert all(c.others_after >= 3.0 for c in good.comparisons)
    assert proof(monkeypatch, some, same, before=50.0, after=20.0, limit=30.0).accepted  # others reach further


def test_proof_refuses_what_still_reaches_the_goal(planted: PlantedOf, dummies_for: DummiesOf,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    bad = proof(monkeypatch, dummies_for("none"), planted("none").classifier(), before=50.0, after=45.0, limit=3.0)
    assert not bad.accepted
    assert "add" in bad.reason
    assert bad.agreement.overall == 1.0
    assert len(bad.attacks) == 1


@pytest.mark.parametrize(("after", "unit", "stands"), [(32.9, 0.0, True), (33.1, 0.0, False), (34.9, 10.0, True),
                                                      (35.1, 10.0, False)])
def test_proof_tolerates_half_of_what_a_scan_would_accuse_or_a_tenth(after: float, unit: float, stands: bool,
                                                                     planted: PlantedOf, dummies_for: DummiesOf,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """One class is the easiest of a clean network, too: others reach 30 here, and half a unit is no accusation. Without
    the tenth, published-ibau-l2-inv was rolled back for 75.9 where others reached 74.1.
    """
    told = proof(monkeypatch, dummies_for("none"), planted("none").classifier(), before=50.0, after=after, limit=30.0,
                 unit=unit)
    assert told.accepted is stands
    assert told.comparisons[0].others_after == 30.0
    assert told.comparisons[0].tolerated == max(unit / 2, 3.0)
    assert comparison_in_line(told.comparisons[0]) is stands
    assert bool(told.to_unlearn) is not stands


def test_a_lead_carries_the_unit_of_its_signal() -> None:
    result = SignalResult(name="add", applicable=True, family="add", target=TARGET, margin=20.0, runner_up=6.0,
                          threshold=10.0, per_target=[0.0, 6.0, 20.0])
    assert lead_of(result).unit == 4.0
    assert lead_of(replace(result, runner_up=-3.0, threshold=4.0)).unit == 4.0
    assert lead_of(replace(result, threshold=None)).unit == 0.0


def test_proof_refuses_where_the_old_patterns_still_work(planted: PlantedOf, dummies_for: DummiesOf,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "success", lambda *arguments, **options: 0.95)
    bad = proof(monkeypatch, dummies_for("none"), planted("none").classifier(), before=50.0, after=-5.0, limit=3.0)
    assert not bad.accepted
    assert bad.comparisons[0].old_success_after == 0.95
    # A further lead, which did not fill the bank, is judged by the new search, and must not mostly work.
    for further, stands in ((0.4, True), (0.6, False), (0.87, False)):  # at 0.87 once accepted, at a real ASR of 59
        each = iter([0.0, further])
        monkeypatch.setattr(verify, "success", lambda *arguments, each=each, **options: next(each))
        told = proof(monkeypatch, dummies_for("none"), planted("none").classifier(), before=50.0, after=-5.0,
                     limit=3.0, leads=2, accused=1)
        assert told.accepted is stands
        # Where it does it may be the trigger, so what was found on the old weights joins the bank.
        assert [t.margin for t in told.to_unlearn] == ([] if stands else [50.0])
        # With another round to follow that is enough to refuse it, and nothing is searched.
        each = iter([0.0, further])
        monkeypatch.setattr(verify, "success", lambda *arguments, each=each, **options: next(each))
        early = proof(monkeypatch, dummies_for("none"), planted("none").classifier(), before=50.0, after=-5.0,
                      limit=3.0, leads=2, accused=1, another=True)
        assert early.accepted is stands
        assert early.repeated
        assert [t.margin for t in early.to_unlearn] == ([] if stands else [50.0])
        assert bool(early.attacks) is bool(early.comparisons) is stands
        assert ("(add, " in early.reason) is not stands


def test_proof_refuses_where_the_search_does_not_work_on_the_old_weights_either(
        planted: PlantedOf, dummies_for: DummiesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = proof(monkeypatch, dummies_for("none"), planted("none").classifier(), before=-11.0, after=-13.0, limit=3.0,
                worked=0.0)
    assert not bad.accepted


def test_proof_refuses_where_old_patterns_of_a_further_suspect_still_work(
        planted: PlantedOf, dummies_for: DummiesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def works(classifier: Classifier, triggers: tuple[Trigger, ...], *others: object, **options: object) -> float:
        return 0.7 if triggers[0].target == 0 else 0.0

    def attacks(margin: float) -> tuple[verify.Attack, ...]:
        made = []
        for target in (TARGET, 0):
            trigger = Trigger("add", {"pattern": torch.zeros(1, *SPEC.shape)}, 0.1, target, None, margin)
            lead = Lead("add", "all2one", None, target, 3.0, strength=0.1)
            made.append(verify.Attack(Followed(lead, (trigger,), 3.0), 0.9, (trigger,)))
        return tuple(made)

    monkeypatch.setattr(verify, "success", works)
    monkeypatch.setattr(verify, "attack", lambda *arguments, **options: attacks(-5.0))
    bad = verify.prove(planted("none").classifier(), dummies_for("none"), attacks(50.0), Run(CPU), plain_margin=10.0,
                       purpose="test", accused=1)
    assert [c.old_success_after for c in bad.comparisons] == [0.0, 0.7]
    assert not bad.accepted


def test_proof_refuses_what_answers_differently(planted: PlantedOf, dummies_for: DummiesOf,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    other = planted("none").classifier()
    last = [m for m in other.network.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[:3] = -1e6
    bad = proof(monkeypatch, dummies_for("none"), other, before=50.0, after=-5.0, limit=3.0)
    assert not bad.accepted
    assert "agree" in bad.reason
    assert bad.agreement.overall < 0.9


def test_proof_refuses_what_keeps_the_surer_half_alone(planted: PlantedOf, dummies_for: DummiesOf,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a clean transformer was 'repaired' at 97 % of the surer half, 70 % of all, and 18 points lost."""
    classifier, some = planted("none").classifier(), dummies_for("none")
    top = some.logits.topk(2, 1).values
    margin = top[:, 0] - top[:, 1]
    unsure = margin.argsort()[: int(0.3 * len(some))]
    logits = some.logits.clone()
    logits[unsure] = logits[unsure].roll(1, 1) / logits[unsure].abs().max() * margin.min()
    altered = Dummies(some.images, logits, "made up")  # what the old weights are said to have answered
    by_class, sure = verify.kept_agreement(altered, classifier, TARGET)
    assert by_class < 0.8
    assert sure > 0.95
    bad = proof(monkeypatch, altered, classifier, before=50.0, after=-5.0, limit=3.0)
    assert not bad.accepted
    assert "in the mean over other classes" in bad.reason


def test_every_class_counts_once_in_what_is_kept(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    """Most dummies of a network without batch-norm may be of one class, which a repair keeps."""
    classifier, some = planted("none").classifier(), dummies_for("none")
    deaf = classifier.clone()
    last = [m for m in deaf.network.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] = -1e6
    rows = torch.cat([(some.labels == 1).nonzero()[:, 0].repeat(20), (some.labels == 0).nonzero()[:, 0]])
    uneven = Dummies(some.images[rows], some.logits[rows], "made up")
    assert verify.agreement(uneven, deaf).overall > 0.9
    assert verify.kept_agreement(uneven, deaf, TARGET)[0] == pytest.approx(0.5)


def test_success_counts_the_dummies_to_which_a_trigger_applies(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, some, run = planted("none").classifier(), dummies_for("none"), Run(CPU)
    still = {"pattern": torch.zeros(1, *SPEC.shape)}
    one, own = (Trigger("add", still, 0.1, 1, source, 0.0) for source in (None, 1))
    assert verify.success(classifier, [one], some, run) == 0.0
    assert run.meter.passes == pytest.approx(min(200, int((some.labels != 1).sum())) / 3)
    assert verify.success(classifier, [own], some, run) == 0.0  # applies to none
    # Goals that are the network's own answers, told for dummies of made-up labels.
    shifted = Dummies(some.images, some.logits.roll(-1, 1), "labels one too low")
    right = Trigger("add", still, 0.1, None, None, 0.0, tuple((k + 1) % CLASSES for k in range(CLASSES)))
    assert verify.success(classifier, [right], shifted, run) == 1.0
    assert verify.success(classifier, [right, Trigger("add", still, 0.1, None, None, 0.0, (-1,) * CLASSES)], shifted,
                          run) == 1.0


def test_proof_refuses_weights_that_are_not_finite(planted: PlantedOf, dummies_for: DummiesOf,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an IndexError: a diverged repair has no margins to compare."""
    broken = planted("none").classifier().clone()
    next(broken.network.parameters()).fill_(float("nan"))
    bad = proof(monkeypatch, dummies_for("none"), broken, before=50.0, after=-5.0, limit=3.0)
    assert not bad.accepted
    assert "not finite" in bad.reason


@pytest.mark.parametrize(("rival", "stands", "accused"), [(0.5, False, 1), (0.7, True, 1), (0.7, False, 0)])
def test_old_patterns_may_work_as_well_as_those_of_a_class_that_nothing_was_done_about(
        rival: float, stands: bool, accused: int, planted: PlantedOf, dummies_for: DummiesOf,
        monkeypatch: pytest.MonkeyPatch) -> None:
    def works(classifier: Classifier, triggers: tuple[Trigger, ...], *others: object, **options: object) -> float:
        return 0.6 if triggers[0].target == TARGET else rival

    lead = Lead("add", "all2one", None, TARGET, 3.0, strength=0.1)
    mine, other = (Trigger("add", {"pattern": torch.zeros(1, *SPEC.shape)}, 0.1, target, None, 50.0)
                   for target in (TARGET, 0))
    before = (verify.Attack(Followed(lead, (mine,), 3.0, (other,)), 0.9, (mine,), (other,)),)
    after = (verify.Attack(Followed(lead, (replace(mine, margin=-5.0),), 3.0), 0.1, (mine,)),)
    monkeypatch.setattr(verify, "success", works)
    monkeypatch.setattr(verify, "attack", lambda *arguments, **options: after)
    told = verify.prove(planted("none").classifier(), dummies_for("none"), before, Run(CPU), plain_margin=10.0,
                        purpose="test", accused=accused, must_repeat=False)
    assert told.accepted is stands
    assert told.comparisons[0].old_success_after == 0.6
    assert bool(told.to_unlearn) is (accused == 0)  # a lead that did not fill the bank: whatever rivals do


def test_rivals_are_taken_at_the_share_of_strength_that_the_target_needs(planted: PlantedOf,
                                                                         dummies_for: DummiesOf) -> None:
    lead = Lead("add", "all2one", None, TARGET, 3.0, strength=0.1, rivals=(0, 1))
    for followed in (lead, replace(lead, family="place", window=6, stride=4)):
        (told,) = verify.attack(planted("patch").classifier(), dummies_for("patch"), [followed], Run(CPU),
                                purpose="test")
        share = told.natural[0].strength / told.found.triggers[0].strength
        assert 0 < share <= 1
        assert len(told.rivals) == len(told.found.rivals) > 0
        assert TARGET not in {rival.target for rival in told.rivals}
        assert all(rival.strength == pytest.approx(share * old.strength)
                   for rival, old in zip(told.rivals, told.found.rivals, strict=True))
