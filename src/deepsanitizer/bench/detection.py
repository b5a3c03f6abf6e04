"""The screen, what follows it, or the published detectors on a folder of models: one JSON per model and seed.

    python -m deepsanitizer.bench.detection --models models/calibration --results results/calibration --jobs 2
    python -m deepsanitizer.bench.detection --models models/calibration --results results/calibration --what further
    python -m deepsanitizer.bench.detection --models models/calibration --results results/calibration --what natural
    python -m deepsanitizer.bench.detection --models models/calibration --results results/calibration --what probes
    python -m deepsanitizer.bench.detection --models models/calibration --results results/calibration --what pairs
    python -m deepsanitizer.bench.detection --models models/clean --results results/clean --what published

What is there already is not run again. `screen` is that of `deepsanitizer scan --screen`, `further` and `natural` the
searches that follow it where it does not accuse, on its dummies and on natural images, `probes` and `pairs` what
follows and is not searched; `published` are FreeEagle, the maximum-margin statistic, the weight signature and the shift
of features, to compare with. The truth is copied beside what the tool says; nothing that searches sees it.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import click
import torch

from deepsanitizer import examination, loading
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.workers import side_by_side
from deepsanitizer.bench.zoo import code_of, truth_of
from deepsanitizer.curate import invert
from deepsanitizer.report import write
from deepsanitizer.signals import (
    SCREEN_DUMMIES,
    Dummy,
    feature_shift,
    freeeagle,
    head_weights,
    mm_bd,
    on_dummies,
    on_natural_images,
)
from deepsanitizer.types import Evidence, SignalResult, silent

What = Literal["screen", "further", "natural", "probes", "pairs", "published"]
ON_DUMMIES: dict[What, tuple[Dummy, ...]] = {"further": ("routes", "permutation"),
                                             "probes": ("stamps", "random warps", "tints"),
                                             "pairs": ("stamped pairs",)}
FOLLOWS: tuple[What, ...] = ("natural", *ON_DUMMIES)
TRUTH = ("data", "trigger", "mode", "source", "target", "attacker", "architecture")


def run_model(folder: Path, what: What, seed: int, results: Path, label: str) -> None:
    """Run one model and write its row."""
    loaded = loading.load(folder, import_from=code_of(folder.parent))
    case = examination.open_case(loaded, None, "auto", "auto", seed, "standard", silent, None)
    began = time.monotonic()
    row: dict[str, Any] = {"model": folder.name, "what": what, "seed": seed, "label": label,
                           "classes": loaded.spec.num_classes, "shape": loaded.spec.shape}
    evidence: Sequence[Evidence]
    if what == "screen":
        dummies, evidence = examination.screened(case)
        row |= {"plain": dummies.plain_margin, "matched": dummies.matched,
                "reached": len(dummies.labels.unique()) / loaded.spec.num_classes}
    elif what == "natural":
        evidence = tuple(on_natural_images(case.classifier, case.run))
    elif what in ON_DUMMIES:
        evidence = tuple(on_dummies(case.classifier, examination.screen_dummies(case), case.run,
                                    names=ON_DUMMIES[what]))
    else:
        # Of the 300 steps and 30 images of the published maximum margin, a third each.
        dummies = invert(case.classifier, SCREEN_DUMMIES, case.run, purpose="screen")
        evidence = [freeeagle.detect(case.parts, case.run), head_weights.detect(case.classifier),
                    mm_bd.detect(case.classifier, case.run, images=10, steps=100),
                    feature_shift.detect(case.parts, dummies, case.run)]
    truth = truth_of(folder)
    write(json.dumps(row | {
        "truth": {key: truth.get(key) for key in TRUTH} | {"asr": (truth.get("measured") or {}).get("asr")},
        "signals": [kept(item.result) for item in evidence], "passes": round(case.run.meter.passes),
        "seconds": round(time.monotonic() - began, 1)}, indent=1), result_path(results, folder.name, what, seed))


def kept(result: SignalResult) -> dict[str, Any]:
    """A result's fields that are not at their defaults, without the matrix; three digits."""
    empty = asdict(SignalResult(name="", applicable=False))
    return {key: _short(value) for key, value in asdict(result).items()
            if key != "matrix" and (value != empty[key] or key in ("name", "applicable"))}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def result_path(results: Path, model: str, what: What, seed: int) -> Path:
    """Where one row is kept."""
    return results / f"{model}.{what}.{seed}.json"


def load_rows(results: Path, what: What = "screen", seed: int = 0) -> list[dict[str, Any]]:
    """All rows of a folder, by model; each with its signals as `SignalResult`s under `results`.

    To a screen belong the searches that follow it, where there are any.
    """
    rows = [json.loads(path.read_text()) for path in sorted(results.glob(f"*.{what}.{seed}.json"))]
    for row in rows:
        for follows in FOLLOWS if what == "screen" else ():
            after = result_path(results, row["model"], follows, seed)
            if after.exists():
                row["signals"] += json.loads(after.read_text())["signals"]
        row["results"] = [SignalResult(**signal) for signal in row.pop("signals")]
    return rows


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--models", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True,
              help="Folder of model folders, each with truth.json.")
@click.option("--results", type=click.Path(path_type=Path), required=True, help="Folder for the rows.")
@click.option("--what", type=click.Choice(get_args(What)), default="screen")
@click.option("--only", default="", help="Comma-separated names; all by default.")
@click.option("--seed", default=0)
@click.option("--jobs", default=2, help="Processes side by side, one torch thread each.")
@click.option("--label", default="", help="A word kept with every row, such as the commit.")
@click.option("--one", hidden=True, default="", help="Run this share of the models in this process.")
def main(models: Path, results: Path, what: What, only: str, seed: int, jobs: int, label: str, one: str) -> None:
    """See the module."""
    results.mkdir(parents=True, exist_ok=True)
    names = only.split(",") if only else sorted(path.parent.name for path in models.glob("*/config.json"))
    missing = [name for name in names if not result_path(results, name, what, seed).exists()]
    if one:
        torch.set_num_threads(1)
        keep_freed_memory()
        first, step = map(int, one.split("/"))
        for name in names[first::step]:
            if name in missing:
                run_model(models / name, what, seed, results, label)
                click.echo(name, err=True)
        return
    arguments = ["--models", str(models), "--results", str(results), "--what", what, "--only", ",".join(names),
                 "--seed", str(seed), "--label", label]
    if missing and side_by_side("deepsanitizer.bench.detection", [f"{k}/{jobs}" for k in range(jobs)], arguments,
                                jobs=jobs):
        raise SystemExit(2)


if __name__ == "__main__":
    main()
