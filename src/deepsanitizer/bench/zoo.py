"""The methods side by side on a folder of trained models: one JSON per model, method and seed, and a table.

    python -m deepsanitizer.bench.zoo --methods paper,auto --jobs 2

Each model is scanned once per seed; the methods share the scan and the attack on the old weights. What is there
already is not run again. Figures come from the folder's own `evaluate.py` or, where it has none, from `evaluation.py`
and each model's truth.json, as `bench.train` writes it; on real test images, of which nothing reaches the tool. A
candidate is measured also where the tool rolled it back: `candidate` is the remedy, `delivered` is what the user gets.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deepsanitizer
from deepsanitizer import examination, loading, pipeline
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.attacks import ATTACKS
from deepsanitizer.bench.datasets import keep_classes, load_pack, shared_folder
from deepsanitizer.bench.proxies import Row
from deepsanitizer.bench.tables import load_results, ra_reference, table
from deepsanitizer.bench.workers import side_by_side
from deepsanitizer.errors import DeepSanitizerError
from deepsanitizer.evaluation import evaluate
from deepsanitizer.ground import prepare
from deepsanitizer.report import write
from deepsanitizer.types import silent


def evaluated(zoo: Path, model: str, weights: Path | None, images: int) -> dict[str, float]:
    """ACC, ASR and RA in percent on real test images; ASR and RA only for trojaned models."""
    if not (zoo / "evaluate.py").exists():
        return _evaluated_here(zoo / model, weights, images)
    command = [sys.executable, str(zoo / "evaluate.py"), model, "--n", str(images)]
    command += [] if weights is None else ["--weights", str(weights)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=zoo)
    return {key: value for key, value in json.loads(told.stdout).items() if key != "model"}


def _evaluated_here(folder: Path, weights: Path | None, count: int) -> dict[str, float]:
    loaded, truth = loading.load(folder, import_from=code_of(folder.parent)), truth_of(folder)
    if weights is not None:
        loaded.network.load_state_dict(load_file(weights))
    images, labels = load_pack(truth["data"], "test")
    if truth.get("classes") is not None:
        images, labels = keep_classes(images, labels, truth["classes"])
    attack = ATTACKS[truth["attack"]](**truth["attack_kwargs"]) if truth["attack"] else None
    told = evaluate(loaded, images[:count], labels[:count], mode=truth["mode"], target=truth["target"],
                    source=truth["source"], trigger=attack.apply if attack else None, device="cpu")
    return {key: round(value, 2) for key, value in (("acc", told.acc), ("asr", told.asr), ("ra", told.ra))
            if value is not None}


def measured(zoo: Path, model: str, state: Mapping[str, Tensor], images: int) -> dict[str, float]:
    """As `evaluated`, of a candidate's weights in memory, by network key."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "candidate.safetensors"
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, str(file))
        return evaluated(zoo, model, file, images)


def code_of(zoo: Path) -> Path:
    """The folder whose networks the models in it name: the zoo itself, or this package's own parent."""
    return zoo if (zoo / "networks.py").exists() else Path(deepsanitizer.__file__).parents[1]


def truth_of(folder: Path) -> Row:
    """What was planted, for measuring and for the table only; `trigger` is its name, None in a clean model."""
    truth: Row = json.loads((folder / "truth.json").read_text())
    return {"trigger": truth.get("attack")} | truth


def run_model(zoo: Path, model: str, methods: Sequence[str], seed: int, effort: str, images: int, force: bool,
              results: Path, label: str) -> None:
    """Scan one model and run the methods that have no result yet."""
    loaded = loading.load(zoo / model, import_from=code_of(zoo))
    case = examination.open_case(loaded, None, "auto", "auto", seed, effort, silent, None)  # type: ignore[arg-type]
    examined = examination.examine(case, full=force)
    suspects, ground = examination.accused(examined, None, force), None
    if suspects:
        ground = prepare(case.parts, examined.dummies, examined.results, suspects, case.plan, case.run,
                         case.clock.stage, stored_as=loaded.checkpoint)
    shared_seconds, shared_passes = (dict(table) for table in (case.clock.seconds, case.clock.passes))
    truth = truth_of(zoo / model)
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
        candidate = None if state is None else measured(zoo, model, state, images)
        row |= {
            "verdict": report.verdict, "score": report.score, "suspects": [
                {"kind": s.kind, "source": s.source, "target": s.target, "family": s.family, "score": s.score}
                for s in report.suspects],
            "outcome": report.outcome, "reason": report.reason, "steps": report.steps,
            "loss_step0": report.loss_step0, "candidate": candidate,
            "delivered": candidate if report.accepted else before,
            "agreement": None if report.agreement is None else report.agreement.overall,
            "comparisons": [[c.family, c.target, c.margin_before, c.success_before, c.margin_after, c.success_after,
                             c.others_after, c.old_success_after, c.tolerated] for c in report.comparisons],
            "signals": [[s.name, s.kind, s.source, s.target, s.margin, s.runner_up, s.success, s.score]
                        for s in report.signals],
            "inspection_layer": report.inspection_layer, "device": report.device, "versions": report.versions,
            "seconds": report.seconds, "passes": report.passes, "input_sha256": report.input_sha256,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write(json.dumps(row, indent=1), path)


def result_path(results: Path, model: str, method: str, seed: int, force: bool) -> Path:
    """Where one result is kept."""
    return results / f"{model}.{method}{'-forced' if force else ''}.{seed}.json"


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--zoo", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of model folders, "
              "each with truth.json. Default: the zoo in the shared folder.")
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

    failed = side_by_side("deepsanitizer.bench.zoo", missing, arguments, jobs=jobs)
    told = table(load_results(results), ra_reference(zoo))
    write(told, results.with_suffix(".md"))
    click.echo(told)
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
