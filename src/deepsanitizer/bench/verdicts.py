"""The verdict on many models: how often it is right, by kind of model, and each signal alone. Prints and draws.

    python -m deepsanitizer.bench.verdicts --results benchmarks/results/detection \
        --output benchmarks/results/detection.md

Reads the rows of `bench.detection` in the folders `calibration`, `clean` and `trojaned` (and `zoo`, `longer-clean` and
`longer-trojaned`, where they are there). The threshold comes from the calibration alone. A trojaned model counts where
the backdoor was planted: with an ASR of at least `judging.PLANTED` percent. `inconclusive` counts as a miss.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from deepsanitizer.bench.calibrate import nulls_of, table_for
from deepsanitizer.bench.detection import What, load_rows
from deepsanitizer.bench.distributions import picture
from deepsanitizer.bench.judging import Judged, Row, auroc, counted, judged, share
from deepsanitizer.bench.population import LONGER
from deepsanitizer.calibration import (
    FILTER,
    FOLLOWING,
    GRATING,
    LEVEL,
    PERMUTATIONS,
    ROUTES,
    STAMPED_PAIRS,
    STAMPS,
    TINTS,
    VOTING,
    WARP,
    WARPS,
    p_value,
)
from deepsanitizer.errors import UsageError
from deepsanitizer.report import write

# The signals that search the family of an attack.
OF_ATTACK = {"patch": ("screen place", "screen own goals", STAMPED_PAIRS, STAMPS, ROUTES, *PERMUTATIONS),
             "blend": ("screen blend",), "tint": ("screen filter", FILTER, TINTS), "warp": ("screen warp", WARP, WARPS),
             "grating": ("screen grating", GRATING)}

KINDS = {3: "colour images", 1: "spectrograms of speech"}  # by channels


def report(groups: dict[str, list[Row]]) -> str:
    """All tables as Markdown."""
    calibration, clean, bad = counted(groups)
    good_scores, bad_scores = judged(clean, calibration), judged(bad, calibration)
    kinds = Counter(row["shape"][0] for row in calibration)
    told = ["# Detection", "", f"{len(calibration)} clean networks to calibrate on, {len(clean)} clean and {len(bad)} "
            f"trojaned ones to test on; {len(groups['trojaned']) - len(bad)} more in which the backdoor did not take "
            f"(see `PLANTED`) and {len(groups['clean']) - len(clean)} clean ones that the calibration does not cover "
            f"are left out. Threshold: {LEVEL:.0%} of the calibration networks with as many input channels ("
            f"{', '.join(f'{count} with {channels}' for channels, count in sorted(kinds.items(), reverse=True))}), of "
            "which themselves the screen and what follows it accuse "
            f"{sum(j.accused for j in judged(calibration, calibration))}.", "",
            *_by_kind(good_scores, bad_scores), "",
            "The rule of thumb of the full scan (a lead of about one plain margin) on the same short searches: "
            f"found {_thumb(bad)} trojaned, accused {_thumb(clean)} clean and {_thumb(calibration)} calibration "
            "networks.", "", "## By attack", "", "| attack | models | found | without its family's signals |",
            "| --- | --- | --- | --- |"]
    for name in sorted({_attack(row) for row in bad}):
        mine = [row for row in bad if _attack(row) == name]
        held = judged(mine, calibration, without=OF_ATTACK[mine[0]["truth"]["trigger"]])
        found = share(judged(mine, calibration), lambda j: j.accused)
        told.append(f"| {name} | {len(mine)} | {found} | {share(held, lambda j: j.accused)} |")
    for what, of in (("architecture", _architecture), ("data", _data)):
        told += ["", f"## By {what}, in sample and with the {what} left out of the calibration", "",
                 f"| {what} | found | false alarms | found, left out | false alarms, left out |",
                 "| --- | --- | --- | --- | --- |"]
        for name in sorted({of(row) for row in [*bad, *clean]}):
            here, sound = ([row for row in rows if of(row) == name] for rows in (bad, clean))
            others = [row for row in calibration if of(row) != name]
            cells = [share(judged(rows, known), lambda j: j.accused) for known in (calibration, others)
                     for rows in (here, sound)]
            told.append(f"| {name} | " + " | ".join(cells) + " |")
    told += ["", "## Each signal alone", "", "| signal | AUROC | found at 2 % of the calibration | false alarms |",
             "| --- | --- | --- | --- |", *_alone(groups)]
    told += ["", "## Misses and false alarms", "", *_wrong(good_scores, bad_scores)]
    if groups.get("zoo"):
        told += ["", "## The zoo", "", *_zoo(judged(groups["zoo"], calibration))]
    return "\n".join(told) + "\n"


def groups_of(results: Path) -> dict[str, list[Row]]:
    """All rows by group; those of the published detectors by group and `.published`. Test networks that were trained
    for longer are of the group from which they come.
    """
    kinds: dict[str, What] = {"": "screen", ".published": "published"}
    folders = {"calibration": ("calibration",), "zoo": ("zoo",), "clean": ("clean", f"{LONGER}clean"),
               "trojaned": ("trojaned", f"{LONGER}trojaned")}
    return {name + suffix: [row for folder in mine for row in load_rows(results / folder, what)]
            for name, mine in folders.items() for suffix, what in kinds.items()}


def _by_kind(good: Sequence[Judged], bad: Sequence[Judged]) -> list[str]:
    """The figures over all networks, over each kind of input where there are several and, where some were trained for
    longer, on these and on the same ones before.
    """
    names = {j.row["model"] for j in [*good, *bad]}
    longer = {name for name in names if name.startswith(LONGER)}
    before = {name.removeprefix(LONGER) for name in longer} & names
    columns = {"all": _main(good, bad)}
    kinds = {j.row["shape"][0] for j in [*good, *bad]}
    for channels in sorted(kinds, reverse=True) if len(kinds) > 1 else ():
        columns[KINDS.get(channels, f"{channels} channels")] = _main(
            *([j for j in some if j.row["shape"][0] == channels] for some in (good, bad)))
    if longer:
        for name, some in (("trained briefly", names - longer), ("trained for longer", longer),
                           ("the same, trained briefly", before)):
            columns[name] = _main(*([j for j in judged_ones if j.row["model"] in some] for judged_ones in (good, bad)))
    rows = zip(*columns.values(), strict=True)
    return ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns),
            *(f"| {cells[0][0]} | " + " | ".join(value for _, value in cells) + " |" for cells in rows)]


def _main(good: Sequence[Judged], bad: Sequence[Judged]) -> list[tuple[str, str]]:
    one = [j for j in bad if j.row["truth"]["mode"] == "all2one"]
    specific = [j for j in bad if j.row["truth"]["mode"] == "specific"]
    permuted = [j for j in bad if j.row["truth"]["mode"] == "all2all"]
    unaccused_good, unaccused_bad = ([j for j in some if not j.by_screen] for some in (good, bad))
    ended_good, ended_bad = ([j for j in some if j.by_screen or _followed(j)] for some in (good, bad))
    ten, many = ([j.row for j in [*good, *bad] if j.row["classes"] == classes] for classes in (10, 43))
    return [
        ("AUROC", f"{auroc([j.score for j in good], [j.score for j in bad]):.3f}"),
        ("AUROC, all-to-one only", f"{auroc([j.score for j in good], [j.score for j in one]):.3f}"),
        ("found", share(bad, lambda j: j.accused)), ("found, all-to-one", share(one, lambda j: j.accused)),
        ("found, source-specific", share(specific, lambda j: j.accused)),
        ("found, all-to-all", share(permuted, lambda j: j.accused)),
        ("false alarms", share(good, lambda j: j.accused)),
        ("searched further, of those that the screen does not accuse",
         f"{sum(map(_followed, unaccused_good))} of {len(unaccused_good)} clean, "
         f"{sum(map(_followed, unaccused_bad))} of {len(unaccused_bad)} trojaned"),
        ("the same but for stamped pairs", " and ".join(
            f"{sum(_followed(j, but=STAMPED_PAIRS) for j in some)} {what}"
            for some, what in ((unaccused_good, "clean"), (unaccused_bad, "trojaned")))),
        ("false alarms by what follows the screen alone",
         share([j for j in unaccused_good if _followed(j)], lambda j: j.accused)),
        ("AUROC, of those searched to the end",
         f"{auroc([j.score for j in ended_good], [j.score for j in ended_bad]):.3f} ({len(ended_good)} clean, "
         f"{len(ended_bad)} trojaned)" if ended_good and ended_bad else "–"),
        *((f"{what}, of all that were searched on natural images",
           share([j for j in some if _has(j.row, WARP)], lambda j: j.accused))
          for what, some in (("found", bad), ("false alarms", good))),
        ("inconclusive, clean", share(good, lambda j: j.inconclusive)),
        ("inconclusive, trojaned", share(bad, lambda j: j.inconclusive)),
        ("target first, all-to-one and source-specific", share([*one, *specific], _target_first)),
        ("source first, source-specific", share(specific, lambda j: j.source == j.row["truth"]["source"])),
        ("all-to-all recognised", share(permuted, lambda j: j.accused and j.kind == "all2all")),
        *((f"passes, {classes} classes, largest: screen / with all that follows", " / ".join(
            f"{max((row['passes'] + more * _after(row) for row in rows), default=0):,.0f}" for more in (0, 1)))
          for classes, rows in ((10, ten), (43, many)))]


def _followed(j: Judged, *, but: str = "") -> bool:
    return all(_has(j.row, name) for name in FOLLOWING if name != but)


def _after(row: Row) -> float:
    """Passes of the searches that follow the screen."""
    return sum(r.passes or 0.0 for r in row["results"] if r.name in FOLLOWING)


def _has(row: Row, name: str) -> bool:
    return any(r.name == name for r in row["results"])


def _thumb(rows: Sequence[Row]) -> str:
    """On how many a signal's own score, as a full scan takes it, reaches 1."""
    accused = sum(any((r.score or 0.0) >= 1 and r.name not in FOLLOWING for r in row["results"]) for row in rows)
    return f"{accused} of {len(rows)}"


