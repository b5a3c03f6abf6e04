"""What each part of the repair is worth: one part taken out at a time, on the same model, scan and bank.

    python -m deepsanitizer.bench.ablations --models c10-badnet,c10-blend

Every variant is the first rung of `auto` (bank, closed form at the heaviest weight, confined tune, overshoot) with one
change. It is measured on real test images whether or not it would be accepted, and stands beside what the old patterns
still do on dummies. `family held out` searches and judges without the family of the strongest signal. Resumable: one
JSON a model and variant.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch

from deepsanitizer import examination, facts, loading, policy, removal
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.datasets import shared_folder
from deepsanitizer.bench.proxies import Row
from deepsanitizer.bench.tables import load_results
from deepsanitizer.bench.workers import side_by_side
from deepsanitizer.bench.zoo import code_of, evaluated, measured
from deepsanitizer.classifier import Classifier
from deepsanitizer.removal import BEYOND, KEEPS, Ground, confined_tune, without_goals
from deepsanitizer.repair import bank, bound, closed_form, overshoot, tune
from deepsanitizer.report import write
from deepsanitizer.types import Dummies, Run, Trigger, silent
from deepsanitizer.verify import success

Bank = Sequence[Trigger]


def ordinary(ground: Ground, found: Bank) -> Dummies:
    """What `auto` learns from."""
    return without_goals(ground.ordinary, found)


def some(count: int) -> Callable[[Ground, Bank], Dummies]:
    """A random part of the ordinary dummies."""
    def part(ground: Ground, found: Bank) -> Dummies:
        chosen = torch.randperm(len(ground.ordinary), generator=torch.Generator().manual_seed(0))[:count]
        chosen = chosen.to(ground.ordinary.images.device)
        return without_goals(replace(ground.ordinary, images=ground.ordinary.images[chosen],
                                     logits=ground.ordinary.logits[chosen]), found)
    return part


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to repair: keywords of the closed form (None leaves it out), tuned or not, the tune confined or as it is
    alone, how far beyond (None: not), from which dummies, with how many of the bank's transformations, with the
    strongest signal's family held out or not; or bounds in their place.
    """

    relearn: Mapping[str, Any] | None = field(default_factory=dict)
    tuned: bool = True
    confined: bool = True
    beyond: float | None = BEYOND[0]
    dummies: Callable[[Ground, Bank], Dummies] = ordinary
    most: int | None = None
    held_out: bool = False
    bounded: bool = False


VARIANTS: dict[str, Variant] = {
    "whole": Variant(),
    "no tune": Variant(tuned=False),
    "tune not confined": Variant(confined=False),
    "no overshoot": Variant(beyond=None),
    "half as far again": Variant(beyond=BEYOND[1]),
    "no closed form": Variant(relearn=None),
    "weight 4": Variant(relearn={"keep": 4.0}),
    "same weight in all layers": Variant(relearn={"early": 1.0}),
    "no ridge for scarce rows": Variant(relearn={"scarcity": 0.0}),
    "triggers at full strength only": Variant(relearn={"weakest": 1.0}),
    "one transformation": Variant(most=1),
    "with the target's dummies": Variant(dummies=lambda ground, found: ground.ordinary),
    "the scan's dummies": Variant(dummies=lambda ground, found: without_goals(ground.dummies, found)),
    "100 dummies": Variant(dummies=some(100)),
    "200 dummies": Variant(dummies=some(200)),
    "400 dummies": Variant(dummies=some(400)),
    "family held out": Variant(held_out=True),
    "bounds in place of all": Variant(bounded=True),
}


def repaired(ground: Ground, found: Bank, variant: Variant) -> Classifier:
    """The candidate of one variant, not proven."""
    old, used = ground.parts.classifier, found[:variant.most]
    dummies, candidate = variant.dummies(ground, found), old
    if variant.bounded:
        return bound.repair(old, dummies, used, ground.run)
    if variant.relearn is not None:
        candidate = closed_form.repair(old, dummies, used, ground.run, **{"keep": KEEPS[0], **variant.relearn})
    if variant.tuned:
        change = confined_tune if variant.confined else _tune_alone
        candidate = change(old, candidate, dummies, used, ground.run)
    if variant.beyond is not None:
        candidate = overshoot.repair(old, candidate, beyond=variant.beyond)
    return candidate


def _tune_alone(old: Classifier, start: Classifier, dummies: Dummies, found: Bank, run: Run) -> Classifier:
    return tune.repair(old, dummies, found, run, start=start)


def without_family(case: examination.Case, examined: examination.Examined, family: str) -> examination.Examined:
    """The same evidence without one family's signals, judged anew."""
    evidence = tuple(e for e in examined.evidence if e.result.family != family)
    return replace(examined, evidence=evidence, results=tuple(e.result for e in evidence),
                   verdict=examination.conclude(evidence, examined.dummies))


