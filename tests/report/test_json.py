import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deepsanitizer.errors import CannotJudgeError, WorkError
from deepsanitizer.report import from_json, json_schema, to_json
from deepsanitizer.types import SanitizeReport, ScanReport

from .factory import HOSTILE, backdoored, kinds, sanitized, scan

KINDS = kinds()
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", KINDS)
def test_round_trip_keeps_everything_and_fits_the_schema(name: str) -> None:
    report = KINDS[name]
    text = to_json(report)
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(text))
    again = from_json(text)
    assert type(again) is type(report)
    assert again == report
    assert to_json(again) == text


def test_the_fields_that_the_interface_promises() -> None:
    raw = json.loads(to_json(sanitized(backdoored())))
    assert {
        "schema",
        "verdict",
        "calibrated",
        "score",
        "threshold",
        "suspects",
        "signals",
        "inspection_layer",
        "versions",
        "config",
        "seed",
        "device",
        "seconds",
        "input_sha256",
        "method",
        "outcome",
        "accepted",
        "agreement",
        "output_sha256",
    } <= raw.keys()
    assert {"kind", "source", "target", "family", "score"} <= raw["suspects"][0].keys()
    assert "outcome" not in json.loads(to_json(scan()))


def test_nan_and_infinity_become_null_where_null_is_allowed() -> None:
    report = sanitized(backdoored(config={"gamma": math.inf, "list": [1.0, math.nan]}))
    first = replace(report.signals[0], z=math.nan, per_target=[1.0, -math.inf], matrix=[[math.nan, 1.0]])
    report = replace(report, signals=[first], loss_step0=math.nan)
    again = from_json(to_json(report))
    assert isinstance(again, SanitizeReport)
    assert again.loss_step0 is None
    assert again.config == {"gamma": None, "list": [1.0, None]}
    assert (again.signals[0].z, again.signals[0].per_target, again.signals[0].matrix) == (
        None,
        [1.0, None],
        [[None, 1.0]],
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_by_name_elsewhere(value: float) -> None:
    with pytest.raises(WorkError, match="score"):
        to_json(scan(score=value))
    with pytest.raises(WorkError, match="seconds"):
        to_json(scan(seconds={"total": value}))


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("schema", value="deepsanitizer-report/2"), "schema"),
        (_set("schema", value=None), "schema"),
        (_set("verdict", value="fine"), "verdict"),
        (_set("score", value="7"), "score"),
        (_set("score", value=None), "score"),
        (_set("seed", value=1.5), "seed"),
        (_set("extra", value=1), "extra"),
        (_set("suspects", 0, "extra", value=1), r"suspects\[\].extra"),
        (_set("outcome", value="accepted"), "method"),
        (lambda raw: raw.pop("limits"), "limits"),
        (lambda raw: raw["model"].pop("path"), "path"),
        (_set("calibrated", value=1), "calibrated"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_schema_agrees(
    change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    raw = json.loads(to_json(backdoored()))
    change(raw)
    with pytest.raises(CannotJudgeError, match=words):
        from_json(json.dumps(raw))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"x"',
        "{}",
        b"\xff\xfe\x00",
        b"\x80abc",
        "[" * 100_000,
        '{"schema": "deepsanitizer-report/1"}',
    ],
)
def test_what_is_no_report_is_refused(text: str | bytes) -> None:
    with pytest.raises(CannotJudgeError):
        from_json(text)


def test_hostile_strings_and_undecodable_file_names_survive() -> None:
    report = scan(classes=len(HOSTILE), names=list(HOSTILE))
    again = from_json(to_json(report))
    assert again.model.class_names == HOSTILE
    broken = replace(report, model=replace(report.model, path="dir/\udcff.pt"))
    assert from_json(to_json(broken)).model.path == "dir/\\udcff.pt"


def test_the_published_schema_is_current() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "deepsanitizer.report"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    published = (ROOT / "docs" / "report-schema.json").read_text(encoding="utf-8")
    assert published == made, "run: python -m deepsanitizer.report > docs/report-schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(made))


def test_the_schema_field_default_is_the_one_read() -> None:
    assert json_schema()["$defs"]["ScanReport"]["properties"]["schema"] == {
        "const": ScanReport.__dataclass_fields__["schema"].default
    }