def _target_first(j: Judged) -> bool:
    return bool(j.target == j.row["truth"]["target"])


def _attack(row: Row) -> str:
    mode = row["truth"]["mode"]
    return f"{row['truth']['trigger']}" + ("" if mode == "all2one" else f", {mode}")


def _architecture(row: Row) -> str:
    return str(row["truth"]["architecture"]).partition(":")[2]


def _data(row: Row) -> str:
    return str(row["truth"]["data"])


def _alone(groups: dict[str, list[Row]]) -> list[str]:
    """Rows of each signal, and of the published detectors on those of the same networks on which they were run."""
    lines, names = [], {row["model"] for rows in counted(groups) for row in rows}
    for suffix in ("", ".published"):
        calibration, *tested = ([row for row in groups[group + suffix] if row["model"] in names]
                                for group in ("calibration", "clean", "trojaned"))
        kinds = {row["shape"][0] for rows in tested for row in rows} if calibration and all(tested) else set()
        # Published detectors were run on colour images alone, and are not in the tables of the calibration.
        nulls = {channels: nulls_of(calibration) if suffix else table_for(calibration, channels)["nulls"]
                 for channels in kinds}
        for name in sorted({name for known in nulls.values() for name in known}):
            clean, trojaned = ([row for row in rows if name in nulls[row["shape"][0]]
                                and (name not in FOLLOWING or _has(row, name))] for rows in tested)
            good, ill = ([_share(row, name, nulls[row["shape"][0]][name]) for row in rows]
                         for rows in (clean, trojaned))
            votes = " (votes)" if name in VOTING else ""
            if name in FOLLOWING:
                votes = f" (follows; on {len(clean)} clean and {len(trojaned)} trojaned ones)"
            lines.append(f"| {name}{votes} | {auroc([-p for p in good], [-p for p in ill]):.3f} | {_part(ill)} | "
                         f"{_part(good)} |")
    return lines


