"""The first half of all work on a model: split it, search it, in full or shortly, and judge it."""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from deepsanitizer import facts, loading
from deepsanitizer.calibration import PERMUTATIONS, WARP, Calibration, shipped
from deepsanitizer.classifier import Classifier, classifier_of, resolve_compute
from deepsanitizer.curate import invert
from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.policy import EFFORTS, Plan, suspect_for
from deepsanitizer.signals import (
    FURTHER,
    QUICK_FAMILIES,
    SCREEN_DUMMIES,
    UNIVERSAL_FAMILIES,
    Further,
    collect,
    further,
    screen,
    windows_for,
)
from deepsanitizer.split import Split, split
from deepsanitizer.types import (
    Dummies,
    Effort,
    Evidence,
    InputSpec,
    Loaded,
    Progress,
    Run,
    ScanReport,
    SignalResult,
    Suspect,
    Verdict,
)
from deepsanitizer.verdict import THRESHOLD, confirmed, judge, judge_screen, leading_goal, meant, suspects_of

ORDINARY = 0.3  # where so large a share of clean networks shows as much, a screen is the verdict


@dataclass(slots=True)
class Clock:
    """Seconds and passes of each stage."""

    run: Run
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; a name used again adds up."""
        start, before = time.monotonic(), self.run.meter.passes
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.passes[name] = self.passes.get(name, 0.0) + self.run.meter.passes - before

    def totals(self) -> tuple[dict[str, float], dict[str, float]]:
        """Both tables with a total, rounded."""
        return tuple(  # type: ignore[return-value]
            {**{k: round(v, 2) for k, v in table.items()}, "total": round(sum(table.values()), 2)}
            for table in (self.seconds, self.passes))


@dataclass(frozen=True, slots=True)
class Case:
    """One model under examination: the private copy, the run, and what the caller asked for."""

    loaded: Loaded
    classifier: Classifier
    parts: Split
    run: Run
    clock: Clock
    plan: Plan
    config: dict[str, object]


@dataclass(frozen=True, slots=True)
class Examined:
    """What a scan leaves for a repair."""

    dummies: Dummies
    verdict: Verdict
    results: tuple[SignalResult, ...]
    evidence: tuple[Evidence, ...]  # empty where a report was read in place of a search


def open_case(model: Loaded | nn.Module, spec: InputSpec | None, layer: str, device: str, seed: int, effort: Effort,
              progress: Progress, timeout: float | None) -> Case:
    """A private copy of the model, split, on its device; the clock starts."""
    if effort not in EFFORTS:
        raise UsageError(f"there is no effort {effort!r}", f"Choose one of {', '.join(EFFORTS)}.")
    if not isinstance(model, Loaded):
        if spec is None:
            raise UsageError("a bare nn.Module needs its input described", "Pass spec=InputSpec(shape, num_classes, "
                             "mean, std).")
        model = loading.from_module(model, spec)
    deadline = None if timeout is None else time.monotonic() + timeout
    run = Run(resolve_compute(device), seed, progress, deadline)
    clock = Clock(run)
    with clock.stage("split"):
        classifier = classifier_of(model.network, model.spec, run.compute)
        parts = split(classifier, layer)
    config: dict[str, object] = {"effort": effort, "layer": layer, "device": device, "timeout": timeout}
    return Case(model, classifier, parts, run, clock, EFFORTS[effort], config)


def examine(case: Case, from_report: ScanReport | None = None, *, full: bool = False,
            to_repair: bool = True) -> Examined:
    """Screen, judge, and search in full where that is called for; with an earlier report, only curate dummies.

    Networks like those of the calibration are screened first and, where the screen does not accuse one goal, searched
    for goals of their own and, where it does not accuse at all, by `signals.further`.
    Where at least `ORDINARY` of clean networks show as much in the screen, or where one of these searches accuses, that
    is the verdict, unless full evidence is wanted in any case: `full`, or by the effort. Others are searched in full at
    once and judged by a rule of thumb. Dummies that only a repair needs are curated only `to_repair`.
    Raises UsageError where the report is about another file or holds no full evidence.
    """
    known = _covered(case)
    if from_report is not None:
        return _from_report(case, from_report, known, full)
    whole = full or case.plan.full  # evidence, whatever the first look shows
    first: Dummies | None = None
    short: tuple[Evidence, ...] = ()
    looked: tuple[Evidence, ...] = ()
    loud = settled = False
    if known:
        first, short = screened(case)
        looked = _placed(case, short)
        verdict = conclude(looked, first)
        ordinary = verdict.name != "backdoored" and (verdict.p_value or 0.0) > ORDINARY
        loud = verdict.name == "backdoored"
        # One goal accused is not overruled by goals of their own (docs/research/log.md, 49).
        settled = loud and verdict.suspects[0].target is not None and not whole
        if verdict.name != "inconclusive" and not settled:
            # Where goals of their own are accused only these can say more.
            names = FURTHER if not loud else ("permutation", "natural permutation")
            looked += followed(case, first, names=names, all_of_them=whole)
            verdict = conclude(looked, first)
            # What these accuse is searched anew where it is repaired; no other search tells more of it, nor of goals of
            # their own where a screen accuses nothing else.
            ordinary = ordinary or (verdict.name == "backdoored" and (
                not loud or all(suspect.target is None for suspect in verdict.suspects)))
        if ordinary and not whole:
            dummies = _curated(case, first, wide=to_repair and verdict.name == "backdoored")
            return Examined(dummies, verdict, tuple(item.result for item in looked), looked)
    wide = first is None or loud or whole
    dummies = _curated(case, first, wide=wide)
    quick = case.plan.quick or (known and not case.plan.full)
    with case.clock.stage("search"):
        # Where the screen accuses, the full searches only say how the goal is reached; else they must say it anew, and
        # once they do nothing that follows can take it back.
        goal = leading_goal([item.result for item in looked]) if looked else None
        until = None if wide else functools.partial(_met, goal)
        families: tuple[str, ...] = QUICK_FAMILIES if case.plan.quick else UNIVERSAL_FAMILIES
        made = {item.result.name for item in looked}
        left_out: tuple[str, ...] = ("permutation",) if settled or made & {*PERMUTATIONS} else ()
        if until is not None and WARP in made:
            left_out += _told_better(case.loaded.spec.shape)
        evidence = looked + collect(
            case.classifier, dummies, case.run, quick=quick, left_out=left_out, until=until, families=families,
            screened=short if quick and (loud or not wide) else (), ahead=_naming(goal, looked))
    verdict = conclude(evidence, first or dummies)
    if to_repair and not wide and verdict.name == "suspicious":
        dummies = _curated(case, first, wide=True)
    return Examined(dummies, verdict, tuple(item.result for item in evidence), evidence)


def _told_better(shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The full searches of which what came before tells more, where none of it accused: probes and natural images of
    warps and colours, natural images of gratings, stamps of small patches, the screen of blends, at two strengths. Free
    patches and additive patterns are met by windows and blends, too, and windows of nearly half the image reach what is
    natural.
    """
    windows = windows_for(shape)
    return "warp", "filter", "grating", "blend", "patch", "add", f"place {windows[0][0]}", f"place {windows[-1][0]}"


