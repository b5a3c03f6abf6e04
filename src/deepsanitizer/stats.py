"""Robust statistics of per-class evidence. Plain floats in, plain floats out."""

import statistics
from collections.abc import Sequence


def robust_z(values: Sequence[float], *, least_spread: float = 1.0) -> float:
    """How far the largest value is above the median, in median absolute deviations (at least `least_spread`)."""
    middle = statistics.median(values)
    spread = statistics.median(abs(value - middle) for value in values)
    return (max(values) - middle) / max(spread, least_spread)


def top_two(values: Sequence[float]) -> tuple[int, float, float]:
    """Index and value of the largest, and the second largest value (minus infinity for a single one)."""
    order = sorted(range(len(values)), key=lambda index: values[index], reverse=True)
    second = values[order[1]] if len(order) > 1 else float("-inf")
    return order[0], values[order[0]], second


def lead_over(margin: float, runner_up: float) -> float:
    """How far a margin leads: over the runner-up, or over zero where even the runner-up fails."""
    return min(margin, margin - max(runner_up, 0.0))


def separation(margin: float, runner_up: float, unit: float) -> float:
    """What is compared with clean networks: how many times the runner-up's reach, and a unit, a margin leads it by.

    At most zero where the margin itself is below zero: no success stands behind it. Divided by the unit alone, natural
    patterns of networks with small plain margins drown every trigger (docs/research/log.md, 35).
    """
    return (margin - runner_up) / (max(runner_up, 0.0) + unit) if margin > 0 else min(0.0, margin / unit)
