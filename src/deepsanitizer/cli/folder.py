"""deepsanitizer scan on a folder of models: one line a model, the exit code of the worst.

One model that cannot be judged does not stop the others. With --reports each report is kept as it is made; a later run
reads those that are of the same weights, settings and versions, and scans only the rest.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepsanitizer.cli.console import plain, progress, result_console, say
from deepsanitizer.cli.options import Common, Source
from deepsanitizer.errors import CannotJudgeError, DeepSanitizerError, ExitCode, UsageError

if TYPE_CHECKING:
    from deepsanitizer.types import Effort, Loaded, Progress, ScanReport, Suspect


@dataclass(frozen=True, slots=True)
class Line:
    """What the table says of one model; `verdict` is None where there is an `error`."""

    model: str
    verdict: str | None
    score: float | None
    suspect: str
    seconds: float | None
    report: str | None
    error: str | None
    code: int


def models_in(path: Path) -> list[Path]:
    """The model folders below a folder that is none itself, in order of name; none for anything else."""
    if not path.is_dir() or (path / "config.json").exists():
        return []
    return sorted(file.parent for file in path.rglob("config.json"))


def scan_folder(common: Common, source: Source, models: Sequence[Path], *, form: str, output: Path | None,
                reports: Path | None, effort: "Effort", screen: bool, codes: dict[str, ExitCode]) -> int:
    """Scan each model, print or write the table, and give the exit code.

    1 where anything was found; else 2 where a scan failed, 4 where a model could not be loaded as told, 3 where one
    gave no verdict, 0 where all are clean.
    """
    if form == "html":
        raise UsageError("a folder of models gives a table, not a page",
                         "Use --format text or json; --reports DIR writes a page for each model.")
    lines = []
    for number, path in enumerate(models, 1):
        name = str(path.relative_to(source.path))
        line = _one(common, replace(source, path=path), name, f"{number}/{len(models)} {name}", reports, effort,
                    screen, codes)
        lines.append(line)
        if not common.quiet:
            told = f"{line.verdict} ({line.score:.1f})" if line.score is not None else line.verdict or line.error
            say(f"{number}/{len(models)} {name}: {told}")
    _deliver(lines, form, output)
    found = {line.code for line in lines}
    return next((code for code in (ExitCode.FOUND, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NO_VERDICT)
                 if code in found), ExitCode.CLEAN)


def _one(common: Common, source: Source, name: str, title: str, reports: Path | None, effort: "Effort",
         screen: bool, codes: dict[str, ExitCode]) -> Line:
    from deepsanitizer import pipeline, report

    kept = None if reports is None else reports / f"{name}.json"
    try:
        loaded = source.load(replace(common, quiet=True))
        done = _earlier(kept, loaded, common, effort, screen)
        if done is None:
            with progress(common.quiet) as callback:
                done = pipeline.scan(loaded, layer=common.layer, device=common.device, seed=common.seed, effort=effort,
                                     screen=screen, progress=_titled(callback, title), timeout=common.timeout)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                report.write(report.to_html(done), kept.with_suffix(".html"))
                report.write(report.to_json(done), kept)
    except DeepSanitizerError as error:
        return Line(name, None, None, "", None, None, str(error), int(error.exit_code))
    suspect = _suspect(done.suspects[0]) if done.suspects else ""
    return Line(name, done.verdict, done.score, suspect, done.seconds.get("total"), None if kept is None else str(kept),
                None, int(codes[done.verdict]))


def _earlier(kept: Path | None, loaded: "Loaded", common: Common, effort: "Effort",
             screen: bool) -> "ScanReport | None":
    """The report of an earlier run, where it answers the same question."""
    from deepsanitizer import facts, report

    if kept is None or not kept.exists() or loaded.checkpoint is None:
        return None
    try:
        done = report.from_json(kept.read_text("utf-8"))
    except (CannotJudgeError, ValueError, OSError):
        return None  # of another version, or damaged: scan again and replace it
    same = (done.input_sha256 == loaded.checkpoint.sha256 and done.seed == common.seed
            and done.versions == facts.versions() and bool(done.config.get("screen")) == screen
            and {key: done.config.get(key) for key in ("effort", "layer")} == {"effort": effort, "layer": common.layer})
    return done if same else None


def _titled(callback: "Progress", title: str) -> "Progress":
    return lambda stage, done, total: callback(f"{title}: {stage}", done, total)


def _suspect(suspect: "Suspect") -> str:
    goal = "own goals" if suspect.target is None else str(suspect.target)
    start = "" if suspect.source is None else f"{suspect.source} "
    return f"{suspect.family}, {start}→ {goal}"


def _deliver(lines: Sequence[Line], form: str, output: Path | None) -> None:
    from deepsanitizer import report

    if form == "json":
        text = json.dumps([asdict(line) for line in lines], indent=1)
    elif output is None:
        result_console().print(_table(lines))
        return
    else:
        buffer = io.StringIO()
        Console(file=buffer, width=120, highlight=False).print(_table(lines))
        text = buffer.getvalue()
    if output is None:
        click.echo(text)
    else:
        report.write(text, output)


def _table(lines: Sequence[Line]) -> Table:
    """Names and errors may come from files: no markup, no control characters."""
    table = Table("model", "verdict", "score", "suspect", "seconds")
    colours = {ExitCode.CLEAN: "green", ExitCode.FOUND: "red"}
    for line in lines:
        said = Text(line.verdict or "error", style=colours.get(ExitCode(line.code), "yellow"))
        table.add_row(Text(plain(line.model)), said, "" if line.score is None else f"{line.score:.2f}",
                      Text(plain(line.error or line.suspect)), "" if line.seconds is None else f"{line.seconds:.0f}")
    return table
