"""What is written in a checkpoint's place is drop-in, and nothing else is touched."""

import hashlib
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepsanitizer.errors import CannotJudgeError, UsageError, WorkError
from deepsanitizer.loading import check_output, copy_unchanged, load, read_back, save
from deepsanitizer.types import Checkpoint, Loaded
from loading.models import ARCH, CONFIG, changed, network, problem, state_of, write_folder

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(model: Loaded) -> Checkpoint:
    assert model.checkpoint is not None
    return model.checkpoint


def as_stored(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def bare(tmp_path: Path, code: Path) -> Callable[..., Loaded]:
    """Write a torch or safetensors file, and load it."""
    def make(name: str, content: Any, **options: Any) -> Loaded:
        if name.endswith(".safetensors"):
            save_file(content, tmp_path / name)
        else:
            torch.save(content, tmp_path / name)
        return load(tmp_path / name, import_from=code, **ARCH | options)
    return make


@pytest.mark.parametrize("dtype", DTYPES)
def test_folder_to_folder(tmp_path: Path, code: Path, dtype: torch.dtype) -> None:
    net = network()
    folder = write_folder(tmp_path / "in", state_of(net, dtype), metadata={"made": "here", "ü": "\n"})
    (folder / "config.json").write_bytes(b"\n  " + json.dumps(CONFIG, indent=3).encode())
    (folder / "truth.json").write_text("{}")
    before = snapshot(folder)
    new = changed(net)
    model = load(folder, import_from=code)
    written = save(new, checkpoint(model), tmp_path / "out")
    assert snapshot(folder) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "out/config.json").read_bytes() == before["config.json"]
    assert written == digest(tmp_path / "out/model.safetensors")
    # the header stays byte for byte: order, offsets, metadata
    data, old = (tmp_path / "out/model.safetensors").read_bytes(), before["model.safetensors"]
    start = 8 + int.from_bytes(old[:8], "little")
    assert data[:start] == old[:start]
    assert len(data) == len(old)
    assert data != old
    assert equal(dict(sorted(load_file(tmp_path / "out/model.safetensors").items())),
                 dict(sorted(as_stored(new, dtype).items())))
    again = load(tmp_path / "out", import_from=code)
    expected = {key: value.float() for key, value in as_stored(new, dtype).items() if "num" not in key}
    back = read_back(checkpoint(model), tmp_path / "out")
    for key, value in expected.items():
        assert torch.equal(again.network.state_dict()[key], value)
        assert torch.equal(back[key], value)
        assert back[key].dtype == torch.float32
    assert back["bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["in.safetensors", "in.pt", "in.pth"])
@pytest.mark.parametrize("target", ["out.safetensors", "out.pt", "out.pth", "OUT.PT"])
def test_file_to_file(tmp_path: Path, bare: Callable[..., Loaded], dtype: torch.dtype, source: str,
                      target: str) -> None:
    net = network()
    model = bare(source, state_of(net, dtype))
    before = digest(tmp_path / source)
    new = changed(net)
    assert save(new, checkpoint(model), tmp_path / target) == digest(tmp_path / target)
    assert digest(tmp_path / source) == before
    path = tmp_path / target
    stored = load_file(path) if target.endswith("safetensors") else torch.load(path, weights_only=True)
    if not (source + target).count("safetensors"):
        assert list(stored) == list(new)
    assert equal({key: stored[key] for key in new}, as_stored(new, dtype))
    assert equal(read_back(checkpoint(model), path), {
        key: value.to(dtype).float() if value.is_floating_point() else value
        for key, value in ((key, new[key]) for key in checkpoint(model).keys)})


@pytest.mark.parametrize("target", ["out.safetensors", "out.pt"])
def test_folder_to_file(tmp_path: Path, code: Path, target: str) -> None:
    model = load(write_folder(tmp_path / "in", state_of(network(), torch.float16)), import_from=code)
    new = changed(network())
    save(new, checkpoint(model), tmp_path / target)
    back = read_back(checkpoint(model), tmp_path / target)
    assert torch.equal(back["conv.weight"], new["conv.weight"].half().float())


@pytest.mark.parametrize("zipped", [True, False])
def test_wrapper_and_other_entries_are_kept(tmp_path: Path, code: Path, zipped: bool) -> None:
    net = network()
    moments: dict[str, Any] = {"state": {0: {"exp_avg": torch.ones(3)}},
                               "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    inner: Any = OrderedDict(("module." + key, value.half() if value.is_floating_point() else value)
                             for key, value in net.state_dict().items())
    inner._metadata = OrderedDict({"": {"version": 2}})
    content = OrderedDict(epoch=7, optimizer=moments, model={"note": "x", "state_dict": inner})
    torch.save(content, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    model = load(tmp_path / "in.pt", import_from=code, **ARCH)
    assert checkpoint(model).wrapper == ("model", "state_dict")
    new = changed(net)
    save(new, checkpoint(model), tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(written) == ["epoch", "optimizer", "model"]
    assert written["epoch"] == 7
    assert torch.equal(written["optimizer"]["state"][0]["exp_avg"], torch.ones(3))
    assert written["optimizer"]["param_groups"] == moments["param_groups"]
    assert written["model"]["note"] == "x"
    state = written["model"]["state_dict"]
    assert type(state) is OrderedDict
    assert vars(state)["_metadata"] == {"": {"version": 2}}
    assert equal(state, {"module." + key: value for key, value in as_stored(new, torch.float16).items()})
    assert ((tmp_path / "out.pt").read_bytes()[:2] == b"PK") == zipped
    save(new, checkpoint(model), tmp_path / "out.safetensors")
    assert set(load_file(tmp_path / "out.safetensors")) == set(state)


def test_aliases_views_and_parameters_of_a_torch_file_are_kept(tmp_path: Path,
                                                               bare: Callable[..., Loaded]) -> None:
    net = network("Tied")
    content = OrderedDict(net.state_dict())
    content["first.weight"] = torch.nn.Parameter(content["first.weight"].t().contiguous().t())
    content["second.weight"] = content["first.weight"]
    content["first.bias"] = torch.zeros(1).expand(3)
    model = bare("in.pt", content, arch="nets:Tied")
    new = state_of(model.network)
    new["first.weight"] = new["second.weight"] = new["first.weight"] * 2
    new["first.bias"] = torch.tensor([1.0, 2.0, 3.0])
    save(new, checkpoint(model), tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    first, second = written["first.weight"], written["second.weight"]
    assert first.data_ptr() == second.data_ptr()
    assert isinstance(first, torch.nn.Parameter)
    assert first.stride() == (1, 3)
    assert torch.equal(first, new["first.weight"])
    assert written["first.bias"].tolist() == [1.0, 2.0, 3.0]
    # without aliases, each is written out
    save(new, checkpoint(model), tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["second.weight"], new["first.weight"])
    # what shares memory in the file cannot take two values
    new["second.weight"] = new["first.weight"] + 1
    assert "share memory" in problem(WorkError, lambda: save(new, checkpoint(model), tmp_path / "two.pt"))
    assert not (tmp_path / "two.pt").exists()


def test_tied_weights_that_are_stored_once(tmp_path: Path, code: Path) -> None:
    net = network("Tied")
    state = state_of(net)
    del state["second.weight"]
    folder = write_folder(tmp_path / "in", state, CONFIG | {"architecture": "nets:Tied", "kwargs": {}})
    model = load(folder, import_from=code)
    new = state_of(model.network)
    new["first.weight"] = new["second.weight"] = new["first.weight"] * 2
    save(new, checkpoint(model), tmp_path / "out")
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(state)
    again = load(tmp_path / "out", import_from=code)
    assert torch.equal(again.network.state_dict()["second.weight"], new["first.weight"])
    new["second.weight"] = new["first.weight"] + 1
    assert "second.weight" in problem(WorkError, lambda: save(new, checkpoint(model), tmp_path / "two"))


def test_unchanged_float64_keeps_what_float32_cannot_hold(tmp_path: Path,
                                                          bare: Callable[..., Loaded]) -> None:
    state = {key: value + 1e-12 if value.dtype == torch.float64 else value
             for key, value in state_of(network(), torch.float64).items()}
    model = bare("in.safetensors", state)
    new = state_of(model.network)
    assert save(new, checkpoint(model), tmp_path / "out.safetensors") == checkpoint(model).sha256
    new["fc.bias"] = new["fc.bias"] + 1
    save(new, checkpoint(model), tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert torch.equal(written["conv.weight"], state["conv.weight"])
    assert torch.equal(written["fc.bias"], new["fc.bias"].double())


def test_unequal_dtypes_and_absent_counters(tmp_path: Path, bare: Callable[..., Loaded]) -> None:
    state = state_of(network())
    del state["bn.num_batches_tracked"]
    state["conv.weight"] = state["conv.weight"].half()
    state["fc.weight"] = state["fc.weight"].bfloat16()
    model = bare("in.safetensors", state)
    new = changed(network())
    save(new, checkpoint(model), tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert {key: value.dtype for key, value in written.items()} == {key: v.dtype for key, v in state.items()}


def test_weights_that_do_not_fit_the_file(tmp_path: Path, bare: Callable[..., Loaded]) -> None:
    model = bare("in.safetensors", state_of(network(), torch.float16))
    good, out = state_of(network()), tmp_path / "out.safetensors"
    for state, words in [
            (good | {"fc.bias": torch.full((3,), 1e6)}, "not finite in torch.float16"),
            (good | {"fc.bias": torch.full((3,), float("nan"))}, "not finite"),
            (good | {"fc.bias": torch.zeros(4)}, "shape [4], not [3]"),
            (good | {"new": torch.ones(9)}, "'new'"),
            ({key: value for key, value in good.items() if key != "fc.bias"}, "'fc.bias'")]:
        assert words in problem(WorkError, partial(save, state, checkpoint(model), out))
        assert not out.exists()


@pytest.mark.parametrize("call", [
    lambda like, out: save(changed(network()), like, out), lambda like, out: copy_unchanged(like, out)])
def test_an_input_that_changed_meanwhile(tmp_path: Path, bare: Callable[..., Loaded],
                                         call: Callable[[Checkpoint, Path], str]) -> None:
    model = bare("in.pt", state_of(network()))
    torch.save(state_of(network(seed=1)), tmp_path / "in.pt")
    assert "changed since" in problem(WorkError, lambda: call(checkpoint(model), tmp_path / "out.pt"))
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(("source", "target"), [("in.safetensors", "out.safetensors"), ("in.pt", "out.pth")])
def test_copy_is_byte_identical(tmp_path: Path, bare: Callable[..., Loaded], source: str,
                                target: str) -> None:
    model = bare(source, state_of(network(), torch.float16))
    assert copy_unchanged(checkpoint(model), tmp_path / target) == checkpoint(model).sha256
    assert (tmp_path / source).read_bytes() == (tmp_path / target).read_bytes()


def test_copy_of_a_folder(tmp_path: Path, code: Path) -> None:
    folder = write_folder(tmp_path / "in", state_of(network()))
    before = snapshot(folder)
    (folder / "truth.json").write_text("{}")
    (tmp_path / "out").mkdir()
    assert copy_unchanged(checkpoint(load(folder, import_from=code)), f"{tmp_path}/out/") == digest(
        folder / "model.safetensors")
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(("source", "target"), [("in.safetensors", "out.pt"), ("in.pt", "out.safetensors")])
def test_copy_into_another_format_keeps_the_stored_values(tmp_path: Path, bare: Callable[..., Loaded],
                                                          source: str, target: str) -> None:
    state = state_of(network(), torch.float64)
    model = bare(source, state)
    assert copy_unchanged(checkpoint(model), tmp_path / target) == digest(tmp_path / target)
    path = tmp_path / target
    stored = load_file(path) if target.endswith("safetensors") else torch.load(path, weights_only=True)
    assert equal({key: stored[key] for key in state}, state)


def test_metadata_of_a_new_safetensors_file(tmp_path: Path, bare: Callable[..., Loaded]) -> None:
    model = bare("in.pt", state_of(network()))
    save(changed(network()), checkpoint(model), tmp_path / "out.safetensors")
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_permissions_follow_the_umask(tmp_path: Path, code: Path) -> None:
    model = load(write_folder(tmp_path / "in", state_of(network())), import_from=code)
    before = os.umask(0o027)
    try:
        save(changed(network()), checkpoint(model), tmp_path / "out")
        save(changed(network()), checkpoint(model), tmp_path / "out.pt")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "out/config.json", "out.pt")]
    assert modes == [0o750, 0o640, 0o640]


def test_a_folder_with_a_dot_in_its_name(tmp_path: Path, code: Path) -> None:
    model = load(write_folder(tmp_path / "in", state_of(network())), import_from=code)
    save(changed(network()), checkpoint(model), f"{tmp_path}/model.v2/")
    assert (tmp_path / "model.v2" / "config.json").is_file()


class TestCheckOutput:
    """Each is refused early, with the user's files as they were."""

    @pytest.fixture
    def file(self, bare: Callable[..., Loaded]) -> Checkpoint:
        return checkpoint(bare("in.pt", state_of(network())))

    @pytest.fixture
    def folder(self, tmp_path: Path, code: Path) -> Checkpoint:
        return checkpoint(load(write_folder(tmp_path / "in", state_of(network())), import_from=code))

    @staticmethod
    def refused(like: Checkpoint, output: str | Path, root: Path) -> str:
        before = snapshot(root)
        message = problem(UsageError, lambda: check_output(like, output))
        assert problem(UsageError, lambda: save(changed(network()), like, output)) == message
        assert problem(UsageError, lambda: copy_unchanged(like, output)) == message
        assert snapshot(root) == before
        return message

    def test_good_ones_leave_nothing_behind(self, file: Checkpoint, folder: Checkpoint, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "old.pt").write_text("old")
        (tmp_path / "empty").mkdir()
        before = sorted(tmp_path.rglob("*"))
        check_output(file, tmp_path / "old.pt")
        check_output(file, tmp_path / "new.safetensors")
        for name in ("new", "empty", "new.d/", "new.safetensors"):
            check_output(folder, f"{tmp_path}/{name}")
        monkeypatch.chdir(tmp_path)
        check_output(file, "new.pt")
        assert sorted(tmp_path.rglob("*")) == before
        assert (tmp_path / "old.pt").read_text() == "old"

    def test_parent_missing(self, file: Checkpoint, tmp_path: Path) -> None:
        assert "no folder" in self.refused(file, tmp_path / "no" / "out.pt", tmp_path)
        assert "no folder" in self.refused(file, tmp_path / "in.pt" / "out.pt", tmp_path)

    def test_bad_suffix(self, file: Checkpoint, folder: Checkpoint, tmp_path: Path) -> None:
        for like in (file, folder):
            message = self.refused(like, tmp_path / "out.bin", tmp_path)
            assert "'.bin'" in message
            assert ".safetensors, .pt, .pth" in message

    def test_folder_for_a_file(self, file: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "d.pt").mkdir()
        for name in ("out", "d.pt", "new.pt/"):
            assert "is a folder" in self.refused(file, f"{tmp_path}/{name}", tmp_path)

    def test_the_input_itself(self, file: Checkpoint, folder: Checkpoint, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "soft.pt").symlink_to(tmp_path / "in.pt")
        os.link(tmp_path / "in.pt", tmp_path / "hard.pt")
        (tmp_path / "link").symlink_to(tmp_path / "in")
        os.link(tmp_path / "in" / "model.safetensors", tmp_path / "hard.safetensors")
        monkeypatch.chdir(tmp_path)
        for name in ("in.pt", "soft.pt", "hard.pt", "./in/../in.pt"):
            assert "is the input" in self.refused(file, name, tmp_path)
        for name in ("in", "link", "in/", "in/model.safetensors", "hard.safetensors",
                     "link/model.safetensors"):
            assert "is the input" in self.refused(folder, name, tmp_path)

    def test_inside_the_input_folder(self, folder: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "in")
        for name in ("in/out.safetensors", "in/out", "link/out.pt"):
            assert "inside the input folder" in self.refused(folder, tmp_path / name, tmp_path)

    def test_folder_that_is_not_empty(self, folder: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("x")
        assert "not empty" in self.refused(folder, tmp_path / "full", tmp_path)
        (tmp_path / "plain").write_text("x")
        assert "is a file" in self.refused(folder, tmp_path / "plain", tmp_path)

    def test_special_and_protected_files(self, file: Checkpoint, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.pt")
        assert "not a regular file" in self.refused(file, tmp_path / "pipe.pt", tmp_path)
        (tmp_path / "dangling.pt").symlink_to(tmp_path / "nowhere")
        assert "not a regular file" in self.refused(file, tmp_path / "dangling.pt", tmp_path)

    def test_unwritable(self, file: Checkpoint, tmp_path: Path) -> None:
        assert "nothing can be written" in problem(UsageError, lambda: check_output(file, "/proc/out.pt"))
        assert "has no name" in problem(UsageError, lambda: check_output(file, "/"))

    def test_unwritable_for_this_user(self, file: Checkpoint, unprivileged: Path) -> None:
        (unprivileged / "locked").mkdir(mode=0o500)
        assert "nothing can be written" in self.refused(file, unprivileged / "locked" / "out.pt", unprivileged)
        (unprivileged / "locked.pt").touch(mode=0o400)
        assert "write-protected" in self.refused(file, unprivileged / "locked.pt", unprivileged)


def test_read_back_of_something_else(tmp_path: Path, bare: Callable[..., Loaded]) -> None:
    like = checkpoint(bare("in.pt", state_of(network())))
    assert "there is no file" in problem(UsageError, lambda: read_back(like, tmp_path / "no.pt"))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    assert "lacks" in problem(WorkError, lambda: read_back(like, tmp_path / "other.pt"))
    (tmp_path / "damaged.pt").write_bytes((tmp_path / "in.pt").read_bytes()[:-500])
    problem(CannotJudgeError, lambda: read_back(like, tmp_path / "damaged.pt"))
