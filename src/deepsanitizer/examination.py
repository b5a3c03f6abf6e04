"""The first half of all work on a model: split it, search it, in full or shortly, and judge it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from deepsanitizer import facts, loading
from deepsanitizer.calibration import shipped
from deepsanitizer.classifier import Classifier, classifier_of, resolve_compute
from deepsanitizer.curate import invert
from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.policy import EFFORTS, Plan, suspect_for
from deepsanitizer.signals import SCREEN_DUMMIES, collect, screen
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
from deepsanitizer.verdict import judge, judge_screen, meant


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


def examine(case: Case, from_report: ScanReport | None = None) -> Examined:
    """Curate dummies, search and judge; with an earlier report, only curate.

    Raises UsageError where the report is about another file or of a short scan.
    """
    earlier = None if from_report is None else facts.verdict_of(from_report, case.loaded)
    if from_report is not None and from_report.config.get("screen"):
        raise UsageError("the report is of a short scan, which is not enough to repair from",
                         "Scan without --screen, or leave --from-report out.")
    with case.clock.stage("dummies"):
        dummies = invert(case.classifier, case.plan.dummies, case.run)
    if from_report is not None and earlier is not None:
        return Examined(dummies, earlier, tuple(from_report.signals), ())
    with case.clock.stage("search"):
        evidence = collect(case.classifier, dummies, case.run, quick=case.plan.quick)
    verdict = judge(evidence, dummies)
    return Examined(dummies, verdict, tuple(item.result for item in evidence), evidence)


def examine_shortly(case: Case) -> Examined:
    """The screen and its calibrated verdict. CannotJudgeError where the calibration does not cover the network."""
    calibration = shipped()
    if not calibration.covers(case.loaded.spec.num_classes, case.loaded.spec.shape):
        raise CannotJudgeError(
            f"the screen is calibrated on {calibration.classes[0]} to {calibration.classes[1]} classes and images of "
            f"{calibration.side[0]} to {calibration.side[1]} pixels and {' or '.join(map(str, calibration.channels))} "
            "channels only", "Scan in full, without --screen.")
    dummies, evidence = screened(case)
    placed = calibration.placed([item.result for item in evidence])
    evidence = tuple(meant(replace(item, result=result)) for item, result in zip(evidence, placed, strict=True))
    return Examined(dummies, judge_screen(evidence, dummies, calibration), tuple(item.result for item in evidence),
                    evidence)


def screened(case: Case) -> tuple[Dummies, tuple[Evidence, ...]]:
    """Dummies of their own and the short searches on them: what the calibration measured."""
    with case.clock.stage("screen"):
        dummies = invert(case.classifier, SCREEN_DUMMIES, case.run, purpose="screen")
        return dummies, screen(case.parts, dummies, case.run)


def accused(examined: Examined, target: int | None, force: bool) -> list[Suspect]:
    """What is to be repaired, strongest first: the named target, the suspects or, forced, the strongest signal."""
    if target is not None:
        return [suspect_for(target, examined.results)]
    if examined.verdict.name in ("inconclusive", "suspicious") and not force:
        return []  # no signal accuses: a repair would cost a clean network accuracy (docs/research/log.md, 28)
    if examined.verdict.suspects:
        return list(examined.verdict.suspects)
    usable = [r for r in examined.results if r.applicable and r.margin is not None and r.family]
    if not force or not usable:
        return []
    best = max(usable, key=lambda r: r.score if r.score is not None else float("-inf"))
    return [Suspect(kind=best.kind, source=best.source, target=best.target, family=best.family,
                    score=best.score or 0.0)]
