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


def leading_by(values: Sequence[float | None], plain: float) -> float:
    """By how much the largest of several margins leads the next, over the `plain` margin and 1: what is compared with
    clean networks.

    Success is not asked for: a warp that carries its target to a margin of -3, and no other class beyond -12, tells a
    backdoor, too. The spread of the others is no unit: where they make use of a trigger's channels, too, it grows with
    the lead. By the plain margin alone, natural leads of hesitant networks count for too much (docs/research/log.md,
    49).
    """
    known = sorted((value for value in values if value is not None), reverse=True)
    return (known[0] - known[1]) / (plain + 1.0) if len(known) > 1 else 0.0


def ahead_of_all(values: Sequence[float | None], plain: float) -> float:
    """By how much the largest of several margins leads the next, over the `plain` margin, 1, and how far the next is
    above the median: where one class after another is reached, as by colours where classes are colours, a lead is no
    surprise (docs/research/log.md, 54).
    """
    known = sorted((value for value in values if value is not None), reverse=True)
    if len(known) < 2:
        return 0.0
    return (known[0] - known[1]) / (plain + 1.0 + known[1] - statistics.median(known))


def standing_out(values: Sequence[float], least: float) -> float:
    """By how many spreads of the others, and `least` more, the largest of several values leads the next: for values
    that have no unit.
    """
    known = sorted(values, reverse=True)
    return (known[0] - known[1]) / (statistics.pstdev(known[1:]) + least) if len(known) > 1 else 0.0


def separation(margin: float, runner_up: float, unit: float, *, slack: float = 0.3) -> float:
    """The same for one rival: by how many units, widened by a share of the rival's own reach, a margin leads it."""
    return (margin - runner_up) / (unit + slack * abs(runner_up))
