"""Where a statistic stands among clean networks: null distributions, p-values, and what they cover.

`calibration.json` holds, for each signal of the screen, its statistic on every clean calibration network, sorted, and
the combined statistic of each network against the others: once for networks of colour images, once for those of one
channel, which are spectrograms of speech. It is written by `deepsanitizer.bench.calibrate`; no trojaned network went
into it, so that the threshold keeps its rate on clean networks. Which signals vote, what their leads are measured by,
and `FREE`, `MOST` and `ALONE` were chosen with trojaned networks of our own as well (the group `develop`;
docs/research/log.md, 36 and 49).
"""

import functools
import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from deepsanitizer.types import SignalResult

LEVEL = 0.02  # the false-alarm rate at which the verdict accuses
FREE = 0.5  # of -log10 of a p-value: what a third of the clean networks show is no evidence
MOST = 3.0  # that one family may say: p-values far below one in the number of clean networks are extrapolated
ALONE = 2.1  # weight of own goals: no other signal can speak of a permutation, while eight can speak of a class
ROUTES = "screen routes"
STAMPS, WARPS, TINTS = "screen stamps", "screen random warps", "screen tints"  # probes: searched by nobody
STAMPED_PAIRS = "screen stamped pairs"  # the same stamps, by source and goal
PERMUTATIONS = ("screen permutation", "screen natural permutation")  # on dummies and on natural images
WARP, FILTER, GRATING = "screen natural warp", "screen natural filter", "screen natural grating"
# They follow a screen, in this order, and accuse alone: what says most of a trigger first, then what costs least. Each
# pair of a permutation is one that a stamp may meet, so that permutations are asked before pairs.
FOLLOWING = (PERMUTATIONS[0], STAMPED_PAIRS, STAMPS, WARPS, TINTS, ROUTES, GRATING, WARP, FILTER, PERMUTATIONS[1])
FOLLOWING_LEVEL = 0.002  # the rate at which each of them does: the rates of all add up
REACHED = 0.95  # share of the classes that the dummies reached on each calibration network
VOTING = ("screen blend", "screen blend faint", "screen filter", "screen filter strong", "screen warp",
          "screen grating", "screen place", "screen own goals", "screen maximum margin", "screen head weights")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sorted null statistics by signal, those of the combination, and what kinds of network they come from."""

    models: int
    nulls: Mapping[str, tuple[float, ...]]
    combined: tuple[float, ...]
    classes: tuple[int, int]  # least and most
    side: tuple[int, int]  # of an image, in pixels
    channels: tuple[int, ...]
    provenance: Mapping[str, Any]
    rated: bool = True  # whether a false-alarm rate may be stated: not from few networks of a kind

    def covers(self, classes: int, shape: Sequence[int]) -> bool:
        """Whether networks with such an input, (C, H, W), were among the calibration networks."""
        return (self.classes[0] <= classes <= self.classes[1] and shape[0] in self.channels
                and all(self.side[0] <= side <= self.side[1] for side in shape[1:]))

    def threshold(self, level: float = LEVEL) -> float:
        """The combined statistic that so many clean networks exceed."""
        return quantile(self.combined, level)

    def placed(self, results: Sequence[SignalResult]) -> list[SignalResult]:
        """The results of a screen with their places among clean networks and, where they vote, shares of the score.

        Of two searches of one family that name the same goal only the stronger has a share. A search that follows the
        screen has a score of its own: 1 where `FOLLOWING_LEVEL` of clean networks show as much.
        """
        spoken = said(results, self.nulls)
        placed = []
        for result in results:
            null = self.nulls.get(result.name)
            if null is None or not result.applicable or result.statistic is None:
                placed.append(replace(result, score=None, threshold=None))
                continue
            votes, p = result.name in VOTING, p_value(result.statistic, null)
            clean = [null[len(null) // 2], quantile(null, 0.1), quantile(null, 0.02)]
            if result.name in FOLLOWING:
                score: float | None = math.log(p) / math.log(FOLLOWING_LEVEL)
            else:
                score = spoken.get(result.name, 0.0) / self.threshold() if votes else None
            threshold = result.threshold if result.name in FOLLOWING else None
            placed.append(replace(result, threshold=threshold, p_value=p, clean=clean, score=score))
        return placed


def strength(p: float, *, alone: bool = False) -> float:
    """How strongly one signal speaks against a network: -log10 of its p-value, less what any network shows."""
    told = max(0.0, -math.log10(p) - FREE)
    return ALONE * told if alone else min(MOST, told)


def said(results: Sequence[SignalResult], nulls: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What each voting signal says, by name; of one family's searches for the same goal the stronger alone."""
    strongest: dict[tuple[int | None, str], tuple[float, str]] = {}
    for result in results:
        null = nulls.get(result.name)
        if result.name in VOTING and result.applicable and result.statistic is not None and null is not None:
            told = strength(p_value(result.statistic, null), alone=result.target is None)
            key = (result.target, result.family or result.name)
            strongest[key] = max(strongest.get(key, (-1.0, "")), (told, result.name))
    return {name: told for told, name in strongest.values()}


