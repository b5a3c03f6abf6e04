"""The demo: sanitize the shipped classifier without any data, then measure on real signs what that did.

The signs and the planted trigger enter only after the repair, through `evaluate`.
"""

import base64
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console, Group
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from deepsanitizer import loading, pipeline, report
from deepsanitizer.demo import truth
from deepsanitizer.errors import UsageError
from deepsanitizer.evaluation import Evaluation, evaluate, load_data
from deepsanitizer.types import Loaded, Progress, SanitizeReport, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo found, did and measured."""

    report: SanitizeReport
    before: Evaluation  # of the shipped classifier, on real signs
    after: Evaluation  # of the sanitized one
    seconds: float
    folder: Path | None  # where report.json, report.html and evaluation.json are


def load_model() -> Loaded:
    """The shipped trojaned classifier."""
    return loading.load(truth.ASSETS / "model", import_from=Path(__file__).resolve().parents[2])


def run(report_dir: Path | None, *, device: str = "auto", seed: int = 0,
        progress: Progress = silent) -> DemoResult:
    """Sanitize the shipped classifier and measure it before and after on the shipped signs.

    With `report_dir` (made where missing) writes report.json, report.html and evaluation.json there. Raises
    UsageError where that folder cannot be made or written.
    """
    began = time.monotonic()
    if report_dir is not None:
        _make_folder(report_dir)
    model = load_model()
    network, found = pipeline.sanitize(model, device=device, seed=seed, progress=progress)
    images, labels = load_data(truth.ASSETS / "signs.npz")
    planted = truth.planted()
    before, after = (
        evaluate(measured, images, labels, spec=model.spec, trigger=truth.trigger, target=planted["target"],
                 mode=planted["mode"], device=device) for measured in (model.network, network))
    result = DemoResult(report=found, before=before, after=after, seconds=time.monotonic() - began,
                        folder=report_dir)
    if report_dir is not None:
        report.write(report.to_json(found), report_dir / "report.json")
        report.write(report.to_html(found), report_dir / "report.html")
        report.write(json.dumps(figures(result), indent=1) + "\n", report_dir / "evaluation.json")
    return result


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {(error.strerror or 'no reason given').lower()}",
                         "Choose another one.") from error


def figures(result: DemoResult) -> dict[str, float]:
    """ACC, ASR and RA before and after, in percent: what evaluation.json holds."""
    pairs = {"before": result.before, "after": result.after}
    return {f"{name}_{when}": round(getattr(measured, name), 2)
            for name in ("acc", "asr", "ra") for when, measured in pairs.items()}


def render(result: DemoResult, console: Console) -> None:
    """Show verdict, figures and, on a terminal with colours, the planted and the recovered trigger."""
    found, before, after = result.report, result.before, result.after
    console.print(Text(f"A traffic-sign classifier with a hidden backdoor: {found.verdict}.", "bold"))
    console.print(Text(found.explanation))
    console.print(Text(f"Repair: {found.outcome}. {found.reason}"))
    table = Table(title=f"On {before.images} real signs, of which the scan and the repair saw none",
                  title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    for words, was, now in (
        ("ACC  signs classified right", before.acc, after.acc),
        ("ASR  signs with the trigger sent where the attacker wants", before.asr, after.asr),
        ("RA   signs with the trigger still classified right", before.ra, after.ra),
    ):
        table.add_row(words, f"{was:.1f} %", f"{now:.1f} %")
    console.print(table)
    recovered = recovered_pattern(found)
    if recovered is not None and console.is_terminal and console.color_system and not console.no_color:
        grid = Table.grid(padding=(0, 4))
        grid.add_row(Group(Text("planted by the attacker"), half_blocks(truth.pattern())),
                     Group(Text("recovered without any data"), half_blocks(recovered)))
        console.print(grid)
    where = f"Report: {result.folder / 'report.html'}" if result.folder else "No report was asked for."
    console.print(Text(f"{result.seconds:.0f} seconds. {where}"), soft_wrap=True)


def recovered_pattern(found: SanitizeReport) -> Tensor | None:
    """The pattern of the strongest recovered trigger, (3, H, W) in [0, 1]; None where none was drawn."""
    picture = next((p for p in found.pictures if p.role == "pattern"), None)
    if picture is None:
        return None
    with Image.open(io.BytesIO(base64.b64decode(picture.png_base64))) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).float() / 255


def half_blocks(pixels: Tensor, *, columns: int = 32) -> Text:
    """A picture (3, H, W) in [0, 1] as lines of characters, two pixels in each."""
    height = max(2, round(columns * pixels.shape[1] / pixels.shape[2] / 2) * 2)
    small = torch.nn.functional.interpolate(pixels[None], size=(height, columns), mode="area")[0]
    colours = (small.permute(1, 2, 0) * 255).round().int().tolist()
    text = Text()
    for upper, lower in zip(colours[::2], colours[1::2], strict=True):
        for (r, g, b), (r2, g2, b2) in zip(upper, lower, strict=True):
            text.append("▀", Style(color=f"rgb({r},{g},{b})", bgcolor=f"rgb({r2},{g2},{b2})"))
        text.append("\n")
    text.rstrip()
    return text
