"""scan and sanitize: what goes where, and what the exit code says. The pipeline is put in, or really run."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import Run
from helpers.models import contents
from report import factory
from safetensors.torch import load_file

from deepsanitizer import pipeline
from deepsanitizer.report import from_json
from deepsanitizer.triggers import load_trigger
from deepsanitizer.types import Outcome, SanitizeReport, Trigger, VerdictName

FAST = ["--effort", "fast", "--device", "cpu"]
Pretend = Callable[..., dict[str, Any]]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Put in what the pipeline answers; returns what it was asked."""
    def put_in(verdict: VerdictName = "clean", outcome: Outcome = "accepted",
               triggers: tuple[Trigger, ...] = ()) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        base = factory.backdoored(verdict=verdict) if verdict != "clean" else factory.scan()

        def scan_with_evidence(model: Any, **options: Any) -> Any:
            asked.update(options)
            options["progress"]("searching", 1, 2)
            return base, triggers

        def sanitize(model: Any, **options: Any) -> Any:
            asked.update(options)
            return model.network, factory.sanitized(base, outcome)

        monkeypatch.setattr(pipeline, "scan_with_evidence", scan_with_evidence)
        monkeypatch.setattr(pipeline, "sanitize", sanitize)
        return asked

    return put_in


@pytest.mark.parametrize(("verdict", "code_"), [("clean", 0), ("suspicious", 1), ("backdoored", 1),
                                                ("inconclusive", 3)])
def test_scan_exit_codes(run: Run, model: Path, code: Path, pretend: Pretend, verdict: VerdictName,
                         code_: int) -> None:
    pretend(verdict)
    answer = run("scan", model, "--import-from", code)
    assert answer.code == code_
    assert verdict in answer.out.lower()
    assert answer.err == "searching ...\n"