def accusations(results: Sequence[SignalResult], nulls: Mapping[str, Sequence[float]]) -> dict[int | None, float]:
    """What the voting signals say together about each goal that any of them names; None: a goal for each class.

    One trigger moves its target a little under every family, natural patterns move one class here and another there:
    signals that name the same goal add up. That they are not independent, and that the largest of several goals counts,
    is accounted for by the combination's own null distribution.
    """
    return by_goal(results, said(results, nulls))


def by_goal(results: Sequence[SignalResult], told: Mapping[str, float]) -> dict[int | None, float]:
    """What is `told` of signals, by name, added up by the goal that each names (None: a goal for each class)."""
    goals: dict[int | None, float] = {}
    for result in results:
        if result.name in told:
            goals[result.target] = goals.get(result.target, 0.0) + told[result.name]
    return goals


def scores_of(results: Sequence[SignalResult]) -> dict[str, float]:
    """The shares of the score that the voting signals of a placed screen have, by name."""
    return {r.name: r.score for r in results if r.stage == "screen" and r.name in VOTING and r.score is not None}


def combined(results: Sequence[SignalResult], nulls: Mapping[str, Sequence[float]]) -> float:
    """The statistic of the verdict: what is said about the goal that most is said about, 0 where none applies."""
    return max(accusations(results, nulls).values(), default=0.0)


@functools.cache
def shipped(channels: int) -> Calibration:
    """The calibration that comes with the package, of networks whose inputs have so many channels; where there are
    none, one that does not cover them but says which channels are covered.
    """
    tables = json.loads(resources.files("deepsanitizer").joinpath("calibration.json").read_text())
    known = tuple(sorted(map(int, tables)))
    return read(tables[str(channels)]) if channels in known else replace(read(tables[str(known[-1])]), channels=known)


def read(table: Mapping[str, Any]) -> Calibration:
    """From the JSON object that `bench.calibrate` writes."""
    return Calibration(table["models"], {name: tuple(values) for name, values in table["nulls"].items()},
                       tuple(table["combined"]), tuple(table["classes"]), tuple(table["side"]),
                       tuple(table["channels"]), table["provenance"], table["rated"])


def p_value(statistic: float, null: Sequence[float], *, tail: float = 0.1) -> float:
    """Share of clean networks with a statistic as high; `null` is sorted.

    The upper `tail` of the null is taken for exponential, so that p-values go on falling beyond the largest value seen
    (the peaks-over-threshold method with shape 0; Pickands, Annals of Statistics 1975). Below it the share is counted.
    """
    count = len(null)
    start, spread, share = _tail(null, tail)
    if statistic > start and spread > 0:
        return max(share * math.exp(-(statistic - start) / spread), 1e-12)
    above = count - bisect_left(null, statistic)
    return (1 + above) / (count + 1)


def quantile(null: Sequence[float], level: float, *, tail: float = 0.1) -> float:
    """The statistic whose `p_value` is `level`, of at most `tail`."""
    start, spread, share = _tail(null, tail)
    return start + spread * math.log(share / level) if share > level else start


def _tail(null: Sequence[float], tail: float) -> tuple[float, float, float]:
    """Where the tail begins, its mean excess, and the share of the null in it."""
    count = len(null)
    most = max(2, round(tail * count))
    start = null[-most - 1] if count > most else null[0]
    excess = [value - start for value in null if value > start]
    return start, sum(excess) / max(1, len(excess)), len(excess) / count