def run_model(zoo: Path, model: str, names: Sequence[str], images: int, results: Path, label: str) -> None:
    """Scan one model once, and run the variants that have no result yet."""
    loaded = loading.load(zoo / model, import_from=code_of(zoo))
    case = examination.open_case(loaded, None, "auto", "auto", 0, "standard", silent, None)
    examined = examination.examine(case)
    suspects = examination.accused(examined, None, False)
    if not suspects:
        raise click.ClickException(f"{model} is not accused ({examined.verdict.name}): there is no repair to vary")
    ground = removal.prepare(case.parts, examined.dummies, examined.results, suspects, case.plan, case.run,
                             case.clock.stage, stored_as=loaded.checkpoint)
    before, whole = evaluated(zoo, model, None, images), _bank(ground)
    for name in names:
        if (path := result_path(results, model, name)).exists():
            continue
        variant, began = VARIANTS[name], time.monotonic()
        row: Row = {"model": model, "variant": name, "label": label, "images": images, "before": before,
                    "candidate": None, "target": suspects[0].target, "family": suspects[0].family}
        found: Bank | None = whole
        if variant.held_out:
            without = without_family(case, examined, suspects[0].family)
            named = examination.accused(without, None, False)
            row |= {"verdict": without.verdict.name, "target": named[0].target if named else None,
                    "family": named[0].family if named else None}
            found = None
            if named:
                leads, _ = policy.leads_for(named, without.results, loaded.spec.shape,
                                            movable=examined.dummies.movable)
                found = _bank(replace(ground, leads=tuple(bank.matched(
                    case.parts.classifier, examined.dummies, leads, case.run, plain_margin=ground.unit))))
        if found is not None:
            candidate = repaired(ground, found, variant)
            facts.round_like(candidate, loaded.checkpoint)
            hits = success(candidate, ground.before[0].natural, ground.fresh, ground.run)
            row |= {"old_patterns": hits, "candidate": measured(zoo, model, candidate.network.state_dict(), images)}
        row["seconds"] = round(time.monotonic() - began, 1)
        write(json.dumps(row, indent=1), path)


def _bank(ground: Ground) -> Bank:
    return [trigger for lead in ground.leads for trigger in bank.follow(
        ground.parts.classifier, ground.dummies, lead, ground.run, purpose="bank", **bank.FULL).triggers]


def result_path(results: Path, model: str, variant: str) -> Path:
    """Where one result is kept."""
    return results / f"{model}.{variant.replace(' ', '-').replace(chr(39), '')}.json"


def table(rows: Sequence[Row]) -> str:
    """Variants down, models across: ACC / ASR; then how many remove, mean ASR and mean accuracy lost."""
    models = sorted({row["model"] for row in rows})
    found = {(row["model"], row["variant"]): row for row in rows}
    told = ["| part changed | " + " | ".join(models) + " | removed | mean ASR | accuracy lost |",
            "| --- |" + " --- |" * (len(models) + 3)]
    before = {row["model"]: row["before"] for row in rows}
    told.append("| (before) | " + " | ".join(f"{before[m]['acc']:.1f} / {before[m]['asr']:.1f}" for m in models)
                + " | | | |")
    for name in (name for name in VARIANTS if any(key[1] == name for key in found)):
        mine = [found.get((model, name)) for model in models]
        told.append(f"| {name} | " + " | ".join(_cell(row) for row in mine) + f" | {_means([r for r in mine if r])} |")
    return "\n".join(told) + "\n"


def _after(row: Row) -> Row:
    """What stands after the variant: the old weights where nothing was accused without the family."""
    return row["candidate"] or row["before"]  # type: ignore[no-any-return]


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row["candidate"] is None:
        return f"{row['verdict']}, not repaired"
    cell = f"{row['candidate']['acc']:.1f} / {row['candidate']['asr']:.1f}"
    return cell if "verdict" not in row else f"{cell} ({row['family']} → {row['target']})"


def _means(rows: Sequence[Row]) -> str:
    lost = [row["before"]["acc"] - _after(row)["acc"] for row in rows]
    asr = [_after(row)["asr"] for row in rows]
    good = sum(a < 10 and b < 3 for a, b in zip(asr, lost, strict=True))
    return f"{good} of {len(rows)} | {sum(asr) / len(asr):.1f} | {sum(lost) / len(lost):.2f}"


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--zoo", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of model folders. "
              "Default: the zoo in the shared folder.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("benchmarks/results/ablations"))
@click.option("--models", default="", help="Comma-separated names of trojaned models.")
@click.option("--variants", default=",".join(VARIANTS), help="Comma-separated.")
@click.option("--images", default=2000, help="Test images to measure on.")
@click.option("--jobs", default=2, help="Processes side by side, one torch thread each.")
@click.option("--label", default="", help="A word kept with every result, such as the commit.")
@click.option("--one", hidden=True, default="", help="Run one model in this process.")
def main(zoo: Path | None, results: Path, models: str, variants: str, images: int, jobs: int, label: str,
         one: str) -> None:
    """See the module."""
    zoo, names = zoo or shared_folder() / "zoo", variants.split(",")
    if unknown := set(names) - set(VARIANTS):
        raise click.UsageError(f"there is no variant {sorted(unknown)[0]!r}; choose from {', '.join(VARIANTS)}")
    results.mkdir(parents=True, exist_ok=True)
    if one:
        torch.set_num_threads(1)
        keep_freed_memory()
        run_model(zoo, one, names, images, results, label)
        return
    if not models:
        raise click.UsageError("name trojaned models with --models")
    missing = [m for m in models.split(",") if not all(result_path(results, m, name).exists() for name in names)]

    arguments = ["--zoo", str(zoo), "--results", str(results), "--variants", variants, "--images", str(images),
                 "--label", label]
    failed = side_by_side("deepsanitizer.bench.ablations", missing, arguments, jobs=jobs)
    told = table(load_results(results))
    write(told, results.with_suffix(".md"))
    click.echo(told)
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
