"""What the signals that recover no trigger share: one value for each class, and how far the largest stands out.

They have no score of their own. Some vote in the calibrated verdict (`calibration.VOTING`); the others are shown beside
it, with their place among clean networks where that was measured.
"""

import math
import statistics
from collections.abc import Sequence

from deepsanitizer.stats import robust_z, top_two
from deepsanitizer.types import Evidence, SignalResult


def of_classes(name: str, values: Sequence[float], statistic: float, *, matrix: list[list[float | None]] | None = None,
               source: int | None = None, passes: float = 0.0) -> Evidence:
    """Evidence from one value for each class, and the number that is compared with clean networks."""
    if not values or not all(math.isfinite(value) for value in values):
        return not_applicable(name, "its values are not finite", passes=passes)
    target, margin, runner_up = top_two(values)
    spread = statistics.median(abs(value - statistics.median(values)) for value in values)
    return Evidence(SignalResult(
        name=name, applicable=True, per_target=list(values), source=source, target=target, margin=margin,
        runner_up=runner_up, z=robust_z(values, least_spread=max(spread, 1e-9)), statistic=statistic, matrix=matrix,
        passes=passes))


def not_applicable(name: str, reason: str, *, passes: float = 0.0) -> Evidence:
    """The signal does not apply to this network."""
    return Evidence(SignalResult(name=name, applicable=False, reason=reason, passes=passes))


def quartile_score(values: Sequence[float]) -> float:
    """(largest - third quartile) / interquartile range; 0 where fewer than four values say nothing."""
    if len(values) < 4:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return (max(values) - third) / max(third - first, 1e-12)