@pytest.mark.parametrize(("outcome", "verdict", "code_"), [
    ("accepted", "backdoored", 0), ("accepted", "inconclusive", 0), ("rolled_back", "backdoored", 1),
    ("unsupported", "backdoored", 3), ("unsupported", "inconclusive", 3), ("unchanged", "clean", 0),
    ("unchanged", "inconclusive", 3), ("unchanged", "suspicious", 1),
])
def test_sanitize_exit_codes(run: Run, model: Path, code: Path, tmp_path: Path, pretend: Pretend,
                             outcome: Outcome, verdict: VerdictName, code_: int) -> None:
    pretend(verdict, outcome)
    answer = run("sanitize", model, "--import-from", code, "--output", tmp_path / "out.pt", "--report",
                 tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert answer.code == code_
    assert json.loads((tmp_path / "r.json").read_text())["outcome"] == outcome
    assert "<html" in (tmp_path / "r.html").read_text()
    assert answer.out != ""


def test_options_reach_the_pipeline(run: Run, model: Path, code: Path, tmp_path: Path,
                                    pretend: Pretend) -> None:
    asked = pretend()
    common = ["--layer", "3", "--device", "cpu", "--seed", "7", "--timeout", "60", "--effort", "thorough"]
    run("scan", model, "--import-from", code, *common)
    del asked["progress"]
    assert asked == {"layer": "3", "device": "cpu", "seed": 7, "timeout": 60.0, "effort": "thorough", "screen": False}
    del asked["screen"]
    run("sanitize", model, "--import-from", code, *common, "--output", tmp_path / "out", "--method", "paper",
        "--target", "2", "--force")
    del asked["progress"]
    assert asked == {"layer": "3", "device": "cpu", "seed": 7, "timeout": 60.0, "effort": "thorough",
                     "output": tmp_path / "out", "method": "paper", "target": 2, "force": True,
                     "from_report": None}


def test_threads(run: Run, model: Path, code: Path, pretend: Pretend) -> None:
    pretend()
    before = torch.get_num_threads()
    try:
        run("scan", model, "--import-from", code, "--threads", "1")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_formats(run: Run, model: Path, code: Path, tmp_path: Path, pretend: Pretend, form: str) -> None:
    pretend("backdoored")
    arguments = ["scan", model, "--import-from", code, "--format", form]
    shown = run(*arguments)
    written = run(*arguments, "-o", tmp_path / "report")
    assert (shown.code, written.code, written.out) == (1, 1, "")
    text = (tmp_path / "report").read_text()
    assert text.strip() == shown.out.strip() if form != "text" else "BACKDOORED" in text
    if form == "json":
        assert from_json(shown.out) == factory.backdoored()
    if form == "html":
        assert shown.out.lower().startswith("<!doctype html>")
    assert "\x1b" not in text


def test_quiet_and_notes(run: Run, model: Path, code: Path, pretend: Pretend) -> None:
    pretend()
    arguments = ["scan", model, "--import-from", code, "--num-classes", "3"]
    assert "note: --num-classes 3 was used" in run(*arguments).err
    assert run(*arguments, "-q").err == ""
    assert "note: seconds:" in run(*arguments, "-v").err


def test_export_trigger(run: Run, model: Path, code: Path, tmp_path: Path, pretend: Pretend) -> None:
    found = Trigger(family="add", params={"pattern": torch.zeros(1, 3, 12, 12)}, strength=0.1, target=1,
                    source=None, margin=1.0)
    pretend("backdoored", triggers=(found, found))
    answer = run("scan", model, "--import-from", code, "--export-trigger", tmp_path / "new" / "found")
    assert answer.code == 1
    assert "wrote" in answer.err
    assert sorted(contents(tmp_path / "new" / "found")) == ["trigger-0.safetensors", "trigger-1.safetensors"]
    assert load_trigger(tmp_path / "new" / "found" / "trigger-1.safetensors").target == 1
    pretend("clean")
    answer = run("scan", model, "--import-from", code, "--export-trigger", tmp_path / "none")
    assert "no trigger was recovered" in answer.err
    assert contents(tmp_path / "none") == {}


def test_a_real_scan_and_what_follows(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    """A random network is clean; its copy is byte-identical; the report of the scan can be used again."""
    before = contents(model)
    scanned = run("scan", model, "--import-from", code, *FAST, "--format", "json")
    assert scanned.code == 0, scanned.err
    report = from_json(scanned.out)
    assert report.verdict == "clean"
    assert not report.calibrated
    assert report.input_sha256 == hashlib.sha256(before["model.safetensors"]).hexdigest()
    (tmp_path / "earlier.json").write_text(scanned.out)
    again = run("sanitize", model, "--import-from", code, *FAST, "--from-report", tmp_path / "earlier.json",
                "--output", tmp_path / "copy", "--report", tmp_path / "r.json")
    assert again.code == 0, again.err
    assert contents(tmp_path / "copy") == before
    done = from_json((tmp_path / "r.json").read_text())
    assert isinstance(done, SanitizeReport)
    assert (done.outcome, done.output_sha256) == ("unchanged", report.input_sha256)
    assert contents(model) == before


def test_a_report_of_another_file(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    from deepsanitizer.report import to_json

    (tmp_path / "other.json").write_text(to_json(factory.backdoored(classes=4)))
    answer = run("sanitize", model, "--import-from", code, *FAST, "--from-report", tmp_path / "other.json",
                 "--output", tmp_path / "out.pt")
    assert answer.code == 4
    assert "another" in answer.error
    assert not (tmp_path / "out.pt").exists()


def test_force_repairs_for_real(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    """Whatever verification says of repairing a clean random network, output and exit code go together."""
    answer = run("sanitize", model, "--import-from", code, *FAST, "--force", "--target", "1", "--output",
                 tmp_path / "out.safetensors", "--report", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["outcome"] in ("accepted", "rolled_back")
    assert (tmp_path / "out.safetensors").exists() == report["accepted"]
    assert answer.code == (0 if report["accepted"] else 1)
    if report["accepted"]:
        old, new = load_file(model / "model.safetensors"), load_file(tmp_path / "out.safetensors")
        assert {key: (value.shape, value.dtype) for key, value in new.items()} == {
            key: (value.shape, value.dtype) for key, value in old.items()}


def test_time_is_up(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    answer = run("sanitize", model, "--import-from", code, *FAST, "--timeout", "0.001", "--output",
                 tmp_path / "out.pt", "--report", tmp_path / "r.json")
    assert answer.code == 2
    assert "time limit" in answer.error
    assert "--timeout" in answer.error
    assert contents(tmp_path) == before
