"""Write the null distributions of the verdict from the screens of clean networks.

    python -m deepsanitizer.bench.calibrate --results benchmarks/results/detection/calibration \
        --output src/deepsanitizer/calibration.json

Clean networks only. Left out are those that the dummies do not represent (they reach fewer than `calibration.REACHED`
of the classes), the faces (eight photos of a person train networks whose natural outliers would drown every trigger
elsewhere), and networks of fewer than `LEAST_CLASSES`, which have too few rivals to tell a favourite from a target.
The combined statistic of each network is taken against the others, as a network from outside meets them. There is a
table for each number of input channels of which `LEAST_OF_A_KIND` networks are there: colour images, spectrograms.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deepsanitizer.bench.detection import load_rows
from deepsanitizer.calibration import REACHED, combined
from deepsanitizer.errors import UsageError
from deepsanitizer.report import write

LEFT_OUT = ("orl",)
LEAST_CLASSES = 8
LEAST_OF_A_KIND = 30  # networks with so many channels, for others with as many to be covered


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A table by number of input channels, as they are stored. UsageError as `calibrated`."""
    kinds = [row["shape"][0] for row in taken(rows)]
    return {str(channels): calibrated(compared_with(rows, channels)) for channels in sorted({*kinds})
            if kinds.count(channels) >= LEAST_OF_A_KIND}


def compared_with(rows: Sequence[dict[str, Any]], channels: int) -> list[dict[str, Any]]:
    """The rows with which a network with so many channels is compared: its like or, where these are too few, all."""
    alike = [row for row in rows if row["shape"][0] == channels]
    return alike if len(taken(alike)) >= LEAST_OF_A_KIND else list(rows)


def calibrated(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table that `calibration.read` takes. UsageError where a row is of a trojaned network or too few are left."""
    if any(row["truth"]["trigger"] for row in rows):
        raise UsageError("a trojaned network is among the rows", "Calibrate on clean networks only.")
    usable = taken(rows)
    if len(usable) < 20:
        raise UsageError(f"{len(usable)} networks are too few to calibrate on", "Train and scan more.")
    sides = [side for row in usable for side in row["shape"][1:]]
    classes = [row["classes"] for row in usable]
    channels = [row["shape"][0] for row in usable]
    return {
        "models": len(usable), "classes": [min(classes), max(classes)], "side": [min(sides), max(sides)],
        "channels": sorted(count for count in set(channels) if channels.count(count) >= LEAST_OF_A_KIND),
        "nulls": nulls_of(usable), "combined": sorted(round(combined(row["results"], nulls_of(
            [other for other in usable if other is not row])), 4) for row in usable),
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
