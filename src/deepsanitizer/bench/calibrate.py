"""Write the null distributions of the verdict from the screens of clean networks.

    python -m deepsanitizer.bench.calibrate --results benchmarks/results/detection/calibration \
        --output src/deepsanitizer/calibration.json

Clean networks only. Left out are those that the dummies do not represent (they reach fewer than `calibration.REACHED`
of the classes), the faces (eight photos of a person train networks whose natural outliers would drown every trigger
elsewhere), and networks of fewer than `LEAST_CLASSES`, which have too few rivals to tell a favourite from a target.
The combined statistic of each network is taken against the others, as a network from outside meets them. There is a
table for each number of input channels of which `LEAST_OF_A_KIND` networks are there: colour images, spectrograms. Of a
kind with fewer than `ENOUGH` a signal's null distribution is that of all networks where these ask for more: from a few
networks that hardly show a signal no tail can be told. Nor is a rate of false alarms stated for such a kind.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deepsanitizer.bench.detection import load_rows
from deepsanitizer.calibration import FOLLOWING, FOLLOWING_LEVEL, LEVEL, REACHED, combined, quantile
from deepsanitizer.errors import UsageError
from deepsanitizer.report import write

LEFT_OUT = ("orl",)
LEAST_CLASSES = 8
LEAST_OF_A_KIND = 30  # networks with so many channels, for others with as many to be covered
ENOUGH = 80  # of a kind, to tell a tail from


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A table by number of input channels, as they are stored. UsageError as `calibrated`."""
    kinds = [row["shape"][0] for row in taken(rows)]
    return {str(channels): table_for(rows, channels) for channels in sorted({*kinds})
            if kinds.count(channels) >= LEAST_OF_A_KIND}


def table_for(rows: Sequence[dict[str, Any]], channels: int) -> dict[str, Any]:
    """The table for networks with so many channels: of their like or, where these are too few, of all."""
    alike = [row for row in rows if row["shape"][0] == channels]
    count = len(taken(alike))
    if count < LEAST_OF_A_KIND:
        return calibrated(rows)
    return calibrated(alike, others=[row for row in rows if row not in alike] if count < ENOUGH else ())


def calibrated(rows: Sequence[dict[str, Any]], *, others: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The table that `calibration.read` takes; `others` are networks of other kinds (see the module).

    UsageError where a row is of a trojaned network or too few are left.
    """
    if any(row["truth"]["trigger"] for row in (*rows, *others)):
        raise UsageError("a trojaned network is among the rows", "Calibrate on clean networks only.")
    usable, beside = taken(rows), nulls_of(taken(others))
    if len(usable) < 20:
        raise UsageError(f"{len(usable)} networks are too few to calibrate on", "Train and scan more.")
    sides = [side for row in usable for side in row["shape"][1:]]
    classes = [row["classes"] for row in usable]
    channels = [row["shape"][0] for row in usable]
    return {
        "models": len(usable), "rated": len(usable) >= ENOUGH,
        "classes": [min(classes), max(classes)], "side": [min(sides), max(sides)],
        "channels": sorted(count for count in set(channels) if channels.count(count) >= LEAST_OF_A_KIND),
        "nulls": widened(nulls_of(usable), beside), "combined": sorted(round(combined(row["results"], widened(
            nulls_of([other for other in usable if other is not row]), beside)), 4) for row in usable),
        "provenance": {"left out": sorted(row["model"] for row in rows if row not in usable),
                       "networks": _counts(usable), "labels": sorted({row["label"] for row in usable}),
                       "made by": "deepsanitizer.bench.population, .detection and .calibrate"}}


def taken(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a calibration takes; see the module for the others."""
    return [row for row in rows if row["reached"] >= REACHED and row["truth"]["data"] not in LEFT_OUT
            and row["classes"] >= LEAST_CLASSES]


def nulls_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Sorted statistics by signal; those that follow a screen may be known of a part of the networks."""
    nulls: dict[str, list[float]] = {}
    for row in rows:
        for result in row["results"]:
            if result.applicable and result.statistic is not None:
                nulls.setdefault(result.name, []).append(result.statistic)
    return {name: sorted(values) for name, values in sorted(nulls.items()) if len(values) >= len(rows) / 2}


def widened(nulls: dict[str, list[float]], beside: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each signal's null distribution or, where it asks for more at the level that counts, that with others beside."""
    wide = {}
    for name, null in nulls.items():
        level = FOLLOWING_LEVEL if name in FOLLOWING else LEVEL
        wide[name] = max(null, sorted(null + beside.get(name, [])), key=lambda values: quantile(values, level))
    return wide


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    kinds = [f"{row['truth']['architecture'].partition(':')[2]} on {row['truth']['data']}" for row in rows]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--results", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(results: Path, output: Path) -> None:
    """See the module."""
    written = tables(load_rows(results))
    write(json.dumps(written, indent=1) + "\n", output)
    for name, table in written.items():
        click.echo(f"{output}: {name} channels, {table['models']} clean networks, {len(table['nulls'])} signals")


if __name__ == "__main__":
    main()
