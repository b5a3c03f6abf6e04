"""What each part of the repair is worth: one part taken out at a time, on the same model, scan and bank.

    python -m deepsanitizer.bench.ablations --models c10-badnet,c10-blend

Most variants are the first rung of `auto` (bank, closed form at the heaviest weight, confined tune, overshoot) with one
change. They are measured on real test images whether or not they would be accepted, and stand beside what the old
patterns still do on dummies. The last two are the whole of `auto`, with its proof and its further rounds: `family held
out` searches, judges and repairs without the family of the strongest signal (and without the second look, which has
that family), `entries held out` with a dictionary of gratings that lacks the wave of the zoo's sinusoid and its
neighbours. Resumable: one JSON a model and variant.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import click
import torch

from deepsanitizer import examination, facts, loading, removal
from deepsanitizer.allocator import keep_freed_memory
from deepsanitizer.bench.datasets import shared_folder
from deepsanitizer.bench.proxies import Row
from deepsanitizer.bench.tables import load_results
from deepsanitizer.bench.workers import side_by_side
from deepsanitizer.bench.zoo import code_of, evaluated, measured
from deepsanitizer.classifier import Classifier
from deepsanitizer.ground import Ground, prepare
from deepsanitizer.removal import BEYOND, KEEPS, confined_tune, without_goals
from deepsanitizer.repair import bank, bound, closed_form, overshoot, sharp, tune
from deepsanitizer.report import write
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Loaded, Run, Trigger, silent
from deepsanitizer.verify import success

Bank = Sequence[Trigger]
WAVE = (0.0, 6.0)  # the zoo's sinusoid: periods down, right


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
    alone, with sharpness-aware steps of a `radius` or plain ones, how far beyond (None: not), from which dummies, with
    how many of the bank's transformations; or bounds in their place; or the whole of `auto` with something `held_out`.
    """

    relearn: Mapping[str, Any] | None = field(default_factory=dict)
    tuned: bool = True
    confined: bool = True
    beyond: float | None = BEYOND[0]
    dummies: Callable[[Ground, Bank], Dummies] = ordinary
    most: int | None = None
    bounded: bool = False
    radius: float = 0.0
    held_out: Literal["", "family", "entries"] = ""


