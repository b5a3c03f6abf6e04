"""The summary for a terminal: tables and colours where there is one, plain lines of 80 columns elsewhere.

Strings from the checkpoint are untrusted: printed as Text (no rich markup), control characters shown.
"""

import math
from typing import Literal

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
from deepsanitizer.types import SanitizeReport, ScanReport, Suspect

_STYLE = {"good": "bold green", "warn": "bold yellow", "bad": "bold red", "unknown": "bold cyan"}
_WIDEST = 80  # columns where there is no terminal
_MOST = 5  # suspects and limits listed here; the JSON and the page have all


def to_text(report: ScanReport, console: Console) -> None:
    """Print the summary of a scan or sanitize report on a rich console."""
    out = _Printer(console)
    headline = VERDICTS[report.verdict]
    mark, meaning = CALIBRATED if report.calibrated else UNCALIBRATED
    out.line(f"{report.verdict.upper()}: {headline.title}", _STYLE[headline.tone])
    out.line(f"{report.model.path or 'a model in memory'}: {report.model.architecture}, "
             f"{report.model.num_classes} classes")
    out.line(f"score {number(report.score)}, threshold {number(report.threshold)} ({mark}), in "
             f"{seconds(report.seconds.get('total', sum(report.seconds.values())))}")
    out.line(report.explanation)
    _suspects(report, out)
    _screen(report, out)
    _signals(report, out)
    if isinstance(report, SanitizeReport):
        _repair(report, out)
    out.heading("What this does not show")
    out.items([shorten(" ".join(limit.split()), 300) for limit in report.limits], "limits")
    out.line(f"The verdict is {mark}: {meaning[0].lower()}{meaning[1:]}", "dim")


class _Printer:
    """Puts text on the console so that nothing in it is obeyed, and within 80 columns where that counts."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = console.width if console.is_terminal else min(console.width, _WIDEST)

    def text(self, text: str, style: str = "") -> Text:
        encoding = self.console.encoding
        safe = visible(text).encode(encoding, "backslashreplace").decode(encoding)
        return Text(safe, style=style, overflow="fold")

    def line(self, text: str, style: str = "", *, indent: int = 0) -> None:
        if text:
            self._print(self.text(text, style), indent)

    def heading(self, text: str) -> None:
        self.console.print()
        self.line(text, "bold")

    def items(self, texts: list[str], what: str) -> None:
        for text in texts[:_MOST]:
            hanging = Table.grid(padding=(0, 1))
            hanging.add_row(Text("-"), self.text(text))
            self._print(hanging, 2)
        if len(texts) > _MOST:
            self.line(f"... and {len(texts) - _MOST} more {what} in the full report", "dim", indent=2)

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        lines = box.SIMPLE_HEAD if self.console.is_terminal else None
        table = Table(box=lines, pad_edge=False, padding=(0, 1))
        for index, column in enumerate(columns):
            side: Literal["left", "right"] = "left" if index == 0 else "right"
            table.add_column(self.text(column, "bold"), justify=side, overflow="fold")
        for row in rows:
            table.add_row(*(self.text(cell) for cell in row))
        self._print(table, 2)

    def _print(self, what: RenderableType, indent: int) -> None:
        self.console.print(Padding(what, (0, 0, 0, indent), expand=False), width=self.width)


def _sentence(suspect: Suspect, report: ScanReport) -> str:
    template, fields = suspect_words(suspect, possibly=report.verdict != "backdoored")
    names = {key: class_name(report.model, value) if isinstance(value, int) else value
             for key, value in fields.items()}
    return template.format(**names)


def _suspects(report: ScanReport, out: _Printer) -> None:
    if not report.suspects:
        return
    out.heading("What was found")
    out.items([f"{_sentence(suspect, report)} [{suspect.family}, score {number(suspect.score)}]"
               for suspect in report.suspects], "suspects")


def _signals(report: ScanReport, out: _Printer) -> None:
    rows: list[list[str]] = []
    skipped: list[str] = []
    for signal in report.signals:
        if signal.stage == "screen":
            continue
        if not signal.applicable:
            skipped.append(f"{signal.name}: not applicable, {signal.reason or 'no reason given'}")
            continue
        goal = "-" if signal.target is None else class_name(report.model, signal.target, longest=16)
        if signal.source is not None:
            goal = f"{signal.source} to {goal}"
        rows.append([signal.name, goal, number(signal.margin), number(signal.runner_up), number(signal.z),
                     percent(signal.success), number(signal.score)])
    if rows or skipped:
        screened = any(signal.stage == "screen" for signal in report.signals)
        out.heading("Full searches (1 or more stands out; alone they do not accuse)" if screened else
                    "Signals (a score of 1 or more accuses)")
    if rows:
        out.table(["signal", "class", "margin", "next", "z", "success", "score"], rows)
    for text in skipped:
        out.line(text, "dim", indent=2)


def _screen(report: ScanReport, out: _Printer) -> None:
    screened = [signal for signal in report.signals if signal.stage == "screen" and signal.statistic is not None]
    if not screened:
        return
    out.heading("Against clean networks (scores for the same class add up, 1 or more accuses; no score: supporting; "
                "routes, permutations, probes, stamped pairs and natural searches count alone)")
    rows = []
    for signal in sorted(screened, key=lambda s: -(s.score if s.score is not None else -math.inf)):
        goal = "-" if signal.target is None else class_name(report.model, signal.target, longest=16)
        if signal.source is not None:
            goal = f"{signal.source} to {goal}"
        rows.append([signal.name.removeprefix("screen "), goal, number(signal.statistic),
                     number(signal.clean[2]) if signal.clean else "–", percent(signal.p_value), number(signal.score)])
    out.table(["signal", "class", "statistic", "98 % of clean below", "clean as high", "score"], rows)


def _repair(report: SanitizeReport, out: _Printer) -> None:
    headline = OUTCOMES[report.outcome]
    out.heading("Repair")
    out.line(f"{report.outcome.replace('_', ' ').upper()}: {headline.title} (method {report.method})",
             _STYLE[headline.tone])
    out.line(report.reason)
    if report.loss_step0 is not None:
        out.line(f"Loss of the fine-tuning at step 0: {number(report.loss_step0)}")
    if report.comparisons:
        rows = [[c.family,
                 "own goals" if c.target is None else class_name(report.model, c.target, longest=16),
                 f"{number(c.margin_before)} to {number(c.margin_after)}", number(margin_limit(c)),
                 f"{percent(c.success_before)} to {percent(c.success_after)}",
                 "in line" if comparison_in_line(c) else "STANDS OUT"] for c in report.comparisons]
        out.table(["search", "class", "margin", "limit", "success", ""], rows)
        still = ", ".join(f"{percent(c.old_success_after)} ({c.family})" for c in report.comparisons)
        out.line(f"The patterns found on the old weights, at about the strength that those obeyed, still send to the "
                 f"class, of fresh dummies: {still}.", indent=2)
    if report.agreement is not None:
        worst = min((value for value in report.agreement.per_class if value is not None), default=None)
        out.line(f"Old and new model agree on {percent(report.agreement.overall)} of fresh dummies; "
                 f"{percent(worst)} in the worst class.")
    if report.changes:
        largest = max(report.changes, key=lambda change: change.relative_change)
        out.line(f"{len(report.changes)} parameter tensors changed; most: {largest.name}, by "
                 f"{percent(largest.relative_change)} of its norm.")
    out.line(written_words(report))
    if report.output_sha256 and report.output is not None:
        out.line(f"sha256 {report.output_sha256}")
