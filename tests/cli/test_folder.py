"""scan on a folder of models: one table, the worst exit code, what is there is not scanned again."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Run
from helpers.models import write_folder
from report import factory

from deepsanitizer import facts, pipeline
from deepsanitizer.types import Loaded, VerdictName

Pretend = Callable[..., list[str]]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Put in a verdict by name of model; returns the names of what was scanned."""
    def put_in(**verdicts: VerdictName) -> list[str]:
        asked: list[str] = []

        def scan(model: Loaded, **options: Any) -> Any:
            assert model.checkpoint is not None
            name = model.checkpoint.path.name
            asked.append(name)
            options["progress"]("searching", 0, 2)
            verdict = verdicts[name]
            base = factory.scan() if verdict == "clean" else factory.backdoored(verdict=verdict)
            return dataclasses.replace(
                base, input_sha256=model.checkpoint.sha256, seed=options["seed"], versions=facts.versions(),
                config={key: options[key] for key in ("effort", "layer", "screen")})

        monkeypatch.setattr(pipeline, "scan", scan)
        return asked

    return put_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, one of them deeper."""
    (tmp_path / "all" / "deep").mkdir(parents=True)
    write_folder(tmp_path / "all" / "one")
    write_folder(tmp_path / "all" / "deep" / "two")
    return tmp_path / "all"


@pytest.mark.parametrize(("one", "two", "worst"), [
    ("clean", "clean", 0), ("clean", "backdoored", 1), ("inconclusive", "clean", 3), ("inconclusive", "suspicious", 1)])
def test_the_exit_code_is_that_of_the_worst(run: Run, folder: Path, code: Path, pretend: Pretend, one: VerdictName,
                                            two: VerdictName, worst: int) -> None:
    asked = pretend(one=one, two=two)
    answer = run("scan", folder, "--import-from", code)
    assert answer.code == worst
    assert asked == ["two", "one"]  # in order of path
    assert one in answer.out
    assert two in answer.out
    assert "deep/two" in answer.out
    assert "1/2 deep/two: searching ..." in answer.err
    assert f"2/2 one: {one}" in answer.err


def test_a_screen_with_an_effort_is_refused_once_before_any_model(run: Run, folder: Path, code: Path,
                                                                  pretend: Pretend) -> None:
    asked = pretend(one="clean", two="clean")
    answer = run("scan", folder, "--import-from", code, "--screen", "--effort", "fast")
    assert (answer.code, asked) == (4, [])
    assert answer.err.count("Leave --effort out") == 1


def test_one_model_that_cannot_be_judged_does_not_stop_the_others(run: Run, folder: Path, code: Path,
                                                                  pretend: Pretend) -> None:
    (folder / "deep" / "two" / "model.safetensors").write_bytes(b"\x1b[31mnonsense")
    asked = pretend(one="clean")
    answer = run("scan", folder, "--import-from", code, "--format", "json", "-q")
    assert answer.code == 3
    assert asked == ["one"]
    broken, fine = json.loads(answer.out)
    assert broken["verdict"] is None
    assert broken["error"]
    assert fine["verdict"] == "clean"
    assert answer.err == ""
    text = run("scan", folder, "--import-from", code)
    assert "error" in text.out
    assert "\x1b" not in text.out + text.err


def test_kept_reports_are_read_again_where_they_answer_the_same_question(run: Run, folder: Path, code: Path,
                                                                         pretend: Pretend, tmp_path: Path) -> None:
    asked, reports = pretend(one="clean", two="backdoored"), tmp_path / "reports"
    arguments = ("scan", folder, "--import-from", code, "--reports", reports)
    first = run(*arguments)
    assert asked == ["two", "one"]
    assert {str(file.relative_to(reports)) for file in reports.rglob("*.*")} == {
        "one.json", "one.html", "deep/two.json", "deep/two.html"}
    assert run(*arguments).out == first.out
    assert asked == ["two", "one"]
    run(*arguments, "--seed", "1")
    assert asked == ["two", "one"] * 2
    (reports / "one.json").write_text("{")
    run(*arguments, "--seed", "1")
    assert asked == ["two", "one"] * 2 + ["one"]
    run(*arguments, "--seed", "1", "--effort", "fast")
    assert asked == ["two", "one"] * 2 + ["one", "two", "one"]
    run(*arguments, "--seed", "1", "--screen")  # another question
    assert asked == ["two", "one"] * 2 + ["one", "two", "one"] + ["two", "one"]


def test_the_table_is_written_whole(run: Run, folder: Path, code: Path, pretend: Pretend, tmp_path: Path) -> None:
    pretend(one="clean", two="clean")
    answer = run("scan", folder, "--import-from", code, "-o", tmp_path / "table.txt")
    assert answer.out == ""
    assert "deep/two" in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize(("more", "said"), [
    (("--format", "html"), "a table, not a page"), (("--export-trigger", "triggers"), "for one model")])
def test_what_makes_no_sense_for_many_models_is_refused(run: Run, folder: Path, code: Path, pretend: Pretend,
                                                        more: tuple[str, str], said: str,
                                                        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = pretend()
    answer = run("scan", folder, "--import-from", code, *more)
    assert answer.code == 4
    assert said in answer.error
    assert asked == []


def test_reports_are_for_folders(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    answer = run("scan", model, "--import-from", code, "--reports", tmp_path / "reports")
    assert answer.code == 4
    assert "folder of models" in answer.error
    assert not (tmp_path / "reports").exists()