VARIANTS: dict[str, Variant] = {
    "whole": Variant(),
    "no tune": Variant(tuned=False),
    "tune not confined": Variant(confined=False),
    "sharpness-aware tune": Variant(radius=sharp.RADIUS),
    "tune alone, sharpness-aware": Variant(relearn=None, confined=False, beyond=None, radius=sharp.RADIUS),
    "tune alone": Variant(relearn=None, confined=False, beyond=None),
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
    "bounds in place of all": Variant(bounded=True),
    "family held out": Variant(held_out="family"),
    "entries held out": Variant(held_out="entries"),
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
        candidate = change(old, candidate, dummies, used, ground.run, radius=variant.radius)
    if variant.beyond is not None:
        candidate = overshoot.repair(old, candidate, beyond=variant.beyond)
    return candidate


def _tune_alone(old: Classifier, start: Classifier, dummies: Dummies, found: Bank, run: Run, *,
                radius: float) -> Classifier:
    return tune.repair(old, dummies, found, run, start=start, radius=radius)


def without_family(examined: examination.Examined, family: str) -> examination.Examined:
    """The same evidence without one family's signals, judged anew."""
    evidence = tuple(e for e in examined.evidence if e.result.family != family)
    return replace(examined, evidence=evidence, results=tuple(e.result for e in evidence),
                   verdict=examination.conclude(evidence, examined.dummies))


@contextmanager
def without_entries(wave: tuple[float, float] = WAVE, *, within: float = 1.0) -> Iterator[None]:
    """Inside, the dictionary of gratings lacks what is at most `within` periods from a wave on both axes."""
    family = FAMILIES["grating"]
    every = family.entries
    assert every is not None

    def entries(shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        found = every(shape)
        # A wave and its opposite are one; the dictionary's go down or, where they do not, to the right.
        near = [((sign * found["wave"] - torch.tensor(wave)).abs() <= within).all(1) for sign in (1, -1)]
        return {name: value[~(near[0] | near[1])] for name, value in found.items()}

    FAMILIES["grating"] = replace(family, entries=entries)
    try:
        yield
    finally:
        FAMILIES["grating"] = family


def held_out(loaded: Loaded, case: examination.Case, examined: examination.Examined, family: str,
             what: str) -> tuple[Row, Classifier | None]:
    """The whole of `auto` without a family or without dictionary entries: what is accused, and the last candidate."""
    if what == "family":
        return _whole(replace(case, plan=replace(case.plan, second_look=False)), without_family(examined, family))
    with without_entries():
        case = _opened(loaded)
        return _whole(case, examination.examine(case))


def _whole(case: examination.Case, examined: examination.Examined) -> tuple[Row, Classifier | None]:
    suspects = examination.accused(examined, None, False)
    told: Row = {"verdict": examined.verdict.name, "target": suspects[0].target if suspects else None,
                 "family": suspects[0].family if suspects else None, "outcome": "unchanged"}
    if not suspects:
        return told, None
    last = removal.remove(_ground(case, examined), "auto", rounds=case.plan.rounds)
    return told | {"outcome": "accepted" if last.proof.accepted else "rolled_back"}, last.classifier


def _ground(case: examination.Case, examined: examination.Examined) -> Ground:
    suspects = examination.accused(examined, None, False)
    return prepare(case.parts, examined.dummies, examined.results, suspects, case.plan, case.run, case.clock.stage,
                   stored_as=case.loaded.checkpoint)


def _opened(loaded: Loaded) -> examination.Case:
    return examination.open_case(loaded, None, "auto", "auto", 0, "standard", silent, None)


def run_model(zoo: Path, model: str, names: Sequence[str], images: int, results: Path, label: str) -> None:
    """Scan one model once, and run the variants that have no result yet."""
    loaded = loading.load(zoo / model, import_from=code_of(zoo))
    case = _opened(loaded)
    examined = examination.examine(case)
    suspects = examination.accused(examined, None, False)
    if not suspects:
        raise click.ClickException(f"{model} is not accused ({examined.verdict.name}): there is no repair to vary")
    before, ground = evaluated(zoo, model, None, images), None
    found: Bank = ()
    for name in names:
        if (path := result_path(results, model, name)).exists():
            continue
        variant, began = VARIANTS[name], time.monotonic()
        row: Row = {"model": model, "variant": name, "label": label, "images": images, "before": before,
                    "candidate": None, "target": suspects[0].target, "family": suspects[0].family}
        if variant.held_out:
            told, candidate = held_out(loaded, case, examined, suspects[0].family, variant.held_out)
            row |= told
        else:
            if ground is None:
                ground = _ground(case, examined)
                found = _bank(ground)
            candidate = repaired(ground, found, variant)
            facts.round_like(candidate, loaded.checkpoint)
            row["old_patterns"] = success(candidate, ground.before[0].natural, ground.fresh, ground.run)
        if candidate is not None:
            row["candidate"] = measured(zoo, model, candidate.network.state_dict(), images)
        row["seconds"] = round(time.monotonic() - began, 1)
        write(json.dumps(row, indent=1), path)


def _bank(ground: Ground) -> Bank:
    return tuple(trigger for lead in ground.leads for trigger in bank.follow(
        ground.parts.classifier, ground.dummies, lead, ground.run, purpose="bank", **bank.FULL).triggers)


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
    """What stands after the variant: the old weights where the whole of `auto` accused nothing or rolled back."""
    kept = row["candidate"] is not None and row.get("outcome", "accepted") == "accepted"
    return row["candidate" if kept else "before"]  # type: ignore[no-any-return]


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row["candidate"] is None:
        return f"{row['verdict']}, not repaired"
    cell = f"{row['candidate']['acc']:.1f} / {row['candidate']['asr']:.1f}"
    if "outcome" not in row:
        return cell
    return f"{cell} ({row['family']} → {row['target']}, {row['outcome'].replace('_', ' ')})"


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
