"""deepsanitizer scan and sanitize: verdicts, repaired checkpoints, and their reports."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepsanitizer.cli.console import progress, result_console
from deepsanitizer.cli.folder import models_in, scan_folder
from deepsanitizer.cli.options import (
    Common,
    Source,
    check_folder,
    check_writable,
    common_options,
    file_path,
    model_options,
)
from deepsanitizer.errors import CannotJudgeError, ExitCode, UsageError
from deepsanitizer.repair import METHODS

if TYPE_CHECKING:
    from deepsanitizer.types import Effort, SanitizeReport, ScanReport, Trigger

_VERDICT_CODES = {"clean": ExitCode.CLEAN, "suspicious": ExitCode.FOUND, "backdoored": ExitCode.FOUND,
                  "inconclusive": ExitCode.NO_VERDICT}
_EFFORT = click.option("--effort", type=click.Choice(["fast", "standard", "thorough"]), default="standard",
                       show_default=True, help="How long to search. For 10 classes a repair takes about 150,000 passes "
                       "of one image with `fast`, which does not scan the repaired network anew, 240,000 to 300,000 "
                       "with `standard` and twice that with `thorough`.")


@click.command(short_help="Is there a backdoor in a model? A verdict and a report.")
@click.option("--format", "form", type=click.Choice(["text", "json", "html"]), default="text",
              show_default=True, help="Form of the report.")
@click.option("-o", "--output", type=file_path(), metavar="FILE",
              help="Write the report there.  [default: stdout]")
@click.option("--export-trigger", type=file_path(), metavar="DIR",
              help="Write the recovered triggers there, for `evaluate --trigger`.")
@click.option("--reports", type=file_path(), metavar="DIR",
              help="For a folder of models: keep each report there; the next run reads them and scans the rest.")
@click.option("--screen", is_flag=True, help="Stop after the short searches, whatever they show. Their verdict is "
              "calibrated: about 2 % of clean networks like those of the calibration are accused.")
@_EFFORT
@model_options
@common_options()
def scan(common: Common, source: Source, form: str, output: Path | None, export_trigger: Path | None,
         reports: Path | None, screen: bool, effort: "Effort") -> int:
    """Judge the model at PATH: is there a backdoor in it? No data is needed.

    PATH is a model folder (config.json, model.safetensors), or a .safetensors, .pt or .pth file with --arch. A folder
    of model folders gives one table; --timeout then holds for each model, and the exit code is 1 where anything was
    found, else 2, 4 or 3 where a model failed, could not be loaded as told or got no verdict, else 0.
    """
    if screen and effort != "standard":
        raise UsageError(f"--screen has one effort, not {effort!r}", "Leave --effort out, or --screen.")
    models = models_in(source.path)
    check_writable(output, "--output", keep=_files_of(source.path))
    check_folder(export_trigger, "--export-trigger")
    check_folder(reports, "--reports")
    if models:
        if export_trigger is not None:
            raise UsageError("--export-trigger is for one model", "Scan the model alone.")
        return scan_folder(common, source, models, form=form, output=output, reports=reports, effort=effort,
                           screen=screen, codes=_VERDICT_CODES)
    if reports is not None:
        raise UsageError("--reports is for a folder of models", "Use --format json -o FILE for one model.")
    loaded = source.load(common)
    from deepsanitizer import pipeline

    with progress(common.quiet) as callback:
        report, triggers = pipeline.scan_with_evidence(
            loaded, layer=common.layer, device=common.device, seed=common.seed, effort=effort, screen=screen,
            progress=callback, timeout=common.timeout)
    _note_seconds(report, common)
    if export_trigger is not None:
        _export(triggers, export_trigger, common)
    _deliver(report, form, output)
    return _VERDICT_CODES[report.verdict]


@click.command(short_help="Remove a backdoor and write a drop-in checkpoint.")
@click.option("-o", "--output", type=file_path(), required=True, metavar="OUT",
              help="Where the sanitized checkpoint goes: .safetensors, .pt, .pth, or a folder for a folder.")
@click.option("--report", "json_path", type=file_path(), metavar="FILE.json",
              help="Write the report as JSON.")
@click.option("--html", "html_path", type=file_path(), metavar="FILE",
              help="Write the report as one HTML page.")
@click.option("--method", type=click.Choice(list(METHODS)), default="auto", show_default=True,
              help="What to repair with. auto: what the verdict asks for.")
@_EFFORT
@click.option("--from-report", type=file_path(), metavar="FILE",
              help="Use the verdict of an earlier scan of the same file.")
@click.option("--target", type=click.IntRange(min=0), metavar="N", help="Repair for this target class.")
@click.option("--force", is_flag=True, help="Repair also what was found clean.")
@model_options
@common_options()
def sanitize(common: Common, source: Source, output: Path, json_path: Path | None, html_path: Path | None,
             method: str, effort: "Effort", from_report: Path | None, target: int | None, force: bool) -> int:
    """Remove the backdoor of the model at PATH and write a drop-in checkpoint, verified as saved.

    A model found clean is copied unchanged. Where the repair cannot be verified nothing is written.
    """
    inputs = _files_of(source.path)
    check_writable(json_path, "--report", keep=(*inputs, output))
    check_writable(html_path, "--html", keep=(*inputs, output, *([json_path] if json_path else [])))
    earlier = _read_report(from_report) if from_report is not None else None
    loaded = source.load(common)
    from deepsanitizer import pipeline, report

    with progress(common.quiet) as callback:
        _, done = pipeline.sanitize(
            loaded, output=output, method=method, effort=effort, from_report=earlier, target=target,
            force=force, layer=common.layer, device=common.device, seed=common.seed, progress=callback,
            timeout=common.timeout)
    _note_seconds(done, common)
    if json_path is not None:
        report.write(report.to_json(done), json_path)
    if html_path is not None:
        report.write(report.to_html(done), html_path)
    report.to_text(done, result_console())
    return outcome_code(done)


def outcome_code(done: "SanitizeReport") -> ExitCode:
    """The exit code of a sanitize report: what was left as it was keeps the code of its verdict."""
    if done.outcome == "unchanged":
        return _VERDICT_CODES[done.verdict]
    return {"accepted": ExitCode.CLEAN, "rolled_back": ExitCode.FOUND,
            "unsupported": ExitCode.NO_VERDICT}[done.outcome]


def _files_of(path: Path) -> tuple[Path, ...]:
    """The user's files that no report may replace."""
    return tuple(path.iterdir()) if path.is_dir() else (path,)


