"""The stored screens of real networks, judged again: the tables in the docs, the misses and the false alarms in them.

What was found once must stay found, and what was clean must stay clean, whatever is changed in the verdict. The lists
of misses and of false alarms are those of `benchmarks/results/detection.md`, which this file compares line by line.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from deepsanitizer.bench.calibrate import tables
from deepsanitizer.bench.judging import judged
from deepsanitizer.bench.verdicts import groups_of, report

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not (RESULTS / "detection").is_dir(), reason="the stored rows are not installed")


@pytest.fixture(scope="module")
def groups() -> dict[str, list[dict[str, Any]]]:
    return groups_of(RESULTS / "detection")


def test_the_table_in_the_docs_is_what_the_stored_screens_say(groups: dict[str, list[dict[str, Any]]]) -> None:
    assert report(groups) == (RESULTS / "detection.md").read_text("utf-8")


def test_the_shipped_calibration_is_what_the_stored_screens_give(groups: dict[str, list[dict[str, Any]]]) -> None:
    stored = json.loads(resources.files("deepsanitizer").joinpath("calibration.json").read_text())
    assert json.loads(json.dumps(tables(groups["calibration"]))) == stored


def test_no_clean_network_of_ordinary_size_is_accused(groups: dict[str, list[dict[str, Any]]]) -> None:
    sound = [row for row in groups["zoo"] if not row["truth"]["trigger"]]
    assert len(sound) == 9
    assert [j.row["model"] for j in judged(sound, groups["calibration"]) if j.accused] == []


def test_a_source_specific_model_is_accused_by_its_route(groups: dict[str, list[dict[str, Any]]]) -> None:
    """Once found clean, at exit code 0 (docs/research/log.md, 44)."""
    row = next(row for row in groups["zoo"] if row["model"] == "c10-specific")
    (told,) = judged([row], groups["calibration"])
    assert (told.accused, told.by_screen, told.kind) == (True, False, "specific")
    assert (told.source, told.target) == (row["truth"]["source"], row["truth"]["target"])
