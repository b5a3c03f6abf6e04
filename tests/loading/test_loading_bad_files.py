"""Files that cannot be judged: a clear line, the right kind of error, and nothing in them run."""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from deepsanitizer.errors import CannotJudgeError, ExitCode, UsageError
from deepsanitizer.loading import from_module, load
from deepsanitizer.types import InputSpec
from loading.models import ARCH, CONFIG, network, problem, state_of, write_folder

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3162152\n"
HTML = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


class Payload:
    """A pickle of this touches a file when it is run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.marker}",)


class Opener(Payload):
    """The same with something that lists of dangerous names may not have."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return np.save, (str(self.marker) + ".npy", np.zeros(1))


def torch_bytes(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def bad_file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    message = problem(CannotJudgeError, lambda: load(path))
    assert path.read_bytes() == data
    return message


def test_exit_codes() -> None:
    assert CannotJudgeError.exit_code == ExitCode.NO_VERDICT
    assert UsageError.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w"])
@pytest.mark.parametrize(("data", "words"), [
    (b"", "is empty"), (LFS, "Git LFS pointer"), (HTML, "HTML page"), (b"hello", "no known format"),
    (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"), (b"GGUF" + bytes(64), "GGUF"),
    (bytes(4096), "no known format"),
    (b"\x93NUMPY" + bytes(64), "NumPy"), (b"\x00" * 7, "7 bytes")])
def test_not_weights(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    assert words in bad_file(tmp_path / name, data)


def test_missing_file(tmp_path: Path) -> None:
    assert "there is no file" in problem(UsageError, lambda: load(tmp_path / "no.pt"))
    assert "there is no file" in problem(UsageError, lambda: load(tmp_path / "no" / "no.pt"))
    assert "not a path" in problem(UsageError, lambda: load("a\0b"))
    (tmp_path / "file").touch()
    assert "there is no file" in problem(UsageError, lambda: load(tmp_path / "file" / "w.pt"))
    assert "cannot be read" in problem(UsageError, lambda: load("x" * 5000))


def test_special_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    assert "not a regular file" in problem(UsageError, lambda: load(tmp_path / "w.pt"))


def test_unreadable_file(unprivileged: Path) -> None:
    (unprivileged / "w.pt").touch(mode=0)
    assert "cannot be read" in problem(UsageError, lambda: load(unprivileged / "w.pt"))


@pytest.mark.parametrize("keep", [9, 40, 300, -1, -200])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    assert "truncated" in bad_file(tmp_path / "w.safetensors", save(state_of(network()))[:keep])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_torch_file(tmp_path: Path, zipped: bool, share: float) -> None:
    data = torch_bytes(network().state_dict(), zipped=zipped)
    assert "truncated" in bad_file(tmp_path / "w.pt", data[:int(len(data) * share)])


@pytest.mark.parametrize("header", [
    b"{", b"{}x", b"[]", b'{"a":1}', b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b'{"a":{"dtype":"F32","shape":[1]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":["x","y"]}}', b'{"__metadata__":7}', b'{"a":' * 5000,
    b'{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}'])
def test_hostile_safetensors_headers(tmp_path: Path, header: bytes) -> None:
    bad_file(tmp_path / "w.safetensors", len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize("kind", [Payload, Opener])
@pytest.mark.parametrize("wrap", [
    lambda p, s: p, lambda p, s: s | {"x": p}, lambda p, s: {"state_dict": s, "x": p}])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle2", "pickle4", "named safetensors"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
        tmp_path: Path, code: Path, kind: type[Payload], form: str, wrap: Callable[..., Any]) -> None:
    marker = tmp_path / "ran"
    content = wrap(kind(marker), dict(network().state_dict()))
    if form.startswith("pickle"):
        data = pickle.dumps(content, protocol=int(form[-1]))
    else:
        data = torch_bytes(content, zipped=form != "legacy")
    path = tmp_path / ("w.safetensors" if form == "named safetensors" else "w.pt")
    message = bad_file(path, data)
    assert "not run" in message
    assert ("system" if kind is Payload else "save") in message
    problem(CannotJudgeError, lambda: load(path, import_from=code, **ARCH))
    assert not list(tmp_path.glob("ran*"))
    # the marker proves something: a loader that trusts the file does run it
    trusting: Any = pickle.loads if form.startswith("pickle") else (
        lambda raw: torch.load(io.BytesIO(raw), weights_only=False))
    trusting(data)
    assert list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused(tmp_path: Path, zipped: bool) -> None:
    message = bad_file(tmp_path / "w.pt", torch_bytes(nn.Sequential(nn.Linear(2, 2)), zipped=zipped))
    assert "torch.nn.modules.linear.Linear" in message
    assert "state_dict()" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_arrays_beside_the_weights_are_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": {"a": torch.zeros(2)}, "curve": np.zeros(3)}
    message = bad_file(tmp_path / "w.pt", torch_bytes(content, zipped=zipped))
    assert "_reconstruct" in message
    assert "not run" in message


def test_the_environment_cannot_switch_the_refusal_off(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "not run" in bad_file(tmp_path / "w.pt", torch_bytes({"x": Opener(tmp_path / "ran")}))
    assert not list(tmp_path.glob("ran*"))


def test_other_zip_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=np.zeros(3))
    arrays = (tmp_path / "data.npz").read_bytes()
    assert "not one that torch.save wrote" in bad_file(tmp_path / "w.pt", arrays)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    assert "TorchScript" in bad_file(tmp_path / "w.pt", buffer.getvalue())


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    source = zipfile.ZipFile(io.BytesIO(torch_bytes({"w": torch.zeros(1_000_000)})))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    assert len(buffer.getvalue()) < 10_000
    assert "compressed" in bad_file(tmp_path / "w.pt", buffer.getvalue())


@pytest.mark.parametrize(("content", "words"), [
    ([torch.zeros(2)], "holds a list"), (torch.zeros(2), "holds a Tensor"), ({}, "no tensors"),
    ({"epoch": 3, "weights": {"a": torch.zeros(2)}}, "'epoch', 'weights'"),
    ({"a": torch.zeros(2), "b": 3, "c": "x"}, "not tensors: 'b', 'c'"),
    ({"a": torch.zeros(2), 7: torch.zeros(2)}, "keys that are not text"),
    ({"a": torch.zeros(2).to_sparse()}, "sparse"), ({"a": torch.zeros(2, device="meta")}, "empty-shell"),
    ({"a\x1b[31m\n": torch.zeros(2), "b": 1}, "'b'"),
    ({"a\x1b[31m\n" + "x" * 500: 1, "b": torch.zeros(2)}, "\\x1b"),
    ({"model": {"net": {"state_dict": {"model": {"a": torch.zeros(2)}}}}}, "no state dict")])
def test_torch_files_without_a_state_dict(tmp_path: Path, content: object, words: str) -> None:
    assert words in bad_file(tmp_path / "w.pt", torch_bytes(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_weights(tmp_path: Path, code: Path, value: float, dtype: torch.dtype) -> None:
    state = state_of(network(), dtype)
    state["conv.weight"][0, 0, 0, 0] = value
    state["bn.running_var"][1] = value
    folder = write_folder(tmp_path / "m", state)
    message = problem(CannotJudgeError, lambda: load(folder, import_from=code))
    assert "NaN or infinite" in message
    assert "'conv.weight'" in message
    assert "'bn.running_var'" in message
    assert "'fc.weight'" not in message
    net = network()
    net.load_state_dict(state)
    spec = InputSpec((3, 8, 8), 3, (0.5,) * 3, (0.25,) * 3)
    assert "'conv.weight'" in problem(CannotJudgeError, lambda: from_module(net, spec))


def test_a_module_that_cannot_be_copied() -> None:
    net = nn.Linear(2, 2)
    net.lock = open(os.devnull)  # type: ignore[assignment]  # noqa: SIM115
    try:
        spec = InputSpec((3, 8, 8), 3, (0.5,) * 3, (0.25,) * 3)
        assert "cannot be copied" in problem(CannotJudgeError, lambda: from_module(net, spec))
    finally:
        net.lock.close()  # type: ignore[operator, union-attr]


def fit_message(tmp_path: Path, code: Path, state: dict[str, Tensor], **options: Any) -> str:
    save_file(state, tmp_path / "w.safetensors")
    options = ARCH | options
    return problem(CannotJudgeError, lambda: load(tmp_path / "w.safetensors", import_from=code, **options))


def test_wrong_architecture_lists_what_does_not_fit(tmp_path: Path, code: Path) -> None:
    state = state_of(network())
    del state["fc.bias"]
    state["extra"] = torch.zeros(1)
    state["conv.weight"] = torch.zeros(5, 3, 3, 3)
    message = fit_message(tmp_path, code, state)
    assert "1 missing: 'fc.bias'" in message
    assert "1 unexpected: 'extra'" in message
    assert "1 of another shape: 'conv.weight [5, 3, 3, 3] for [4, 3, 3, 3]'" in message


def test_wrong_architecture_lists_at_most_ten_of_each(tmp_path: Path, code: Path) -> None:
    (code / "deep.py").write_text(
        "from torch import nn\ndef deep():\n"
        "    return nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(40)))\n")
    state = {f"{i}.weight": torch.zeros(3, 2) for i in range(15)}
    state |= {f"x{i:02}": torch.zeros(1) for i in range(12)}
    message = fit_message(tmp_path, code, state, arch="deep:deep")
    assert "25 missing: '15.weight'" in message
    assert "'24.weight' and 15 more" in message
    assert "12 unexpected: " in message
    assert "'x09' and 2 more" in message
    assert "15 of another shape: " in message
    assert "and 5 more" in message
    assert message.count(".weight") == 20


def test_a_prefix_does_not_hide_what_does_not_fit(tmp_path: Path, code: Path) -> None:
    state = {f"module.{key}": value for key, value in state_of(network()).items() if key != "fc.bias"}
    message = fit_message(tmp_path, code, state)
    assert "1 missing: 'fc.bias'" in message
    assert "unexpected" not in message


def test_quantised_weights(tmp_path: Path, code: Path) -> None:
    state = state_of(network())
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    assert "stored as integers" in fit_message(tmp_path, code, state)


def test_one_class(tmp_path: Path, code: Path) -> None:
    state = state_of(network(num_classes=1))
    folder = write_folder(tmp_path / "m", state, CONFIG | {"kwargs": {"num_classes": 1}, "num_classes": 1})
    assert "1 class" in problem(CannotJudgeError, lambda: load(folder, import_from=code))
    path = folder / "model.safetensors"
    options = ARCH | {"num_classes": 1, "arch_kwargs": {"num_classes": 1}}
    assert "1 class" in problem(CannotJudgeError, lambda: load(path, import_from=code, **options))


def test_wrong_input_shape(tmp_path: Path, code: Path) -> None:
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    for shape in ((3, 8), (3, 0, 8), ("a", 8, 8), (1, 8, 8), 3):
        problem(UsageError, lambda shape=shape: load(  # type: ignore[misc]
            tmp_path / "w.safetensors", import_from=code, **ARCH | {"input_shape": shape}))


@pytest.mark.parametrize(("data", "words"), [
    (LFS, "LFS"), (HTML, "HTML"), (b"", "empty"), (torch_bytes({"a": torch.zeros(1)}), "is a torch file"),
    (save({"a": torch.zeros(9)})[:-3], "truncated")])
def test_weights_of_a_folder(tmp_path: Path, code: Path, data: bytes, words: str) -> None:
    folder = write_folder(tmp_path / "m", state_of(network()))
    (folder / "model.safetensors").write_bytes(data)
    assert words in problem(CannotJudgeError, lambda: load(folder, import_from=code))
    assert words in problem(CannotJudgeError, lambda: load(folder))


def test_folder_with_a_part_missing(tmp_path: Path, code: Path) -> None:
    folder = write_folder(tmp_path / "m", state_of(network()))
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in problem(CannotJudgeError, lambda: load(folder, import_from=code))
    (folder / "config.json").unlink()
    assert "no config.json" in problem(CannotJudgeError, lambda: load(folder, import_from=code))


def without(name: str) -> bytes:
    return repr({key: value for key, value in CONFIG.items() if key != name}).replace("'", '"').encode()


def having(**values: str) -> bytes:
    fields = {key: repr(value).replace("'", '"') for key, value in CONFIG.items()} | values
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}").encode()


@pytest.mark.parametrize(("data", "words"), [
    (b"", "not a valid model description"), (b"{", "not a valid"), (b"[]", "not a valid"),
    (b"\xff\xfe", "not a valid"), (b"[" * 100_000, "not a valid"),
    *[(without(name), f"`{name}`") for name in CONFIG],
    (having(num_classes='"3"'), "num_classes"), (having(num_classes="true"), "num_classes"),
    (having(num_classes="3.5"), "num_classes"), (having(input_shape="[3, 8]"), "input_shape"),
    (having(input_shape="[3, 8, -8]"), "input shape"), (having(mean="0.5"), "mean"),
    (having(mean='["a"]'), "mean"), (having(std="[0.5, 0.5, 1e999]"), "std"),
    (having(mean="[0.5]"), "mean has 1 values"), (having(std="[0.5, 0.5, 0]"), "std"),
    (having(std="[0.5, 0.5, NaN]"), "not a valid"), (having(kwargs="[]"), "kwargs"),
    (having(architecture="7"), "architecture"), (having(class_names='["a"]'), "class_names has 1 names"),
    (having(class_names="[1, 2, 3]"), "class_names"), (having(num_classes="0"), "0 class")])
def test_bad_config(tmp_path: Path, code: Path, data: bytes, words: str) -> None:
    folder = write_folder(tmp_path / "m", state_of(network()))
    (folder / "config.json").write_bytes(data)
    assert words in problem(CannotJudgeError, lambda: load(folder, import_from=code))


@pytest.mark.parametrize("missing", [*([name] for name in ARCH), list(ARCH)])
def test_missing_options_are_all_named(tmp_path: Path, code: Path, missing: list[str]) -> None:
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    given = {key: value for key, value in ARCH.items() if key not in missing}
    message = problem(UsageError, lambda: load(tmp_path / "w.safetensors", import_from=code, **given))
    for name in ARCH:
        assert (f"--{name.replace('_', '-')}" in message.partition("given")[0]) == (name in missing)
    assert ("--mean 0,0,0 --std 1,1,1" in message) == bool({"mean", "std"} & set(missing))


def test_nan_in_an_option(tmp_path: Path, code: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network().state_dict(), path)
    options = ARCH | {"mean": (0.5, 0.5, float("nan"))}
    assert "not finite" in problem(UsageError, lambda: load(path, import_from=code, **options))
