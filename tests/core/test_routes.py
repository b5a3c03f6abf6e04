"""The search by route and the permutations as what follows a screen: found, judged, followed up, repaired."""

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from typing import TypeAlias

import pytest
import torch
from helpers.planted import CLASSES, CPU, SOURCE, SPEC, TARGET, Attack, Planted, accuracy, textures
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepsanitizer import examination
from deepsanitizer.bench.judging import judged
from deepsanitizer.calibration import (
    FILTER,
    FOLLOWING,
    FOLLOWING_LEVEL,
    GRATING,
    PERMUTATIONS,
    ROUTES,
    STAMPED_PAIRS,
    STAMPS,
    VOTING,
    WARP,
    Calibration,
    quantile,
)
from deepsanitizer.classifier import classifier_of, logits_of
from deepsanitizer.curate import drawn
from deepsanitizer.pipeline import sanitize, scan
from deepsanitizer.policy import searched, suspect_for
from deepsanitizer.report.html import _alone
from deepsanitizer.report.words import CALIBRATED
from deepsanitizer.search import places_for, routed, routes
from deepsanitizer.signals import SCREEN_DUMMIES, on_dummies, on_natural_images, windows_for
from deepsanitizer.signals.routes import detect as detect_routes
from deepsanitizer.signals.routes import valued
from deepsanitizer.stats import ahead_of_all
from deepsanitizer.triggers import apply_trigger
from deepsanitizer.types import Dummies, Evidence, InputSpec, Run, SignalResult, Suspect, Trigger, Verdict, silent
from deepsanitizer.verdict import judge_screen

PlantedOf: TypeAlias = Callable[[Attack], Planted]
DummiesOf: TypeAlias = Callable[[Attack], Dummies]
NULL = tuple(k / 100 for k in range(100))


def calibration(*, screen: float = 1.0, following: float = 1.0) -> Calibration:
    """Made-up nulls, spread by these factors: small ones accuse."""
    nulls = {name: tuple(screen * value for value in NULL) for name in VOTING}
    nulls |= {name: tuple(following * value for value in NULL) for name in FOLLOWING}
    return Calibration(100, nulls, NULL, (2, 43), (8, 32), (3,), {})


def test_routes_find_the_source_of_a_trigger_that_works_from_one_class(planted: PlantedOf,
                                                                      dummies_for: DummiesOf) -> None:
    model, dummies, run = planted("source"), dummies_for("source"), Run(CPU, 0)
    found = routes(model.classifier(), dummies, run, purpose="test", window=4, where=places_for(SPEC.shape, 4, CLASSES))
    assert (found.margin.diff() <= 0).all()
    assert ((found.carried >= 0) & (found.carried <= 1)).all()
    (route, value), (other, _) = valued(found)[:2]
    assert route == (SOURCE, TARGET) != other
    patches = routed(found, route)
    assert all((t.source, t.target, t.family) == (SOURCE, TARGET, "place") for t in patches)
    assert value <= patches[0].margin
    images, labels = textures(300, torch.Generator().manual_seed(5))  # real images, which no search sees
    said = logits_of(model.classifier(), apply_trigger(patches[0], images)).argmax(1)
    assert (said[labels == SOURCE] == TARGET).float().mean() > 0.6
    assert routed(found, (SOURCE, SOURCE)) == ()
    told = detect_routes(model.classifier(), dummies, run, window=4).result
    clean = detect_routes(planted("none").classifier(), dummies_for("none"), run, window=4).result
    assert (told.source, told.target, told.kind) == (SOURCE, TARGET, "specific")
    assert told.statistic is not None
    assert clean.statistic is not None
    assert told.statistic > clean.statistic


