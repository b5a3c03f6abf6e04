"""One self-contained page: no network, no script.

Autoescape is forced on: names in a checkpoint are untrusted.
"""

import json
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from deepsanitizer.calibration import FOLLOWING, STAMPED_PAIRS, by_goal, scores_of
from deepsanitizer.report import charts
from deepsanitizer.report.words import (
    CALIBRATED,
    OUTCOMES,
    UNCALIBRATED,
    VERDICTS,
    class_name,
    comparison_in_line,
    margin_limit,
    number,
    percent,
    seconds,
    shorten,
    suspect_words,
    visible,
    written_words,
)
from deepsanitizer.types import (
    Agreement,
    LayerChange,
    Picture,
    SanitizeReport,
    ScanReport,
    SignalResult,
    Suspect,
)

_ROLES = (("pattern", "The pattern"), ("dummy", "Without it"), ("triggered", "With it"),
          ("difference", "Difference"))


def to_html(report: ScanReport) -> str:
    """The whole page for a scan or sanitize report."""
    fixed = report if isinstance(report, SanitizeReport) else None
    mark, meaning = CALIBRATED if report.calibrated else UNCALIBRATED
    return _template().render(
        report=report, fixed=fixed, model=report.model,
        verdict=VERDICTS[report.verdict], outcome=OUTCOMES[fixed.outcome] if fixed else None,
        written=written_words(fixed) if fixed else "",
        mark=mark, mark_meaning=meaning,
        suspects=[sentence(suspect, report) for suspect in report.suspects],
        accused=any(suspect.target is not None for suspect in report.suspects),
        score_chart=_score_chart(report), groups=_groups(report.pictures),
        signals=[_signal(signal, report) for signal in _shown(report) if signal.applicable],
        skipped=[signal for signal in report.signals if not signal.applicable],
        screen_chart=_screen_chart(report), screened=_screened(report),
        change_chart=_change_chart(fixed.changes) if fixed else "",
        comparisons=_comparisons(fixed) if fixed else [],
        agreement_chart=_agreement_chart(fixed.agreement, report) if fixed and fixed.agreement else "",
        stages=_stages(report), config=[(key, _plain(value)) for key, value in report.config.items()])


def sentence(suspect: Suspect, report: ScanReport) -> Markup:
    """A suspect in words, the names in it escaped and isolated (a right-to-left name stays within itself)."""
    template, fields = suspect_words(suspect, possibly=report.verdict != "backdoored")
    names = {key: _name(report, value) if isinstance(value, int) else visible(value)
             for key, value in fields.items()}
    return Markup(template).format(**names)


def _name(report: ScanReport, index: int) -> Markup:
    return Markup('<bdi dir="ltr">{}</bdi>').format(class_name(report.model, index))


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("deepsanitizer.report"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              finalize=_finalize)
    environment.filters.update(number=number, percent=percent, seconds=seconds, shorten=shorten)
    return environment.get_template("report.html.j2")