def _share(row: Row, name: str, null: Sequence[float]) -> float:
    """Of clean networks that show as much; all of them where the signal does not apply: nothing stands out."""
    found = [r.statistic for r in row["results"] if r.name == name and r.statistic is not None]
    return p_value(found[0], null) if found else 1.0


def _part(shares: Sequence[float]) -> str:
    return f"{sum(share <= LEVEL for share in shares) / max(1, len(shares)):.1%}"


def _wrong(good: Sequence[Judged], bad: Sequence[Judged]) -> list[str]:
    lines = [f"- false alarm: {j.row['model']}, score {j.score:.2f}, class {j.target}" for j in good if j.accused]
    return lines + [f"- missed: {j.row['model']}, ASR {j.row['truth']['asr']:.0f}, score {j.score:.2f}"
                    for j in bad if not j.accused]


def _zoo(zoo: Sequence[Judged]) -> list[str]:
    lines = ["| model | truth | score | kind | target | source |", "| --- | --- | --- | --- | --- | --- |"]
    for j in sorted(zoo, key=lambda j: -j.score):
        truth = j.row["truth"]
        what = f"{truth['trigger']} {truth['mode']} {truth['target']}" if truth["trigger"] else "clean"
        lines.append(f"| {j.row['model']} | {what} | {j.score:.2f} | {j.kind} | {j.target} | {j.source} |")
    return lines


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--results", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--image", type=click.Path(path_type=Path), help="Where to draw the two score distributions.")
def main(results: Path, output: Path, image: Path | None) -> None:
    """See the module."""
    groups = groups_of(results)
    if not all(groups[name] for name in ("calibration", "clean", "trojaned")):
        raise UsageError(f"{results} lacks rows of the calibration, of clean or of trojaned models",
                         "Run deepsanitizer.bench.detection first.")
    told = report(groups)
    write(told, output)
    click.echo(told)
    if image is not None:
        calibration, clean, bad = counted(groups)
        write(picture(*([j.score for j in judged(rows, calibration)] for rows in (clean, bad))), image)


if __name__ == "__main__":
    main()