def _read_report(path: Path) -> "ScanReport":
    from deepsanitizer import report

    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no report {path}", "Name a report.json of an earlier scan.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the report {path} cannot be read: {error}",
                         "Name a report.json of an earlier scan.") from error
    try:
        return report.from_json(text)
    except (ValueError, CannotJudgeError) as error:
        raise UsageError(f"{path}: {error}", "Or scan the model again.") from error


def _deliver(done: "ScanReport", form: str, output: Path | None) -> None:
    """The report on stdout, or whole in a file."""
    from rich.console import Console

    from deepsanitizer import report

    if form == "text" and output is None:
        report.to_text(done, result_console())
        return
    if form == "text":
        buffer = io.StringIO()
        report.to_text(done, Console(file=buffer, width=100, highlight=False))
        text = buffer.getvalue()
    else:
        text = report.to_json(done) if form == "json" else report.to_html(done)
    if output is None:
        click.echo(text.rstrip("\n"))
    else:
        report.write(text, output)


def _export(triggers: "tuple[Trigger, ...]", folder: Path, common: Common) -> None:
    from deepsanitizer.triggers import save_trigger

    folder.mkdir(parents=True, exist_ok=True)
    if not triggers:
        common.note("no trigger was recovered: --export-trigger wrote nothing")
    for index, trigger in enumerate(triggers):
        path = folder / f"trigger-{index}.safetensors"
        save_trigger(trigger, path)
        common.note(f"wrote {path} ({trigger.family}, target {trigger.target})")


def _note_seconds(done: "ScanReport", common: Common) -> None:
    if common.verbose:
        common.note("seconds: " + ", ".join(f"{stage} {took:.1f}" for stage, took in done.seconds.items()))
