"""Many models judged from their stored rows, as the tool would judge them, and how often that is right.

A trojaned model counts where the backdoor was planted: with an ASR of at least `PLANTED` percent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from deepsanitizer.bench.calibrate import table_for, taken
from deepsanitizer.bench.calibrate import tables as tables_of
from deepsanitizer.calibration import FOLLOWING, PERMUTATIONS, REACHED, accusations, read
from deepsanitizer.types import Evidence
from deepsanitizer.verdict import SUSPICIOUS_FROM, meant, names_source

PLANTED = {"all2one": 60.0, "specific": 60.0, "all2all": 35.0}  # percent
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

    A score is that of the screen or of a search that follows it, whichever is greatest; they are made only where the
    screen does not accuse, that for permutations where it does not accuse one goal, and end with the first that
    accuses. Goals are ranked by the screen, as in the tool, unless what follows accuses or is suspicious.
    """
    kept = [_without(row, without) for row in calibration]
    kinds = {row["shape"][0] for row in rows}
    known = {channels: read(table_for(kept, channels)) for channels in kinds}
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
        asked: tuple[str, ...] = PERMUTATIONS if by_screen else FOLLOWING
        if row["shape"][0] not in table.channels or (by_screen and goal is not None):
            asked = ()  # where too few are of its kind nothing may accuse alone; one goal accused is settled
        followed = sorted((r for r in placed if r.name in asked and r.score is not None),
                          key=lambda r: FOLLOWING.index(r.name))
        after = next((r for r in followed if (r.score or 0.0) >= 1),
                     max(followed, key=lambda r: r.score or 0.0, default=None))
        sources = [r for r in followed if r.kind == "specific" and r.source is not None]
        if sources:  # what the report shows of sources, whether it accuses or not
            source = max(sources, key=lambda r: r.score or 0.0).source
        if after is not None and row["reached"] >= REACHED and (after.score or 0.0) > score:
            score = after.score or 0.0
            if score >= SUSPICIOUS_FROM:  # below it the tool ranks goals by the screen
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
    def covered(row: Row) -> bool:
        known = tables.get(str(row["shape"][0]))
        return known is not None and read(known).covers(row["classes"], row["shape"])

    tables = tables_of(groups["calibration"])
    return (taken(groups["calibration"]), [row for row in groups["clean"] if covered(row)],
            [row for row in groups["trojaned"] if planted(row)])
