"""evaluate: ACC on the user's own data, and with a trigger ASR and RA."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import Run
from helpers.models import contents, small
from safetensors.torch import save_file

from deepsanitizer.triggers import save_trigger
from deepsanitizer.types import Trigger

TRIGGERS = '''
def darken(images):
    return images * 0


def wrong(images):
    return images[:, :1]
'''


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, images=generator.integers(0, 256, (40, 3, 12, 12), dtype=np.uint8),
             labels=generator.integers(0, 4, 40))
    return path


def _expected(data: Path, network: torch.nn.Module) -> float:
    with np.load(data) as pack:
        images, labels = torch.from_numpy(pack["images"]).float() / 255, torch.from_numpy(pack["labels"])
    with torch.no_grad():
        said = network((images - 0.5) / 0.25).argmax(1)
    return float((said == labels).float().mean()) * 100


def test_accuracy(run: Run, model: Path, code: Path, data: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    answer = run("evaluate", model, "--import-from", code, "--data", data, "--device", "cpu")
    assert answer.code == 0
    assert answer.out == f"ACC {_expected(data, small()):6.2f} %  of 40 images classified right\n"
    assert answer.err == ""
    assert contents(tmp_path) == before


def test_other_weights(run: Run, model: Path, code: Path, data: Path, tmp_path: Path) -> None:
    other = small(seed=3)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    answer = run("evaluate", model, "--import-from", code, "--data", data, "--weights",
                 tmp_path / "other.safetensors", "--format", "json")
    assert json.loads(answer.out)["acc"] == pytest.approx(_expected(data, other))
    assert json.loads(answer.out)["acc"] != pytest.approx(_expected(data, small()))
    assert json.loads(answer.out)["asr"] is None


@pytest.mark.parametrize(("width", "classes"), [(8, 5), (6, 4)])
def test_weights_of_another_model(run: Run, model: Path, code: Path, data: Path, tmp_path: Path, width: int,
                                  classes: int) -> None:
    save_file(small(classes, width=width).state_dict(), tmp_path / "other.safetensors")
    answer = run("evaluate", model, "--import-from", code, "--data", data, "--weights",
                 tmp_path / "other.safetensors")
    assert answer.code == 3
    assert "do not fit the model" in answer.error


def test_a_function_as_trigger(run: Run, model: Path, code: Path, data: Path) -> None:
    (code / "mine.py").write_text(TRIGGERS)
    with torch.no_grad():
        goal = int(small()(torch.full((1, 3, 12, 12), -2.0)).argmax())
    answer = run("evaluate", model, "--import-from", code, "--data", data, "--trigger", "mine:darken",
                 "--target", goal)
    assert answer.code == 0
    assert "ASR 100.00 %" in answer.out
    assert "RA    0.00 %" in answer.out


def test_an_exported_trigger(run: Run, model: Path, code: Path, data: Path, tmp_path: Path) -> None:
    """The file says target and kind; options overrule it."""
    trigger = Trigger(family="add", params={"pattern": torch.zeros(1, 3, 12, 12)}, strength=0.1, target=1,
                      source=None, margin=1.0)
    save_trigger(trigger, tmp_path / "trigger.safetensors")
    arguments = ["evaluate", model, "--import-from", code, "--data", data, "--trigger",
                 tmp_path / "trigger.safetensors"]
    assert "sent to class 1\n" in run(*arguments).out
    assert "sent to class 2\n" in run(*arguments, "--target", 2).out
    assert "sent to the next class\n" in run(*arguments, "--mode", "all2all").out
    with np.load(data) as pack:
        count = int((pack["labels"] == 3).sum())
        others = int((pack["labels"] != 2).sum())
    assert f"{count} triggered" in run(*arguments, "--mode", "specific", "--source", 3).out
    save_trigger(replace(trigger, target=None, goals=(3, 0, -1, 1)), tmp_path / "trigger.safetensors")
    assert f"of {others} triggered images sent to the goal of their class, as the trigger file says\n" in run(
        *arguments).out
    assert "sent to class 2\n" in run(*arguments, "--mode", "all2one", "--target", 2).out
    save_trigger(replace(trigger, target=None, goals=(1, 0)), tmp_path / "trigger.safetensors")
    assert "not one for each of the 4 classes" in run(*arguments).error


@pytest.mark.parametrize(("arguments", "word"), [
    (["--data", "none.npz"], "none.npz"),
    (["--data", "junk.npz"], "junk.npz"),
    (["--target", "1"], "--trigger"),
    (["--trigger", "none.safetensors"], "none.safetensors"),
    (["--trigger", "mine:nothing", "--target", "1"], "mine:nothing"),
    (["--trigger", "nowhere:nothing", "--target", "1"], "nowhere"),
    (["--trigger", "mine:darken"], "--target"),
    (["--trigger", "mine:darken", "--target", "4"], "target"),
    (["--trigger", "mine:darken", "--target", "1", "--mode", "specific"], "--source"),
    (["--trigger", "mine:wrong", "--target", "1"], "trigger returns"),
    (["--weights", "none.safetensors"], "none.safetensors"),
])
def test_refusals(run: Run, model: Path, code: Path, data: Path, tmp_path: Path, arguments: list[str],
                  word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code / "mine.py").write_text(TRIGGERS)
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    answer = run("evaluate", model, "--import-from", code, "--data", data, *arguments)
    assert answer.code == 4
    assert word in answer.error
    assert answer.out == ""


def test_a_function_needs_import_from(run: Run, model: Path, data: Path) -> None:
    answer = run("evaluate", model, "--data", data, "--trigger", "mine:darken", "--target", "1")
    assert answer.code == 4
    assert "--import-from" in answer.error
