"""P-values, the screen's verdict from made-up evidence, and the calibration that is shipped."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest
import torch
from helpers.planted import SPEC, TARGET, Attack, Planted
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deepsanitizer import examination
from deepsanitizer.bench.calibrate import ENOUGH, LEAST_OF_A_KIND, calibrated, tables, widened
from deepsanitizer.bench.judging import auroc, interval, judged, planted
from deepsanitizer.calibration import (
    FOLLOWING,
    LEVEL,
    MOST,
    VOTING,
    Calibration,
    accusations,
    combined,
    p_value,
    quantile,
    shipped,
    strength,
)
from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.pipeline import sanitize, scan
from deepsanitizer.report.html import to_html
from deepsanitizer.report.text import to_text
from deepsanitizer.stats import leading_by, separation, standing_out
from deepsanitizer.types import Dummies, Evidence, SignalResult, Trigger
from deepsanitizer.verdict import confirmed, judge_screen, leading_goal, meant

PlantedOf: TypeAlias = Callable[[Attack], Planted]
NULL = tuple(k / 100 for k in range(100))
TABLE = Calibration(100, dict.fromkeys(VOTING, NULL), NULL, (8, 43), (32, 32), (3,), {})


def result(statistic: float | None, name: str = VOTING[0], **fields: object) -> SignalResult:
    given = {"applicable": True, "target": 3, "family": name, "margin": 9.0, "runner_up": 1.0} | fields
    return SignalResult(name=name, statistic=statistic, stage="screen", **given)  # type: ignore[arg-type]


def dummies(reached: int = 10) -> Dummies:
    return Dummies(torch.zeros(40, 3, 8, 8), 5 * torch.eye(10)[torch.arange(40) % reached], "made up")


def evidence(found: SignalResult) -> Evidence:
    (found,) = TABLE.placed([found])
    return meant(Evidence(found, (Trigger("blend", {}, 0.1, found.target, found.source, 5.0),)))


@given(st.floats(-5, 50), st.floats(0, 5))
def test_a_higher_statistic_never_has_a_higher_p_value(statistic: float, more: float) -> None:
    low, high = p_value(statistic, NULL), p_value(statistic + more, NULL)
    assert 0 < high <= 1
    assert high <= low + 0.02  # where counting ends and the fitted tail begins there is a step


@given(st.floats(0.001, 0.09))
def test_the_quantile_is_the_inverse_of_the_p_value(level: float) -> None:
    assert p_value(quantile(NULL, level), NULL) == pytest.approx(level)


def test_p_values_are_counted_below_the_tail_and_go_on_beyond_it() -> None:
    assert p_value(0.5, NULL) == 51 / 101
    assert p_value(-1.0, NULL) == 1.0
    assert p_value(100.0, NULL) == 1e-12
    assert p_value(1.5, NULL) < 1 / 101


def test_a_lead_counts_in_plain_margins_or_in_spreads_of_the_others() -> None:
    assert leading_by([1.0, 9.0, None, 5.0], 1.0) == 2.0
    # Other classes that make use of a trigger's channels, too, do not hide it.
    assert leading_by([53.0, 27.0, 20.0, -12.0], 3.3) > 6
    # Without success, too: what a warp does to its target and to no other class.
    assert leading_by([-3.0, -12.0, -13.0, -12.5], 2.0) == 3.0
    assert standing_out([1.0, 9.0, 1.0, 1.0], 2.0) == 4.0
    for nothing in ([1.0], []):
        assert leading_by(nothing, 1.0) == standing_out(nothing, 1.0) == 0.0


def test_a_forced_repair_of_a_clean_network_is_suspected_of_no_more_than_the_verdict_says() -> None:
    # Once the rule of thumb's score: gtsrb-benign-0, clean at 0.1, was repaired as if accused, and lost 2.4 points.
    placed = evidence(result(0.6)).result
    loud = SignalResult(name="add", applicable=True, family="add", stage="full", target=3, margin=9.0, score=2.0)
    told = judge_screen([Evidence(placed)], dummies(), TABLE)
    assert told.name == "clean"
    examined = examination.Examined(dummies(), told, (placed, loud), ())
    assert examination.accused(examined, None, False) == []
    (forced,) = examination.accused(examined, None, True)
    assert (forced.target, forced.family, forced.score) == (3, "add", told.score)


def test_weights_alone_name_a_goal_without_a_trigger() -> None:
    (placed,) = TABLE.placed([result(9.0, "screen head weights", family="")])
    told = judge_screen([Evidence(placed)], dummies(), TABLE)
    assert told.name == "backdoored"
    assert (told.suspects[0].target, told.suspects[0].family) == (3, "unknown")


def test_a_lead_over_one_rival_counts_in_units_widened_by_it() -> None:
    assert separation(9.0, 0.0, 3.0) == 3.0
    assert separation(9.0, 10.0, 3.0) < 0
    assert separation(-3.0, -12.0, 9.0) == pytest.approx(9 / 12.6)
    assert separation(20.0, 10.0, 3.0) < separation(10.0, 0.0, 3.0)


def test_votes_for_the_same_goal_add_up_and_supporting_signals_have_none() -> None:
    votes = [result(0.99), result(2.0, VOTING[1]), result(3.0, VOTING[2], target=5),
             result(99.0, "screen channel bounds"), result(None, VOTING[3]),
             result(2.5, "screen own goals", target=None)]
    told = accusations(votes, TABLE.nulls)
    assert told[3] == sum(strength(p_value(value, NULL)) for value in (0.99, 2.0))
    assert told[5] == strength(p_value(3.0, NULL))
    assert told[None] == strength(p_value(2.5, NULL), alone=True) > strength(p_value(2.5, NULL))
    assert set(told) == {3, 5, None}
    assert combined(votes, TABLE.nulls) == max(told.values())
    assert combined([], TABLE.nulls) == 0.0


def test_what_a_third_of_the_clean_networks_show_is_no_evidence() -> None:
    assert strength(0.4) == 0.0
    assert strength(0.01) == pytest.approx(1.5)
    assert strength(1e-12) == strength(1e-5) == MOST
    assert combined([result(0.5, name) for name in VOTING], TABLE.nulls) == 0.0


def test_two_searches_of_one_family_speak_once_for_a_goal() -> None:
    strong, weak = result(1.1, VOTING[0], family="blend"), result(1.05, VOTING[1], family="blend")
    assert combined([strong, weak], TABLE.nulls) == combined([strong], TABLE.nulls)
    assert next(r.score for r in TABLE.placed([weak, strong])) == 0.0
    apart = accusations([strong, result(1.05, VOTING[1], family="blend", target=5)], TABLE.nulls)
    assert apart[5] > 0


def test_the_score_of_a_screen_is_that_of_the_goal_most_is_said_about() -> None:
    weak = [result(1.02, name) for name in VOTING[:3]]
    alone, together = (judge_screen([evidence(r) for r in some], dummies(), TABLE) for some in (weak[:1], weak))
    assert together.score == pytest.approx(3 * alone.score)
    apart = judge_screen([evidence(weak[0]), evidence(result(1.02, VOTING[1], target=7))], dummies(), TABLE)
    assert apart.score == pytest.approx(alone.score)


def test_the_verdicts_of_a_screen() -> None:
    bad = judge_screen([evidence(result(9.0))], dummies(), TABLE)
    assert (bad.name, bad.calibrated, bad.suspects[0].target) == ("backdoored", True, 3)
    assert bad.score > 1
    good = judge_screen([evidence(result(0.1))], dummies(), TABLE)
    assert (good.name, good.calibrated, good.suspects) == ("clean", True, ())
    assert good.p_value is not None
    assert good.p_value > LEVEL
    assert judge_screen([evidence(result(0.1))], dummies(5), TABLE).name == "inconclusive"
    unlike = judge_screen([evidence(result(9.0))], dummies(5), TABLE)
    assert (unlike.name, unlike.calibrated) == ("backdoored", False)  # said, but not with a rate
    assert "50%" in unlike.explanation


def test_a_pair_says_the_source_only_where_other_sources_stay_behind() -> None:
    def pair_of(runner_up: float, target: int = 3, family: str = "place") -> Evidence:
        return evidence(result(9.0, "screen pairs", kind="specific", source=1, margin=10.0, runner_up=runner_up,
                               target=target, family=family))

    vote = evidence(result(9.0, family="place"))
    alone, carried, elsewhere, unlike = pair_of(3.0), pair_of(9.0), pair_of(3.0, 7), pair_of(3.0, family="warp")
    told = judge_screen([vote, alone], dummies(), TABLE).suspects[0]
    assert (told.kind, told.source, told.target) == ("specific", 1, 3)
    # Once followed where a blend said most: c10-blend, repaired as a patch from one class, was accepted at 93.
    for pair in (carried, elsewhere, unlike):
        told = judge_screen([vote, pair], dummies(), TABLE).suspects[0]
        assert (told.kind, told.source, told.target) == ("all2one", None, 3)
    assert judge_screen([alone], dummies(), TABLE).suspects == ()  # a pair has no vote


@pytest.mark.parametrize("channels", [1, 3])
def test_the_shipped_calibration_covers_what_it_says(channels: int) -> None:
    table = shipped(channels)
    assert table.models >= (80 if channels == 3 else 40)
    assert table.rated == (channels == 3)  # of 18 clean test networks of speech three are accused
    assert {*VOTING, *FOLLOWING} <= set(table.nulls)
    assert all(list(null) == sorted(null) for null in table.nulls.values())
    assert table.covers(10, (channels, 32, 32))
    assert table.covers(43, (channels, 32, 32))
    assert not table.covers(2, (channels, 32, 32))
    assert not table.covers(10, (channels, 224, 224))
    assert not table.covers(40, (1, 56, 46))
    assert not table.covers(10, (4 - channels, 32, 32))
    assert p_value(table.threshold(), table.combined) == pytest.approx(LEVEL)


def test_other_numbers_of_channels_are_not_covered_and_the_covered_ones_are_named() -> None:
    table = shipped(4)
    assert table.channels == (1, 3)
    assert not table.covers(10, (4, 32, 32))


def row(statistic: float, *, trigger: str | None = None, **truth: object) -> dict[str, object]:
    return {"model": f"m{statistic}", "reached": 1.0, "classes": 10, "shape": [3, 32, 32], "label": "x", "truth": {
        "trigger": trigger, "data": "cifar10", "architecture": "a:Net", "mode": "all2one", "asr": None, **truth},
        "results": [result(statistic), result(statistic / 2, "screen prediction skew")]}


def test_calibration_takes_clean_networks_that_the_dummies_represent() -> None:
    rows = [row(k / 40) for k in range(40)]
    rows[0]["reached"], rows[1]["classes"] = 0.5, 4
    table = calibrated(rows)
    assert table["models"] == 38
    assert table["provenance"]["left out"] == ["m0.0", "m0.025"]
    with pytest.raises(UsageError, match="trojaned"):
        calibrated([*rows, row(3.0, trigger="patch")])
    with pytest.raises(UsageError, match="too few"):
        calibrated(rows[:9])
    (bad,) = judged([row(50.0, trigger="patch", asr=99.0)], rows)
    assert bad.accused
    assert bad.target == 3
    assert planted(bad.row)


def test_networks_are_compared_with_their_like_where_there_are_enough_of_them() -> None:
    follows = result(9.0, FOLLOWING[1], target=4, kind="specific", source=1)
    rows = [row(k / 40) for k in range(40)]
    grey = [row(100.0 + k) | {"shape": [1, 32, 32]} for k in range(LEAST_OF_A_KIND)]
    for k, clean in enumerate((*rows, *grey)):
        clean["results"] = [*clean["results"], replace(follows, statistic=k / 100)]  # type: ignore[misc]
    assert {name: table["models"] for name, table in tables([*rows, *grey[1:]]).items()} == {"3": 40}
    both = tables([*rows, *grey])
    assert {name: (table["models"], table["channels"]) for name, table in both.items()} == {
        "1": (LEAST_OF_A_KIND, [1]), "3": (40, [3])}
    tested = row(90.0, trigger="patch", asr=99.0) | {"shape": [1, 32, 32]}
    tested["results"] = [*tested["results"], follows]  # type: ignore[misc]
    ((own,), (others,)) = (judged([tested], known) for known in ([*rows, *grey], [*rows, *grey[1:]]))
    assert (own.by_screen, own.accused, own.kind, own.target) == (False, True, "specific", 4)
    # Too few of its kind: it is compared with all, and nothing may accuse alone.
    assert (others.by_screen, others.kind) == (others.accused, "all2one")


def test_a_kind_of_which_few_are_known_is_compared_with_all_where_these_ask_for_more() -> None:
    few, many = [k / 1000 for k in range(40)], [k / 100 for k in range(90)]
    wide = widened({"a": few, "b": many[:40]}, {"a": many, "b": few, "c": many})
    assert wide == {"a": sorted(few + many), "b": many[:40]}
    # Goals of their own once accused two of ten clean networks of speech, of which thirty others showed none at all.
    rows = [row(k / 40) for k in range(40)]
    grey = [row(k / 1e5) | {"shape": [1, 32, 32]} for k in range(ENOUGH)]
    one = tables([*rows, *grey[1:]])["1"]
    assert (one["models"], len(one["nulls"][VOTING[0]])) == (ENOUGH - 1, ENOUGH - 1 + len(rows))
    assert len(tables([*rows, *grey])["1"]["nulls"][VOTING[0]]) == ENOUGH


def test_figures_of_a_comparison() -> None:
    assert auroc([1.0, 2.0], [3.0, 2.0]) == 0.875
    assert math.isnan(auroc([], [1.0]))
    low, high = interval(0, 100)
    assert low == 0.0
    assert 0.03 < high < 0.04


def test_a_short_scan_judges_against_clean_networks_only_where_they_are_alike(
        planted: PlantedOf, monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted("blend").network
    with pytest.raises(CannotJudgeError, match="without --screen"):
        scan(model, spec=SPEC, screen=True, device="cpu")
    with pytest.raises(UsageError, match="one effort"):
        scan(model, spec=SPEC, screen=True, effort="fast", device="cpu")
    low = tuple(k / 1000 for k in range(100))
    alike = Calibration(100, dict.fromkeys(VOTING, low), NULL, (2, 43), (8, 32), (3,), {})
    monkeypatch.setattr(examination, "shipped", lambda channels: alike)
    told = scan(model, spec=SPEC, screen=True, device="cpu")
    assert (told.verdict, told.calibrated, told.suspects[0].target) == ("backdoored", True, TARGET)
    assert told.config["screen"] is True
    assert {signal.stage for signal in told.signals} == {"screen"}
    assert any(signal.p_value is not None and len(signal.clean) == 3 for signal in told.signals)
    assert told.passes["total"] < 50_000
    # The picture is of the trigger that the first suspect names (once a pair's suspect was shown with a blend).
    assert told.suspects[0].family in told.pictures[0].caption
    with pytest.raises(UsageError, match="short searches"):
        sanitize(model, spec=SPEC, from_report=told, device="cpu")
    page, console = to_html(told), Console(file=io.StringIO(), width=100)
    to_text(told, console)
    assert '"<bdi' not in page  # a class's name was once put into an attribute as markup
    for text in (page, console.file.getvalue()):  # type: ignore[attr-defined]
        assert "gainst clean networks" in text
        assert "own goals" in text


def full(score: float, target: int | None, *, kind: str = "all2one", family: str = "filter") -> Evidence:
    told = SignalResult(name=family, applicable=True, kind=kind, target=target, score=score,  # type: ignore[arg-type]
                        family=family, margin=9.0, runner_up=1.0)
    return Evidence(told, (Trigger(family, {}, 0.1, target, None, 5.0),))


def test_where_few_networks_are_alike_no_rate_is_stated() -> None:
    follows = evidence(result(9.0, FOLLOWING[1], kind="specific", source=1))
    table = replace(TABLE, nulls={**TABLE.nulls, FOLLOWING[1]: NULL})
    (placed,) = table.placed([follows.result])
    for told, name in ((evidence(result(9.0)), "backdoored"), (evidence(result(0.1)), "clean"),
                       (replace(follows, result=placed), "backdoored")):
        few, many = (judge_screen([told], dummies(), known) for known in (replace(table, rated=False), table))
        assert (few.name, few.calibrated, many.name, many.calibrated) == (name, False, name, True)
        assert "too few networks of its kind" in few.explanation
        assert "too few" not in many.explanation


def test_full_evidence_after_a_screen_never_accuses_alone() -> None:
    quiet = [evidence(result(0.1))]
    clean = judge_screen(quiet, dummies(), TABLE)
    goal = leading_goal([item.result for item in quiet])
    assert (clean.name, goal) == ("clean", 3)
    assert confirmed(clean, goal, [full(9.0, 7)]) == clean  # another goal
    assert confirmed(clean, goal, [full(0.9, 3)]) == clean
    told = confirmed(clean, goal, [full(9.0, 3), full(12.0, 7)])
    assert (told.name, told.calibrated, told.score, told.p_value) == ("suspicious", True, clean.score, clean.p_value)
    assert [(s.target, s.family, s.score) for s in told.suspects] == [(3, "filter", 9.0)]
    unknown = judge_screen(quiet, dummies(5), TABLE)
    assert confirmed(unknown, goal, [full(9.0, 3)]).name == "inconclusive"


def test_full_evidence_says_how_an_accused_goal_is_reached() -> None:
    loud = [evidence(result(9.0))]
    first = judge_screen(loud, dummies(), TABLE)
    told = confirmed(first, 3, [full(0.9, 3), full(5.0, 7)])
    assert told.name == "backdoored"
    assert [(s.target, s.family, s.score) for s in told.suspects] == [(3, "filter", first.score)]
    assert confirmed(first, 3, [full(5.0, 7)]).suspects == first.suspects  # the full searches met another class


def test_a_scan_goes_on_where_the_first_look_finds_something(planted: PlantedOf,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted("blend").network
    strict, lax = (Calibration(100, dict.fromkeys(VOTING, tuple(step * k for k in range(100))), NULL, (2, 43), (8, 32),
                               (3,), {}) for step in (1.0, 1e-3))
    monkeypatch.setattr(examination, "shipped", lambda channels: strict)
    ordinary = scan(model, spec=SPEC, effort="fast", device="cpu")
    assert (ordinary.verdict, ordinary.calibrated) == ("clean", True)
    assert {signal.stage for signal in ordinary.signals} == {"screen"}
    with pytest.raises(UsageError, match="short searches"):
        sanitize(model, spec=SPEC, from_report=ordinary, force=True, device="cpu")
    monkeypatch.setattr(examination, "shipped", lambda channels: lax)
    found = scan(model, spec=SPEC, effort="fast", device="cpu")
    assert (found.verdict, found.calibrated, found.suspects[0].target) == ("backdoored", True, TARGET)
    assert {signal.stage for signal in found.signals} == {"screen", "full"}
    # One class is accused: permutations, which cannot overrule it, are not searched.
    assert "screen natural permutation" in {signal.name for signal in ordinary.signals}
    assert not any("permutation" in signal.name for signal in found.signals)
    console = Console(file=io.StringIO(), width=100)
    to_text(found, console)
    assert "alone they do not accuse" in console.file.getvalue()  # type: ignore[attr-defined]
    # A report whose suspect the short searches name by themselves is enough to repair from, forced or not.
    alone = replace(found, signals=[signal for signal in found.signals if signal.stage == "screen"])
    for force in (False, True):
        _, told = sanitize(model, spec=SPEC, from_report=alone, force=force, method="clp", effort="fast", device="cpu")
        assert told.outcome in ("accepted", "rolled_back")
    with pytest.raises(UsageError, match="short searches"):
        sanitize(model, spec=SPEC, from_report=alone, target=TARGET, device="cpu")
