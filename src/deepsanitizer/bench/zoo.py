"""The methods side by side on a folder of trained models: one JSON per model, method and seed, and a table.

    python -m deepsanitizer.bench.zoo --methods paper,auto --jobs 2

Each model is scanned once per seed; the methods share the scan and the attack on the old weights. What is there
already is not run again. Figures come from the zoo's own `evaluate.py`, on real test images; nothing of them reaches
the tool. A candidate is measured also where the tool rolled it back: `candidate` is the remedy, `delivered` is what
the user gets.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.datasets import shared_folder
from deepsanitizer.report import write

Row = dict[str, Any]


def evaluated(zoo: Path, model: str, weights: Path | None, images: int) -> dict[str, float]:
    """ACC, ASR and RA in percent by the zoo's own script; ASR and RA only for trojaned models."""
    command = [sys.executable, str(zoo / "evaluate.py"), model, "--n", str(images)]
    command += [] if weights is None else ["--weights", str(weights)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=zoo)
    return {key: value for key, value in json.loads(told.stdout).items() if key != "model"}


def run_model(zoo: Path, model: str, methods: Sequence[str], seed: int, effort: str, images: int, force: bool,
              results: Path, label: str) -> None:
    """Scan one model and run the methods that have no result yet."""
    from safetensors.torch import save_file

    from deepsanitizer import loading, pipeline, removal
    from deepsanitizer.errors import DeepSanitizerError
    from deepsanitizer.types import silent

    loaded = loading.load(zoo / model, import_from=zoo)
    case = pipeline.open_case(loaded, None, "auto", "auto", seed, effort, silent, None)  # type: ignore[arg-type]
    examined = pipeline.examine(case)
    suspects, ground = pipeline.accused(examined, None, force), None
    if suspects:
        ground = removal.prepare(case.parts, examined.dummies, examined.results, suspects, case.plan, case.run,
                                  case.clock.stage, stored_as=loaded.checkpoint)
    shared_seconds, shared_passes = (dict(table) for table in (case.clock.seconds, case.clock.passes))
    truth = json.loads((zoo / model / "truth.json").read_text())  # for the table only
    before = evaluated(zoo, model, None, images)
    for method in methods:
        path = result_path(results, model, method, seed, force)
        if path.exists():
            continue
        case.clock.seconds.clear()
        case.clock.passes.clear()
        case.clock.seconds.update(shared_seconds)
        case.clock.passes.update(shared_passes)
        row: Row = {"model": model, "method": method, "seed": seed, "effort": effort, "force": force, "label": label,
                    "images": images, "before": before, "truth": {
                        key: truth.get(key) for key in ("data", "trigger", "mode", "source", "target")}}
        try:
            _, report, state = pipeline.finish(case, examined, method=method, force=force, ground=ground)
        except DeepSanitizerError as error:
            row["error"] = str(error)
            write(json.dumps(row, indent=1), path)
            continue
        candidate = None
        if state is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "candidate.safetensors"
                save_file({name: value.contiguous() for name, value in state.items()}, str(file))
                candidate = evaluated(zoo, model, file, images)
        row |= {
            "verdict": report.verdict, "score": report.score, "suspects": [
                {"kind": s.kind, "source": s.source, "target": s.target, "family": s.family, "score": s.score}
                for s in report.suspects],
            "outcome": report.outcome, "reason": report.reason, "steps": report.steps,
            "loss_step0": report.loss_step0, "candidate": candidate,
            "delivered": candidate if report.accepted else before,
            "agreement": None if report.agreement is None else report.agreement.overall,
            "comparisons": [[c.family, c.target, c.margin_before, c.success_before, c.margin_after, c.success_after,
                             c.others_after, c.old_success_after] for c in report.comparisons],
            "signals": [[s.name, s.kind, s.source, s.target, s.margin, s.runner_up, s.success, s.score]
                        for s in report.signals],
            "inspection_layer": report.inspection_layer, "device": report.device, "versions": report.versions,
            "seconds": report.seconds, "passes": report.passes, "input_sha256": report.input_sha256,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write(json.dumps(row, indent=1), path)


def result_path(results: Path, model: str, method: str, seed: int, force: bool) -> Path:
    """Where one result is kept."""
    return results / f"{model}.{method}{'-forced' if force else ''}.{seed}.json"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of results, and a line of means over trojaned models for each method."""
    lines = ["| model | trigger | method | verdict: suspect | outcome | before | candidate | delivered | seconds | "
             "passes | label |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda r: (r["method"], r["model"])):
        truth = row["truth"]
        told = "–" if not truth["trigger"] else f"{truth['trigger']}, {truth['mode']}, {_goal(truth)}"
        if "error" in row:
            lines.append(f"| {row['model']} | {told} | {row['method']} | {row['error']} | | {_triple(row['before'])} "
                         f"| | | | | {row['label']} |")
            continue
        suspect = row["suspects"][0] if row["suspects"] else None
        said = row["verdict"]
        if suspect is not None:
            said += f": {suspect['family']}, {suspect['kind']}, {_goal(suspect)}"
        lines.append(
            f"| {row['model']} | {told} | {row['method']} | {said} ({row['score']:.1f}) | {row['outcome']} | "
            f"{_triple(row['before'])} | {_triple(row['candidate'])} | {_triple(row['delivered'])} | "
            f"{row['seconds']['total']:.0f} | {row['passes']['total']:,.0f} | {row['label']} |")
    return "\n".join([*lines, "", *_means(rows)]) + "\n"


def _goal(facts: Row) -> str:
    if facts["target"] is None:
        return "→ next class" if facts.get("mode") == "all2all" else "→ own goals"
    return (f"{facts['source']} " if facts.get("source") is not None else "") + f"→ {facts['target']}"


def _triple(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "–"
    return " / ".join(f"{figures[key]:.1f}" for key in ("acc", "asr", "ra") if key in figures)


def _means(rows: Sequence[Row]) -> list[str]:
    lines = []
    for method in sorted({row["method"] for row in rows}):
        mine = [row for row in rows if row["method"] == method and "error" not in row]
        trojaned = [row for row in mine if row["truth"]["trigger"]]
        clean = [row for row in mine if not row["truth"]["trigger"]]
        for key in ("candidate", "delivered"):
            pairs = [(row["before"], row[key] or row["before"]) for row in trojaned]
            if not pairs:
                continue
            success = sum(new["asr"] < 10 and old["acc"] - new["acc"] < 3 for old, new in pairs)
            lost = _mean([old["acc"] - new["acc"] for old, new in pairs])
            asr, ra = (_mean([new[name] for _, new in pairs]) for name in ("asr", "ra"))
            lines.append(
                f"- `{method}`, {key}, {len(pairs)} trojaned models: success (ASR < 10, < 3 points lost) {success}; "
                f"mean ASR {asr:.1f}; mean accuracy lost {lost:.2f}; mean RA {ra:.1f}")
        if clean:
            found_clean = sum(row["verdict"] == "clean" for row in clean)
            worst = max(row["before"]["acc"] - row["delivered"]["acc"] for row in clean)
            lines.append(f"- `{method}`, {len(clean)} clean models: found clean {found_clean}; worst accuracy lost by "
                         f"what was delivered {worst:.2f}")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def load_results(results: Path) -> list[Row]:
    """All rows in a folder of results."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--zoo", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of model folders "
              "with evaluate.py. Default: the zoo in the shared folder.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("benchmarks/results/zoo"))
@click.option("--models", default="", help="Comma-separated names; all by default.")
@click.option("--methods", default="paper,auto")
@click.option("--seed", default=0)
@click.option("--effort", default="standard")
@click.option("--images", default=2000, help="Test images to measure on.")
@click.option("--force", is_flag=True, help="Repair what is found clean, too.")
@click.option("--jobs", default=2, help="Processes side by side, one torch thread each.")
@click.option("--label", default="", help="A word kept with every result, such as the commit.")
@click.option("--one", hidden=True, default="", help="Run one model in this process.")
def main(zoo: Path | None, results: Path, models: str, methods: str, seed: int, effort: str, images: int, force: bool,
         jobs: int, label: str, one: str) -> None:
    """See the module."""
    zoo = zoo or shared_folder() / "zoo"
    wanted = methods.split(",")
    if one:
        import torch

        torch.set_num_threads(1)
        keep_freed_memory()
        run_model(zoo, one, wanted, seed, effort, images, force, results, label)
        return
    results.mkdir(parents=True, exist_ok=True)
    names = models.split(",") if models else sorted(path.parent.name for path in zoo.glob("*/config.json"))
    missing = [name for name in names
               if not all(result_path(results, name, method, seed, force).exists() for method in wanted)]
    arguments = ["--zoo", str(zoo), "--results", str(results), "--methods", methods, "--seed", str(seed),
                 "--effort", effort, "--images", str(images), "--label", label, *(["--force"] if force else [])]

    def process(name: str) -> tuple[str, int, str]:
        done = subprocess.run([sys.executable, "-m", "deepsanitizer.bench.zoo", *arguments, "--one", name],
                              capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return name, done.returncode, done.stderr

    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for number, (name, code, errors) in enumerate(pool.map(process, missing), 1):
            failed += code != 0
            click.echo(f"{number}/{len(missing)} {name}" + (f" failed:\n{errors[-2000:]}" if code else ""), err=True)
    rows = load_results(results)
    write(table(rows), results.with_suffix(".md"))
    click.echo(table(rows))
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