def test_routes_leave_out_sources_without_dummies_and_keep_to_what_is_wanted(planted: PlantedOf,
                                                                            dummies_for: DummiesOf) -> None:
    dummies = dummies_for("source")
    some = Dummies(dummies.images[dummies.labels != 0], dummies.logits[dummies.labels != 0], "no dummy of class 0")
    where, run = places_for(SPEC.shape, 4, CLASSES), Run(CPU, 0)
    found = routes(planted("source").classifier(), some, run, purpose="t", window=4, where=where, first=(1, 2),
                   second=(1, 2), wanted=[(0, 1), (SOURCE, 1), (3, 3)])
    assert set(found.pairs) == {(SOURCE, 1)}
    assert len(found.pairs) == len(where)
    none = routes(planted("source").classifier(), some, run, purpose="t", window=4, where=where, wanted=[(0, 1)])
    assert none.pairs == ()
    assert routed(none, (0, 1)) == ()
    two = classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), InputSpec((3, 16, 16), 2, (0.5,) * 3,
                                                                                  (0.25,) * 3), CPU)
    some = Dummies(torch.rand(8, 3, 16, 16), torch.eye(2)[torch.arange(8) % 2], "made up")
    assert not detect_routes(two, some, run, window=4).result.applicable


@given(st.integers(3, 60), st.integers(8, 224))
def test_fewer_places_where_there_are_more_classes(classes: int, side: int) -> None:
    window = max(2, side // 5)
    where = places_for((3, side, side), window, classes)
    assert 4 <= len(where) <= 16
    assert len(where) * classes * (classes - 1) <= max(4000, 4 * classes * (classes - 1))
    assert (where >= 0).all()
    assert where.max() == side - window


def follows(statistic: float, name: str = ROUTES, **fields: object) -> SignalResult:
    kind = {"kind": "specific", "source": 1, "target": 3} if name in (ROUTES, STAMPED_PAIRS) else {"kind": "all2all"}
    given = {"applicable": True, "family": "place", "margin": 5.0, "runner_up": 1.0, "window": 6} | kind | fields
    return SignalResult(name=name, statistic=statistic, stage="screen", **given)  # type: ignore[arg-type]


def looked(*results: SignalResult) -> list[Evidence]:
    quiet = SignalResult(name=VOTING[0], applicable=True, target=7, statistic=0.1, family="blend", stage="screen")
    return [Evidence(result, (Trigger("place", {}, 1.0, result.target, result.source, 5.0),))
            for result in calibration().placed([quiet, *results])]


def test_natural_images_are_searched_one_by_one_and_only_as_asked(planted: PlantedOf) -> None:
    classifier, run = planted("none").classifier(), Run(CPU, 0)
    searches = on_natural_images(classifier, run)
    assert run.meter.passes == 0
    grating = next(searches).result
    spent = run.meter.passes
    warp, tint, permuting = (item.result for item in searches)
    found = (grating, warp, tint, permuting)
    assert tuple(r.name for r in found) == FOLLOWING[6:]
    assert [r.family for r in found[:3]] == ["grating", "warp", "filter"]
    assert (permuting.kind, {r.stage for r in found}) == ("all2all", {"screen"})
    assert run.meter.passes > spent > 0
    assert sum(r.passes or 0.0 for r in found) == pytest.approx(run.meter.passes - SCREEN_DUMMIES / 3)
    assert tint.statistic == ahead_of_all(tint.per_target, drawn(classifier, SCREEN_DUMMIES, run).plain_margin)
    assert permuting.statistic is not None
    assert permuting.statistic < 0 == permuting.score  # not cut off, so that clean networks differ
    (alone,) = on_natural_images(classifier, Run(CPU, 0), names=("natural grating",))
    assert alone.result.statistic == grating.statistic  # whatever else was asked for


def test_patches_follow_a_screen_one_by_one(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, dummies, run = planted("source").classifier(), dummies_for("source"), Run(CPU, 0)
    found = on_dummies(classifier, dummies, run)
    assert run.meter.passes == 0
    permuting, pair, stamp, warp, tint, route = told = tuple(found)
    assert tuple(item.result.name for item in told) == FOLLOWING[:6]
    assert [item.result.kind for item in (route, permuting, stamp, pair)] == ["specific", "all2all", "all2one",
                                                                              "specific"]
    assert [item.result.family for item in (stamp, warp, tint, pair)] == ["place", "warp", "filter", "place"]
    for stamped in (stamp, pair):
        assert stamped.result.window == windows_for(SPEC.shape)[0][0]  # with which it is searched where it is repaired
        assert stamped.triggers[0].params["picture"].shape[-1] <= stamped.result.window
    (alone,) = on_dummies(classifier, dummies, Run(CPU, 0), names=("routes",))
    assert alone.result.statistic == route.result.statistic  # whatever else was asked for


def test_a_repair_is_measured_by_the_dummies_not_by_the_less_sure_natural_images(planted: PlantedOf,
                                                                           dummies_for: DummiesOf) -> None:
    """By these c10-all2all was rolled back (docs/research/log.md, 54)."""
    classifier, dummies = planted("none").classifier(), dummies_for("none")
    images = drawn(classifier, SCREEN_DUMMIES, Run(CPU, 0))
    assert dummies.plain_margin > images.plain_margin
    own, restated = ([item.result for item in on_natural_images(classifier, Run(CPU, 0), dummies=given)]
                     for given in (None, dummies))
    for before, after in zip(own, restated, strict=True):
        limit = max(before.runner_up or 0.0, 0.0)
        assert before.threshold is not None
        assert after.threshold == pytest.approx(
            limit + (before.threshold - limit) * dummies.plain_margin / images.plain_margin)
        assert (after.statistic, after.margin) == (before.statistic, before.margin)


def test_a_lead_is_no_surprise_where_one_class_after_another_is_reached() -> None:
    alone, crowd = [9.0, 1.0, 1.0, 0.0], [9.0, 5.0, 1.0, 0.0, 0.0]
    assert ahead_of_all(alone, 1.0) == pytest.approx(8 / 2)
    assert ahead_of_all(crowd, 1.0) == pytest.approx(4 / (2 + 4))
    assert ahead_of_all([3.0, None], 1.0) == 0.0
    assert ahead_of_all([*alone, None], 1.0) == ahead_of_all(alone, 1.0)


@pytest.mark.parametrize(("name", "words"), [
    (WARP, "a warp"), (FILTER, "change of colours"), (STAMPS, "small patch"), (GRATING, "faint grating")])
def test_what_moves_images_of_any_kind_accuses_its_class(name: str, words: str) -> None:
    family = "place" if name == STAMPS else name.split()[-1]
    found = follows(9.0, name, kind="all2one", target=2, family=family)
    told = judge_screen(looked(found), made_up(), calibration())
    (suspect,) = told.suspects
    assert (told.name, told.calibrated) == ("backdoored", True)
    assert (suspect.kind, suspect.source, suspect.target, suspect.family) == ("all2one", None, 2, family)
    assert f"{words} moves images of any kind to one goal" in told.explanation.lower()
    assert _alone(found) == f"2 by a {'patch' if name == STAMPS else family}"
    assert (_alone(follows(9.0)), _alone(follows(9.0, PERMUTATIONS[1]))) == ("1 to 3 alone", "a permutation")
    assert _alone(follows(9.0, STAMPED_PAIRS)) == "1 to 3 by a stamp"


@pytest.mark.parametrize(("name", "words"), [
    (ROUTES, "far more easily than any other pair"), (STAMPED_PAIRS, "A plain patch")])
def test_what_carries_one_class_accuses_source_and_goal(name: str, words: str) -> None:
    told = judge_screen(looked(follows(9.0, name)), made_up(), calibration())
    (suspect,) = told.suspects
    assert (told.name, suspect.kind, suspect.source, suspect.target) == ("backdoored", "specific", 1, 3)
    assert words in told.explanation


def test_the_report_says_how_many_searches_follow() -> None:
    """It said five when there were seven."""
    told = {5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}[len(FOLLOWING)]
    template = resources.files("deepsanitizer.report").joinpath("templates", "report.html.j2").read_text("utf-8")
    assert f"does not accuse, {told} more follow" in template
    assert f"{FOLLOWING_LEVEL * 100:g} % each that of the {told} searches" in CALIBRATED[1]


def test_what_was_searched_better_is_not_searched_in_full_where_nothing_accuses(planted: PlantedOf,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "shipped", lambda channels: calibration(screen=1e3, following=1e3))
    monkeypatch.setattr(examination, "ORDINARY", 2.0)
    monkeypatch.setattr(examination, "_met", lambda goal, evidence: False)
    case = examination.open_case(planted("none").network, SPEC, "auto", "cpu", 0, "fast", silent, None)
    quiet = {signal.name for signal in examination.examine(case).results}
    (small, _), (middle, _), (large, _) = windows_for(SPEC.shape)
    assert not {"warp", "filter", "grating", "blend", "patch", "add", "permutation", f"place {small}",
                f"place {large}"} & quiet
    assert {"square", "tone", f"place {middle}", *FOLLOWING} <= quiet


def made_up(reached: int = 10) -> Dummies:
    return Dummies(torch.zeros(40, 3, 8, 8), 5 * torch.eye(10)[torch.arange(40) % reached], "made up")


def test_what_follows_a_screen_accuses_alone_at_its_own_level() -> None:
    needed = quantile(NULL, FOLLOWING_LEVEL)
    short, near, enough = (judge_screen(looked(follows(needed + more)), made_up(), calibration())
                           for more in (-0.2, -1e-6, 1e-6))
    assert (short.name, short.suspects) == ("clean", ())
    # A report once said `clean` beside a bar at 0.99.
    assert (near.name, near.suspects) == ("suspicious", (replace(enough.suspects[0], score=near.score),))
    assert "not quite enough" in near.explanation
    assert 0.99 < near.score < near.threshold
    assert enough.name == "backdoored"
    assert enough.calibrated
    assert enough.p_value == pytest.approx(FOLLOWING_LEVEL, rel=1e-3)
    (suspect,) = enough.suspects
    assert (suspect.kind, suspect.source, suspect.target, suspect.family) == ("specific", 1, 3, "place")
    assert "none of 100 clean networks" in enough.explanation
    permuting = judge_screen(looked(follows(0.5), follows(needed + 1, PERMUTATIONS[1])), made_up(), calibration())
    assert (permuting.suspects[0].kind, permuting.suspects[0].target) == ("all2all", None)
    assert judge_screen(looked(follows(9.0)), made_up(5), calibration()).name == "inconclusive"


def test_where_both_accuse_the_louder_speaks_and_no_share_of_a_screens_score_follows() -> None:
    """A patch for one class once passed for a permutation: c10-badnet (docs/research/log.md, 44)."""
    loud = SignalResult(name=VOTING[1], applicable=True, target=7, statistic=99.0, family="blend", stage="screen",
                        margin=5.0, runner_up=1.0)
    alone = judge_screen(looked(loud), made_up(), calibration())
    soft = quantile(NULL, FOLLOWING_LEVEL) + 1e-6
    both = judge_screen(looked(follows(soft, PERMUTATIONS[1]), loud), made_up(), calibration())
    assert (both.suspects[0].target, both.score) == (7, alone.score)
    louder = judge_screen(looked(follows(9.0, PERMUTATIONS[1]), loud), made_up(), calibration())
    assert (louder.suspects[0].kind, louder.suspects[0].target) == ("all2all", None)
    assert louder.score > alone.score > both.threshold


@pytest.mark.parametrize("accused", [True, False])
def test_a_scan_curates_no_dummies_that_only_a_repair_needs(accused: bool, planted: PlantedOf,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "shipped", lambda channels: calibration(
        screen=1e3, following=1e-4 if accused else 1e3))
    if not accused:
        monkeypatch.setattr(examination, "ORDINARY", 2.0)
        monkeypatch.setattr(examination, "conclude", lambda evidence, dummies: Verdict(
            "suspicious", 0.9, 1.0, True, (), "made up", 0.5))

    def curated(*, to_repair: bool) -> int:
        case = examination.open_case(planted("none").network, SPEC, "auto", "cpu", 0, "standard", silent, None)
        return len(examination.examine(case, to_repair=to_repair).dummies)

    assert curated(to_repair=False) == SCREEN_DUMMIES < curated(to_repair=True)


@pytest.mark.parametrize("targets", [(None,), (None, 2)])
def test_goals_of_their_own_need_no_full_searches_unless_a_class_is_accused_too(
        targets: tuple[int | None, ...], planted: PlantedOf, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects = tuple(Suspect(kind="all2all" if k is None else "all2one", source=None, target=k, family="place",
                             score=2.0) for k in targets)
    monkeypatch.setattr(examination, "shipped", lambda channels: calibration())
    monkeypatch.setattr(examination, "conclude", lambda evidence, dummies: Verdict(
        "backdoored", 2.0, 1.0, True, suspects, "made up", 0.001))
    case = examination.open_case(planted("none").network, SPEC, "auto", "cpu", 0, "fast", silent, None)
    stages = {item.result.stage for item in examination.examine(case).evidence}
    assert ("full" in stages) is (len(targets) > 1)


def test_only_what_accuses_is_followed_up_beside_full_evidence() -> None:
    full = SignalResult(name="blend", applicable=True, target=3, score=0.4, family="blend", margin=3.0, runner_up=1.0,
                        per_target=[0.0, 1.0, 1.0, 3.0])
    quiet, loud = calibration().placed([follows(0.2), follows(9.0)])
    assert searched([full, quiet]) == [full]
    assert searched([full, loud]) == [full, loud]
    assert searched([quiet]) == []
    # Told twice, c10-all2all was searched for twice as many patches and rolled back (docs/research/log.md, 50).
    (mine, other), own = calibration().placed([follows(9.0, PERMUTATIONS[1]), full]), replace(
        full, kind="all2all", target=None, stage="screen", name="screen own goals")
    assert searched([own, mine]) == [mine]
    assert searched([own, other]) == [other]
    assert searched([own]) == [own]
    assert suspect_for(3, [full, quiet]).kind == "all2one"
    assert suspect_for(3, [full, loud]).kind == "specific"


def test_the_bench_takes_whichever_is_nearest_to_accusing() -> None:
    def row(name: str, *results: SignalResult) -> dict[str, object]:
        return {"model": name, "reached": 1.0, "classes": 10, "shape": [3, 32, 32], "label": "x", "results": [*results],
                "truth": {"trigger": None, "data": "cifar10", "architecture": "a:Net", "mode": "all2one", "asr": None}}

    def voting(value: float) -> SignalResult:
        return SignalResult(name=VOTING[0], applicable=True, target=7, statistic=value, family="blend", stage="screen")

    def warp(value: float) -> SignalResult:
        return follows(value, WARP, kind="all2one", target=4, family="warp")

    clean = [row(f"c{k}", voting(k / 40), follows(k / 40), warp(k / 40)) for k in range(40)]
    found, kept, screened = judged([row("r", voting(0.1), follows(9.0)), row("k", voting(0.1), follows(0.1)),
                                    row("s", voting(99.0), follows(9.0))], clean)
    assert (found.accused, found.by_screen, found.kind, found.source, found.target) == (True, False, "specific", 1, 3)
    assert not kept.accused
    assert (screened.by_screen, screened.target) == (True, 7)
    # The searches end with the first that accuses, however loud the next would be.
    by_warp, by_route = judged([row("w", voting(0.1), warp(9.0), follows(0.1)),
                                row("b", voting(0.1), warp(99.0), follows(9.0))], clean)
    assert (by_warp.accused, by_warp.kind, by_warp.target) == (True, "all2one", 4)
    assert (by_route.kind, by_route.source, by_route.target) == ("specific", 1, 3)


@pytest.mark.timeout(300)
def test_a_trigger_of_one_source_is_accused_by_its_route_and_never_accepted_half_removed(planted: PlantedOf,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted("source")
    assert model.asr > 95
    monkeypatch.setattr(examination, "shipped", lambda channels: calibration(screen=1e3, following=1e3))
    quiet = scan(model.network, spec=SPEC, effort="fast", device="cpu")
    assert quiet.verdict == "clean"
    assert set(FOLLOWING) <= {signal.name for signal in quiet.signals}
    nulls = calibration(screen=1e3)
    lax = Calibration(100, {**nulls.nulls, ROUTES: tuple(1e-4 * value for value in NULL)}, nulls.combined,
                      (2, 43), (8, 32), (3,), {})
    monkeypatch.setattr(examination, "shipped", lambda channels: lax)
    repaired, report = sanitize(model.network, spec=SPEC, device="cpu")
    assert (report.suspects[0].kind, report.suspects[0].source, report.suspects[0].target) == (
        "specific", SOURCE, TARGET)
    assert "full" not in {signal.stage for signal in report.signals}
    after = FOLLOWING[FOLLOWING.index(ROUTES) + 1:]  # none of these where a route accuses
    assert not {*after} & {signal.name for signal in report.signals}
    # How the network turns out depends on the processor it is trained on; on some its route is not met a second time.
    acc, asr = accuracy(repaired, "source")
    if report.outcome == "rolled_back":
        assert "could not be repeated" in report.reason
        assert (acc, asr) == (model.acc, model.asr)
    else:
        assert report.outcome == "accepted", report.reason
        assert acc > model.acc - 5
        assert asr < 20