def _met(goal: int | None, evidence: Sequence[Evidence]) -> bool:
    """Whether full evidence accuses the goal about which most was said in a screen (see `verdict.confirmed`)."""
    return any(suspect.target == goal for suspect in suspects_of(evidence, at_least=THRESHOLD))


def _naming(goal: int | None, looked: Sequence[Evidence]) -> list[str]:
    """The full searches whose short ones named the goal."""
    mine = [item.result for item in looked if item.result.target == goal and item.result.family]
    return [f"place {result.window}" if result.family == "place" else result.family for result in mine]


def examine_shortly(case: Case) -> Examined:
    """The screen and its calibrated verdict. CannotJudgeError where the calibration does not cover the network."""
    if not _covered(case):
        calibration = _calibration(case)
        raise CannotJudgeError(
            f"the screen is calibrated on {calibration.classes[0]} to {calibration.classes[1]} classes and images of "
            f"{calibration.side[0]} to {calibration.side[1]} pixels and {' or '.join(map(str, calibration.channels))} "
            "channels only", "Scan in full, without --screen.")
    dummies, short = screened(case)
    evidence = _placed(case, short)
    return Examined(dummies, conclude(evidence, dummies), tuple(item.result for item in evidence),
                    evidence)


def conclude(evidence: Sequence[Evidence], dummies: Dummies) -> Verdict:
    """The verdict on a placed screen, on full evidence, or on both; `dummies` are the screen's where there was one."""
    screens = [item for item in evidence if item.result.stage == "screen"]
    searched = [item for item in evidence if item.result.stage == "full"]
    if not screens:
        return judge(searched, dummies)
    first = judge_screen(screens, dummies, shipped(dummies.images.shape[1]))
    return confirmed(first, leading_goal([item.result for item in screens]), searched) if searched else first


