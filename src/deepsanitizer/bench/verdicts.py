"""The verdict on many models: how often it is right, by kind of model, and each signal alone. Prints and draws.

    python -m deepsanitizer.bench.verdicts --results benchmarks/results/detection \
        --output benchmarks/results/detection.md

Reads the rows of `bench.detection` in the folders `calibration`, `clean` and `trojaned` (and `zoo`, where there is
one). The threshold comes from the calibration alone. A trojaned model counts where the backdoor was planted: with an
ASR of at least `PLANTED` percent. `inconclusive` counts as a miss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click

from deepsanitizer.bench.calibrate import calibrated, compared_with, nulls_of, taken
from deepsanitizer.bench.detection import What, load_rows
from deepsanitizer.bench.distributions import picture
from deepsanitizer.calibration import COLOUR, FOLLOWING, LEVEL, REACHED, VOTING, accusations, quantile, read
from deepsanitizer.errors import UsageError
from deepsanitizer.report import write
from deepsanitizer.types import Evidence
from deepsanitizer.verdict import meant, names_source

PLANTED = {"all2one": 60.0, "specific": 60.0, "all2all": 35.0}  # percent
# The signals that search the family of an attack.
OF_ATTACK = {"patch": ("screen place", "screen own goals"), "blend": ("screen blend",),
             "tint": ("screen filter",), "warp": ("screen warp",), "grating": ("screen grating",)}
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """One model with its score; 1 and more accuses."""

    row: Row
    score: float
    target: int | None
    source: int | None
    kind: str
    by_screen: bool  # accused by the screen alone

    @property
    def accused(self) -> bool:
        """Whether the verdict is `backdoored`."""
        return self.score >= 1

    @property
    def inconclusive(self) -> bool:
        """Whether the dummies do not represent the model and nothing accuses."""
        return not self.accused and bool(self.row["reached"] < REACHED)


def judged(rows: Sequence[Row], calibration: Sequence[Row], *, without: tuple[str, ...] = ()) -> list[Judged]:
    """Scores of rows against clean ones, with some signals (by the beginning of their names) switched off.

    A score is that of the screen or of a search that follows it, whichever is greatest; routes are searched only where
    the screen does not accuse, permutations where it does not accuse one goal. Goals are ranked by the screen, as in
    the tool, unless what follows accuses.
    """
    kept = [_without(row, without) for row in calibration]
    kinds = {row["shape"][0] for row in rows}
    known = {channels: read(calibrated(compared_with(kept, channels))) for channels in kinds}
    out = []
    for row in rows:
        table = known[row["shape"][0]]
        threshold = table.threshold()
        results = _without(row, without)["results"]
        told = accusations(results, table.nulls)
        goal = max(told, key=lambda goal: told[goal], default=None)
        placed = sorted(table.placed(results), key=lambda r: -(r.score or 0.0))
        pair = next((r for r in placed if r.kind == "specific" and r.name not in FOLLOWING), None)
        if (pair is not None and pair.target == goal and meant(Evidence(pair)).result.kind == "specific"
                and names_source(pair, [r for r in placed if r.name not in FOLLOWING])):
            kind: str = "specific"
        else:
            kind = next((r.kind for r in placed if r.target == goal and r.score is not None), "")
        source, score = None if pair is None else pair.source, told.get(goal, 0.0) / threshold
        by_screen = score >= 1
        asked: tuple[str, ...] = FOLLOWING[1:] if by_screen else FOLLOWING  # routes where the screen does not accuse
        if row["shape"][0] != COLOUR or (by_screen and goal is not None):
            asked = ()  # no rate is stated there, and nothing may accuse alone; one goal accused is settled
        after = next((r for r in placed if r.name in asked and r.score is not None), None)
        routes = next((r for r in placed if r.name == FOLLOWING[0] and r.source is not None), None)
        if routes is not None and not by_screen:
            source = routes.source  # what the report shows of sources, whether it accuses or not
        if after is not None and row["reached"] >= REACHED and (after.score or 0.0) > score:
            score = after.score or 0.0
            if score >= 1:  # below it the tool ranks goals by the screen
                goal, source, kind = after.target, after.source, after.kind
        out.append(Judged(row, score, goal, source, kind, by_screen))
    return out


def _without(row: Row, names: tuple[str, ...]) -> Row:
    return row | {"results": [r for r in row["results"] if not r.name.startswith(names)]} if names else row


def planted(row: Row) -> bool:
    """Whether the training put the backdoor in."""
    asr = row["truth"]["asr"]
    return asr is not None and asr >= PLANTED[row["truth"]["mode"]]


def auroc(clean: Sequence[float], trojaned: Sequence[float]) -> float:
    """Share of pairs in which the trojaned one scores higher; ties count half."""
    if not clean or not trojaned:
        return math.nan
    won = sum((bad > good) + 0.5 * (bad == good) for bad in trojaned for good in clean)
    return won / (len(clean) * len(trojaned))


def interval(hits: int, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, extra = hits / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(of: Sequence[Judged], holds: Callable[[Judged], bool]) -> str:
    """A share in percent with its interval and its counts; a dash where there is nothing."""
    if not of:
        return "–"
    hits = sum(map(holds, of))
    low, high = interval(hits, len(of))
    return f"{hits / len(of):.1%} ({hits}/{len(of)}, {low:.0%} to {high:.0%})"


def counted(groups: dict[str, list[Row]]) -> tuple[list[Row], list[Row], list[Row]]:
    """The networks that the calibration takes, the clean ones that it covers, and the trojaned ones with the backdoor
    in place. Those of them that it does not cover are refused by the tool, and count as they score.
    """
    covers = read(calibrated(groups["calibration"])).covers
    return (taken(groups["calibration"]), [row for row in groups["clean"] if covers(row["classes"], row["shape"])],
            [row for row in groups["trojaned"] if planted(row)])


def report(groups: dict[str, list[Row]]) -> str:
    """All tables as Markdown."""
    calibration, clean, bad = counted(groups)
    good_scores, bad_scores = judged(clean, calibration), judged(bad, calibration)
    told = ["# Detection", "", f"{len(calibration)} clean networks to calibrate on, {len(clean)} clean and {len(bad)} "
            f"trojaned ones to test on; {len(groups['trojaned']) - len(bad)} more in which the backdoor did not take "
            f"(see `PLANTED`) and {len(groups['clean']) - len(clean)} clean ones that the calibration does not cover "
            f"are left out. Threshold: {LEVEL:.0%} of the calibration; networks of colour images are compared with "
            f"the {len(compared_with(calibration, COLOUR))} of their like, others (spectrograms of speech) with all.",
            "",
            "| | all |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in _main(good_scores, bad_scores)),
            "", "The rule of thumb of the full scan (a lead of about one plain margin) on the same short searches: "
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
        ("false alarms by what follows the screen alone",
         share([j for j in unaccused_good if _followed(j)], lambda j: j.accused)),
        ("AUROC, of those searched to the end",
         f"{auroc([j.score for j in ended_good], [j.score for j in ended_bad]):.3f} ({len(ended_good)} clean, "
         f"{len(ended_bad)} trojaned)"),
        ("inconclusive, clean", share(good, lambda j: j.inconclusive)),
        ("inconclusive, trojaned", share(bad, lambda j: j.inconclusive)),
        ("target first, all-to-one and source-specific", share([*one, *specific], _target_first)),
        ("source first, source-specific", share(specific, lambda j: j.source == j.row["truth"]["source"])),
        ("all-to-all recognised", share(permuted, lambda j: j.accused and j.kind == "all2all")),
        *((f"passes, {classes} classes, largest: screen / with all that follows", " / ".join(
            f"{max((row['passes'] + more * _after(row) for row in rows), default=0):,.0f}" for more in (0, 1)))
          for classes, rows in ((10, ten), (43, many)))]


def _followed(j: Judged) -> bool:
    return _has(j.row, FOLLOWING[0])


def _after(row: Row) -> float:
    """Passes of the searches that follow the screen."""
    return sum(r.passes or 0.0 for r in row["results"] if r.name in FOLLOWING)


def _has(row: Row, name: str) -> bool:
    return any(r.name == name for r in row["results"])


def _thumb(rows: Sequence[Row]) -> str:
    """On how many a signal's own score, as a full scan takes it, reaches 1."""
    accused = sum(any((r.score or 0.0) >= 1 for r in row["results"]) for row in rows)
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
        nulls = nulls_of(calibration) if calibration and all(tested) else {}
        for name, null in nulls.items():
            clean, trojaned = ([row for row in rows if name not in FOLLOWING or _has(row, name)] for rows in tested)
            good, ill = (_values(rows, name) for rows in (clean, trojaned))
            limit = quantile(null, LEVEL)
            votes = " (votes)" if name in VOTING else ""
            if name in FOLLOWING:
                votes = f" (follows; on {len(clean)} clean and {len(trojaned)} trojaned ones)"
            lines.append(f"| {name}{votes} | {auroc(good, ill):.3f} | {_part(ill, limit)} | {_part(good, limit)} |")
    return lines


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """A model to which the signal does not apply has nothing that stands out."""
    found = [[r.statistic for r in row["results"] if r.name == name and r.statistic is not None] for row in rows]
    return [values[0] if values else -math.inf for values in found]


def _part(values: Sequence[float], limit: float) -> str:
    return f"{sum(value > limit for value in values) / max(1, len(values)):.1%}"


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
    kinds: dict[str, What] = {"": "screen", ".published": "published"}
    groups = {name + suffix: load_rows(results / name, what) for name in ("calibration", "clean", "trojaned", "zoo")
              for suffix, what in kinds.items()}
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