def _finalize(value: Any) -> Any:
    """Control characters and direction overrides are shown, not obeyed; line breaks stay."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(visible(line) for line in value.split("\n"))
    return value


def _score_chart(report: ScanReport) -> Markup:
    if not (math.isfinite(report.score) and math.isfinite(report.threshold)):
        return Markup("")
    return charts.bars([charts.Row("score", report.score, report.score >= report.threshold)],
                       threshold=report.threshold)


def _shown(report: ScanReport) -> list[SignalResult]:
    """The signals shown class by class: full evidence or, where none was needed, what votes in the screen."""
    full = [signal for signal in report.signals if signal.stage == "full"]
    return full or [signal for signal in report.signals if signal.score is not None]


def _screened(report: ScanReport) -> list[dict[str, Any]]:
    """Rows of the table that compares the screen with clean networks, those that vote first, strongest first."""
    screened = [s for s in report.signals if s.stage == "screen" and s.applicable and s.statistic is not None]
    screened.sort(key=lambda s: -(s.score if s.score is not None else -math.inf))
    return [{"result": s, "goal": "–" if s.target is None else _name(report, s.target),
             "source": None if s.source is None else _name(report, s.source)} for s in screened]


def _screen_chart(report: ScanReport, *, most: int = 8) -> Markup:
    """What the voting signals say together about each class, most first, and what searches that follow say alone."""
    said = sorted(by_goal(report.signals, scores_of(report.signals)).items(), key=lambda item: -item[1])
    told = [("own goals" if goal is None else class_name(report.model, goal), score) for goal, score in said[:most]]
    for signal in report.signals:
        if signal.name in FOLLOWING and signal.score is not None:
            told.append((_alone(signal), signal.score))
    rows = [charts.Row(name, score, score >= report.threshold) for name, score in told]
    return charts.bars(rows, threshold=report.threshold, what="classes") if rows else Markup("")


def _alone(signal: SignalResult) -> str:
    """What a search that accuses alone accuses of; classes by number, for two names do not fit on a phone."""
    if signal.target is None:
        return "a permutation"
    if signal.source is not None:
        return f"{signal.source} to {signal.target} {'by a stamp' if signal.name == STAMPED_PAIRS else 'alone'}"
    return f"{signal.target} by a {'patch' if signal.family == 'place' else signal.family}"


def _signal(signal: SignalResult, report: ScanReport) -> dict[str, Any]:
    return {"result": signal, "goal": "–" if signal.target is None else _name(report, signal.target),
            "source": None if signal.source is None else _name(report, signal.source),
            "chart": _signal_chart(signal, report), "heat": _heat(signal, report)}


def _signal_chart(signal: SignalResult, report: ScanReport) -> Markup:
    suspects = {suspect.target for suspect in report.suspects}
    rows = [charts.Row(class_name(report.model, index), value, index in suspects)
            for index, value in enumerate(signal.per_target)]
    return charts.bars(rows, threshold=signal.threshold) if rows else Markup("")


def _heat(signal: SignalResult, report: ScanReport) -> Markup:
    if not signal.matrix:
        return Markup("")
    return charts.heat_map(signal.matrix, lambda index: class_name(report.model, index))


def _change_chart(changes: list[LayerChange]) -> Markup:
    rows = [charts.Row(visible(change.name), change.relative_change) for change in changes]
    return charts.bars(rows, show=percent, what="parameter tensors") if rows else Markup("")


def _agreement_chart(agreement: Agreement, report: ScanReport) -> Markup:
    rows = [charts.Row(class_name(report.model, index), value)
            for index, value in enumerate(agreement.per_class)]
    return charts.bars(rows, show=percent, span=(0.0, 1.0), lowest_first=True) if rows else Markup("")


def _comparisons(report: SanitizeReport) -> list[dict[str, Any]]:
    """A row for each search, with its drawing on a scale common to all."""
    ends = [value for c in report.comparisons for value in (c.margin_before, c.margin_after, margin_limit(c))]
    span = (min(0.0, *ends), max(0.0, *ends)) if ends else (0.0, 1.0)
    return [{"c": c, "passed": comparison_in_line(c), "limit": margin_limit(c),
             "goal": "each class its own" if c.target is None else _name(report, c.target),
             "drawing": charts.dumbbell(c.margin_before, c.margin_after, margin_limit(c), span=span)}
            for c in report.comparisons]


def _groups(pictures: Iterable[Picture]) -> list[tuple[str, list[tuple[str, list[Picture]]]]]:
    """Pictures by group, in order of appearance, then by role; the pictures of a role keep their order."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    return [(name, [(title, members) for role, title in _ROLES
                    if (members := [picture for picture in group if picture.role == role])])
            for name, group in groups.items()]


def _stages(report: ScanReport) -> list[tuple[str, float | None, float | None]]:
    names = [name for name in {**report.seconds, **report.passes} if name != "total"]
    return [(name, report.seconds.get(name), report.passes.get(name)) for name in [*names, "total"]]


def _plain(value: Any) -> str:
    """A setting as JSON, a string as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
