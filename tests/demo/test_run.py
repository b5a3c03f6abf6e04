"""The demo itself, from the command's point of view, once; and what it shows."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deepsanitizer import report
from deepsanitizer.demo import truth
from deepsanitizer.demo.run import DemoResult, half_blocks, load_model, recovered_pattern, render, run
from deepsanitizer.errors import UsageError
from deepsanitizer.types import SanitizeReport


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run(tmp_path_factory.mktemp("demo") / "new" / "report", device="cpu")


@pytest.mark.timeout(1500)
def test_the_backdoor_is_found_and_removed_and_the_accuracy_kept(result: DemoResult) -> None:
    folder = result.folder
    assert folder is not None
    figures = json.loads((folder / "evaluation.json").read_text())
    assert list(figures) == ["acc_before", "acc_after", "asr_before", "asr_after", "ra_before", "ra_after"]
    assert figures["asr_before"] > 95
    assert figures["asr_after"] < 10
    assert figures["acc_after"] > figures["acc_before"] - 3  # as success is counted; 8 of 351 signs when measured
    assert figures["ra_after"] > 30  # a network without a backdoor: 64
    found = report.from_json((folder / "report.json").read_text())
    assert isinstance(found, SanitizeReport)
    assert found.verdict == "backdoored"
    assert found.outcome == "accepted"
    assert found.suspects[0].target == truth.planted()["target"]
    assert "<html" in (folder / "report.html").read_text()
    assert sorted(file.name for file in folder.iterdir()) == ["evaluation.json", "report.html", "report.json"]


@pytest.mark.timeout(1500)
def test_it_is_shown_with_and_without_colours(result: DemoResult) -> None:
    plain, colours = io.StringIO(), io.StringIO()
    render(result, Console(file=plain, width=100))
    render(result, Console(file=colours, width=100, force_terminal=True, color_system="truecolor",
                           no_color=False))
    assert "\x1b" not in plain.getvalue()
    assert "▀" not in plain.getvalue()
    assert f"{result.before.asr:.1f} %" in plain.getvalue()
    assert str(result.folder) in plain.getvalue().replace("\n", "")
    assert "recovered" in colours.getvalue()
    assert "▀" in colours.getvalue()


@pytest.mark.timeout(1500)
def test_the_recovered_trigger_can_be_drawn(result: DemoResult) -> None:
    pattern = recovered_pattern(result.report)
    assert pattern is not None
    assert pattern.shape[0] == 3
    assert 0 <= pattern.min() < pattern.max() <= 1


def test_half_blocks_show_two_pixels_in_each_character() -> None:
    pixels = torch.zeros(3, 4, 4)
    pixels[0, :2] = 1
    text = half_blocks(pixels, columns=2)
    assert text.plain == "▀▀"
    assert {str(span.style) for span in text.spans} == {"rgb(255,0,0) on rgb(0,0,0)"}


def test_a_report_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        run(tmp_path / "file" / "report")


def test_the_shipped_folder_is_an_ordinary_model_folder() -> None:
    model = load_model()
    assert model.spec.shape == (3, 32, 32)
    assert model.spec.class_label(14) == "14 (stop)"
    assert model.checkpoint is not None
    assert model.checkpoint.format == "folder"
