"""Bad input: one clear line, the documented exit code, and every file of the user's as it was."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import Answer, Run
from helpers.models import contents, small, write_folder
from safetensors.torch import save_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
BARE = ["--arch", "nets:small", "--input-shape", "3,12,12", "--num-classes", "4", "--mean", "0.5,0.5,0.5",
        "--std", "0.25,0.25,0.25"]


@pytest.fixture(params=["scan", "sanitize"])
def judge(request: pytest.FixtureRequest, run: Run, code: Path, tmp_path: Path) -> Callable[..., Answer]:
    """Run scan or sanitize; nothing may be changed or written by it, wherever it stops."""
    def call(path: Path, *arguments: str | Path) -> Answer:
        more = ["--output", tmp_path / "out.safetensors"] if request.param == "sanitize" else []
        before = contents(tmp_path)
        answer = run(request.param, path, "--import-from", code, "--effort", "fast", "--device", "cpu", *more,
                     *arguments)
        assert contents(tmp_path) == before
        assert answer.out == ""
        return answer

    return call


Judge = Callable[..., Answer]


def test_missing_file(judge: Judge, tmp_path: Path) -> None:
    answer = judge(tmp_path / "none.safetensors", *BARE)
    assert answer.code == 4
    assert "none.safetensors" in answer.error


@pytest.mark.parametrize("keep", [4, 60, 0.9])
def test_truncated(judge: Judge, model: Path, keep: float) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:int(keep if keep > 1 else keep * len(data))])
    answer = judge(model)
    assert answer.code == 3
    assert "model.safetensors" in answer.error


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_code(judge: Judge, tmp_path: Path, how: str) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / "model.pt"
    content = {"state_dict": small().state_dict(), "extra": _Malicious(marker)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    answer = judge(path, *BARE)
    assert answer.code == 3
    assert "pickle" in answer.error
    assert not marker.exists()
    with path.open("rb") as file:  # the same content does run where it is trusted
        torch.load(file, weights_only=False) if how == "torch" else pickle.load(file)
    assert marker.exists()


def test_a_git_lfs_pointer(judge: Judge, model: Path) -> None:
    (model / "model.safetensors").write_bytes(LFS)
    answer = judge(model)
    assert answer.code == 3
    assert "Git LFS pointer" in answer.error


def test_another_architecture(judge: Judge, model: Path) -> None:
    """Missing, unexpected and mis-shaped keys, at most ten of each."""
    state = small().state_dict()
    state["7.weight"] = torch.zeros(9, 16)
    del state["0.bias"]
    state |= {f"decoder.{index}.weight": torch.zeros(2) for index in range(14)}
    save_file(state, model / "model.safetensors")
    answer = judge(model)
    assert answer.code == 3
    assert "1 missing: '0.bias'" in answer.error
    assert "14 unexpected" in answer.error
    assert answer.error.count("decoder.") == 10
    assert "and 4 more" in answer.error
    assert "7.weight [9, 16] for [4, 16]" in answer.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(judge: Judge, model: Path, value: float) -> None:
    state = small().state_dict()
    state["3.weight"][0, 0, 0, 0] = value
    save_file(state, model / "model.safetensors")
    answer = judge(model)
    assert answer.code == 3
    assert "'3.weight'" in answer.error


def test_wrong_input_shape(judge: Judge, tmp_path: Path) -> None:
    model = write_folder(tmp_path / "grey", input_shape=[1, 12, 12], mean=[0.5], std=[0.5])
    answer = judge(model)
    assert answer.code == 3
    assert "(1, 12, 12)" in answer.error


def test_one_class(judge: Judge, tmp_path: Path) -> None:
    answer = judge(write_folder(tmp_path / "one", num_classes=1))
    assert answer.code == 3
    assert "1 class" in answer.error


def test_wrong_number_of_classes(judge: Judge, tmp_path: Path) -> None:
    answer = judge(write_folder(tmp_path / "many", kwargs={"num_classes": 4}), "--num-classes", "7")
    assert answer.code == 3
    assert "7" in answer.error


def test_no_such_layer(judge: Judge, model: Path, tmp_path: Path) -> None:
    answer = judge(model, "--layer", "33")
    assert answer.code == 4
    assert "'33'" in answer.error
    assert "'3'" in answer.error


def test_an_invalid_cut(judge: Judge, tmp_path: Path) -> None:
    source = '''
from torch import nn
class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
    def forward(self, x):
        x = self.first(x)
        return self.fc((x + self.second(x)).mean((2, 3)))
'''
    (tmp_path / "code" / "skip.py").write_text(source)
    space: dict[str, Any] = {}
    exec(source, space)
    with torch.random.fork_rng():
        network = space["Skipping"]()
    model = write_folder(tmp_path / "m", network=network, architecture="skip:Skipping", kwargs={},
                         num_classes=3)
    answer = judge(model, "--layer", "second")
    assert answer.code == 3
    assert "'second'" in answer.error
    assert "'first'" in answer.error  # what goes around it


def test_code_is_not_imported_unasked(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    (code / "nets.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'it-ran')!r}).touch()\n")
    answer = run("scan", model)
    assert answer.code == 4
    assert "--import-from" in answer.error
    assert not (tmp_path / "it-ran").exists()


def test_bare_weights_need_arch(run: Run, model: Path) -> None:
    answer = run("scan", model / "model.safetensors")
    assert answer.code == 4
    assert "--arch" in answer.error


@pytest.mark.parametrize(("field", "value"), [("input_shape", [3, 12]), ("std", [0, 0, 0]), ("mean", [0.5]),
                                              ("architecture", 3), ("class_names", ["one"])])
def test_a_config_that_makes_no_sense(judge: Judge, tmp_path: Path, field: str, value: Any) -> None:
    answer = judge(write_folder(tmp_path / "odd", **{field: value}))
    assert answer.code == 3
    assert "config.json" in answer.error


@pytest.mark.parametrize("arguments", [
    ["--effort", "heroic"], ["--device", "tpu"], ["--layer"], ["--seed", "x"], ["--frobnicate"],
    ["--threads", "0"], ["--timeout", "-1"],
])
def test_wrong_options(judge: Judge, model: Path, arguments: list[str]) -> None:
    answer = judge(model, *arguments)
    assert answer.code == 4
    assert arguments[0] in answer.error


def test_wrong_format_and_method(run: Run, model: Path, code: Path, tmp_path: Path) -> None:
    answer = run("scan", model, "--import-from", code, "--format", "pdf")
    assert (answer.code, "--format" in answer.error) == (4, True)
    answer = run("sanitize", model, "--import-from", code, "--output", tmp_path / "o.pt", "--method", "magic")
    assert (answer.code, "magic" in answer.error) == (4, True)
    answer = run("sanitize", model, "--import-from", code, "--output", tmp_path / "o.pt", "--target", "4")
    assert (answer.code, "no class 4" in answer.error) == (4, True)
    answer = run("sanitize", model, "--import-from", code)
    assert (answer.code, "--output" in answer.error) == (4, True)


OUTPUTS: dict[str, tuple[str, str]] = {  # where, and what the error says
    "no such folder": ("none/out.safetensors", "none"),
    "the input folder": ("model", "model"),
    "the input's weights": ("model/model.safetensors", "input"),
    "a link to the input": ("link.safetensors", "input"),
    "inside the input": ("model/out.safetensors", "inside"),
    "below a file": ("file.txt/out.safetensors", "file.txt"),
    "a suffix that cannot be written": ("out.onnx", ".onnx"),
    "a folder with something in it": ("full", "not empty"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_cannot_be(run: Run, model: Path, code: Path, tmp_path: Path, name: str) -> None:
    where, word = OUTPUTS[name]
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "link.safetensors").symlink_to(model / "model.safetensors")
    before = contents(tmp_path)
    answer = run("sanitize", model, "--import-from", code, "--output", tmp_path / where)
    assert answer.code == 4
    assert word in answer.error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["--report", "--html"])
@pytest.mark.parametrize("where", ["none/r.json", "model/model.safetensors", "model/config.json", "model",
                                   "out.safetensors"])
def test_reports_that_cannot_be(run: Run, model: Path, code: Path, tmp_path: Path, option: str,
                                where: str) -> None:
    before = contents(tmp_path)
    answer = run("sanitize", model, "--import-from", code, "--output", tmp_path / "out.safetensors", option,
                 tmp_path / where)
    assert answer.code == 4
    assert option in answer.error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"schema": "another/1"}', b"\xff\xfe"])
def test_from_report_that_is_none(run: Run, model: Path, code: Path, tmp_path: Path,
                                  content: str | bytes | None) -> None:
    path = tmp_path / "earlier.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    answer = run("sanitize", model, "--import-from", code, "--output", tmp_path / "out.pt", "--from-report",
                 path)
    assert answer.code == 4
    assert "earlier.json" in answer.error
    assert not (tmp_path / "out.pt").exists()


def test_a_read_only_folder(run: Run, model: Path, code: Path, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without the right; a superuser may write anywhere, so the system's answer is put in."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)

    def touch(path: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", touch)
    answer = run("sanitize", model, "--import-from", code, "--output", folder / "out.pt")
    assert answer.code == 4
    assert "Permission denied" in answer.error
    assert contents(folder) == {}
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    answer = run("scan", model, "--import-from", code, "-o", folder / "report.json")
    assert answer.code == 4
    assert "not writable" in answer.error