def screened(case: Case) -> tuple[Dummies, tuple[Evidence, ...]]:
    """Dummies of their own and the short searches on them: what the calibration measured."""
    with case.clock.stage("screen"):
        dummies = screen_dummies(case)
        return dummies, screen(case.classifier, dummies, case.run)


def _placed(case: Case, short: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """A screen with its places among clean networks."""
    results = _calibration(case).placed([item.result for item in short])
    return tuple(meant(replace(item, result=result)) for item, result in zip(short, results, strict=True))


def followed(case: Case, dummies: Dummies, *, names: Sequence[Further] = FURTHER,
             all_of_them: bool = True) -> tuple[Evidence, ...]:
    """The searches that follow a screen, on its dummies or on natural images, with their places among clean networks.
    Unless `all_of_them` are asked for they end with the first that accuses.
    """
    looked: tuple[Evidence, ...] = ()
    with case.clock.stage("further searches"):
        for item in further(case.classifier, dummies, case.run, names=names):
            (result,) = _calibration(case).placed([item.result])
            looked += (replace(item, result=result),)
            if not all_of_them and (looked[-1].result.score or 0.0) >= THRESHOLD:
                break
    return looked


def _covered(case: Case) -> bool:
    return _calibration(case).covers(case.loaded.spec.num_classes, case.loaded.spec.shape)


def _calibration(case: Case) -> Calibration:
    return shipped(case.loaded.spec.shape[0])


def screen_dummies(case: Case) -> Dummies:
    """Those of a screen, of which full evidence takes more."""
    return invert(case.classifier, SCREEN_DUMMIES, case.run, purpose="screen")


def _curated(case: Case, first: Dummies | None, *, wide: bool) -> Dummies:
    """The dummies of full evidence: those of a screen and, where it is to be `wide` and not quick, as many more as are
    planned.
    """
    if first is not None and (case.plan.quick or not wide):
        return first
    with case.clock.stage("dummies"):
        if first is None:
            return invert(case.classifier, case.plan.dummies, case.run)
        missing = case.plan.dummies - len(first)
        return first.joined(invert(case.classifier, missing, case.run)) if missing > 0 else first


def _from_report(case: Case, report: ScanReport, known: bool, full: bool) -> Examined:
    earlier = facts.verdict_of(report, case.loaded)
    searched = any(signal.stage == "full" for signal in report.signals)
    if report.config.get("screen") or (full and not searched):
        raise UsageError("the report is of short searches, which are not enough to repair from",
                         "Leave --from-report out" + (", or scan without --screen." if report.config.get("screen")
                                                      else "."))
    first: Dummies | None = None
    if known:
        with case.clock.stage("dummies"):
            first = screen_dummies(case)
    wide = first is None or full or earlier.name in ("backdoored", "suspicious")
    dummies = _curated(case, first, wide=wide)
    return Examined(dummies, earlier, tuple(report.signals), ())


def accused(examined: Examined, target: int | None, force: bool) -> list[Suspect]:
    """What is to be repaired, strongest first: the named target, the suspects or, forced, the strongest signal."""
    if target is not None:
        return [suspect_for(target, examined.results)]
    verdict = examined.verdict
    # Suspicious only: a repair would cost a clean network accuracy (docs/research/log.md, 28), unless both looks name
    # the same goal.
    agreed = verdict.calibrated and bool(verdict.suspects) and verdict.suspects[0].score >= THRESHOLD
    if not force and (verdict.name == "inconclusive" or (verdict.name == "suspicious" and not agreed)):
        return []
    if examined.verdict.suspects:
        return list(examined.verdict.suspects)
    usable = [r for r in examined.results if r.stage == "full" and r.applicable and r.margin is not None and r.family]
    if not force or not usable:
        return []
    best = max(usable, key=lambda r: r.score if r.score is not None else float("-inf"))
    # No more than the verdict says: clean networks reach a score of 1 by the rule of thumb, too.
    return [Suspect(kind=best.kind, source=best.source, target=best.target, family=best.family,
                    score=min(best.score or 0.0, verdict.score))]
