"""What loads, and what it loads as."""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import deepsanitizer
from deepsanitizer.classifier import classifier_of, resolve_compute
from deepsanitizer.loading import FORMATS, from_module, load
from deepsanitizer.loading.sniff import recognise
from deepsanitizer.types import InputSpec
from loading.models import ARCH, CONFIG, changed, network, state_of, write_folder


def same_weights(net: nn.Module, state: dict[str, Tensor]) -> bool:
    own = net.state_dict()
    return set(own) == set(state) and all(torch.equal(own[key], state[key].to(own[key].dtype)) for key in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_folder(tmp_path: Path, code: Path, dtype: torch.dtype) -> None:
    state = state_of(network(), dtype)
    config = CONFIG | {"class_names": ["a", "b", "c"]}
    model = load(write_folder(tmp_path / "m", state, config, {"made": "here"}), import_from=code)
    assert same_weights(model.network, state)
    assert not model.network.training
    assert {value.dtype for value in model.network.state_dict().values()} == {torch.float32, torch.int64}
    assert model.spec == InputSpec((3, 8, 8), 3, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    assert model.notes == ()
    assert model.checkpoint is not None
    assert model.checkpoint.format == "folder"
    assert model.checkpoint.weights == tmp_path / "m" / "model.safetensors"
    assert model.checkpoint.metadata == {"made": "here"}
    assert dict(model.checkpoint.keys) == {key: key for key in state}
    assert dict(model.checkpoint.dtypes) == {key: value.dtype for key, value in state.items()}
    classifier_of(model.network, model.spec, resolve_compute("cpu"))


@pytest.mark.parametrize(("name", "form"), [("w.safetensors", "safetensors"), ("w.pt", "torch"),
                                            ("w.pth", "torch"), ("legacy.pt", "torch")])
def test_bare_file(tmp_path: Path, code: Path, name: str, form: str) -> None:
    net, path = network(width=6), tmp_path / name
    if form == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=not name.startswith("legacy"))
    model = load(str(path), import_from=str(code), arch_kwargs={"width": 6}, **ARCH)
    assert same_weights(model.network, net.state_dict())
    assert model.checkpoint is not None
    assert model.checkpoint.format == form
    assert model.checkpoint.path == model.checkpoint.weights == path
    assert model.notes == ()


def test_grey_input_of_0_to_255(tmp_path: Path, code: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(network(channels=1).state_dict(), path)
    options = ARCH | {"input_shape": [1, 28, 28], "mean": [0.0], "std": [1 / 255]}
    model = load(path, import_from=code, arch_kwargs={"channels": 1}, **options)
    assert model.spec == InputSpec((1, 28, 28), 3, (0.0,), (1 / 255,))


def test_content_counts_not_the_name(tmp_path: Path, code: Path) -> None:
    path = tmp_path / "really_torch.safetensors"
    torch.save(network().state_dict(), path)
    model = load(path, import_from=code, **ARCH)
    assert model.checkpoint is not None
    assert model.checkpoint.format == "torch"
    assert any("torch format" in note for note in model.notes)


@pytest.mark.parametrize("wrapper", [
    ("state_dict",), ("model",), ("net",), ("net_state_dict",), ("state_dict_ema",), ("model_state_dict",),
    ("model", "state_dict"), ("net", "model", "state_dict")])
def test_wrappers(tmp_path: Path, code: Path, wrapper: tuple[str, ...]) -> None:
    net = network()
    content: Any = net.state_dict()
    for key in reversed(wrapper):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "w.pt")
    model = load(tmp_path / "w.pt", import_from=code, **ARCH)
    assert same_weights(model.network, net.state_dict())
    assert model.checkpoint is not None
    assert model.checkpoint.wrapper == wrapper
    assert all(repr(key) in model.notes[0] for key in wrapper)


def test_averaged_weights_beside_the_others_are_reported(tmp_path: Path, code: Path) -> None:
    net = network()
    torch.save({"state_dict_ema": changed(net), "state_dict": net.state_dict()}, tmp_path / "w.pt")
    model = load(tmp_path / "w.pt", import_from=code, **ARCH)
    assert same_weights(model.network, net.state_dict())
    assert any("state_dict_ema" in note and "not examined" in note for note in model.notes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_prefixes(tmp_path: Path, code: Path, prefix: str, suffix: str) -> None:
    net, path = network(), tmp_path / f"w.{suffix}"
    state = {prefix + key: value for key, value in net.state_dict().items()}
    if suffix == "pt":
        torch.save({"state_dict": OrderedDict(state)}, path)
    else:
        save_file(state, path)
    model = load(path, import_from=code, **ARCH)
    assert same_weights(model.network, net.state_dict())
    assert model.checkpoint is not None
    assert dict(model.checkpoint.keys) == {key: prefix + key for key in net.state_dict()}
    assert any(repr(prefix) in note for note in model.notes)


def test_a_network_whose_own_names_have_the_prefix_keeps_it(tmp_path: Path, code: Path) -> None:
    (code / "wrapped.py").write_text("from torch import nn\nclass W(nn.Module):\n    def __init__(self):\n"
                                     "        super().__init__()\n        self.module = nn.Linear(3, 3)\n")
    linear = nn.Linear(3, 3)
    torch.save({f"module.{key}": value for key, value in linear.state_dict().items()}, tmp_path / "w.pt")
    model = load(tmp_path / "w.pt", import_from=code, **ARCH | {"arch": "wrapped:W"})
    assert set(model.network.state_dict()) == {"module.weight", "module.bias"}
    assert model.notes == ()


def test_missing_batch_norm_counter_is_tolerated(tmp_path: Path, code: Path) -> None:
    state = state_of(network())
    del state["bn.num_batches_tracked"]
    model = load(write_folder(tmp_path / "m", state), import_from=code)
    assert model.checkpoint is not None
    assert "bn.num_batches_tracked" not in model.checkpoint.keys
    assert any("num_batches_tracked" in note for note in model.notes)


def test_tied_weights_that_are_stored_once(tmp_path: Path, code: Path) -> None:
    net = network("Tied")
    state = state_of(net)
    del state["second.weight"]
    model = load(write_folder(tmp_path / "m", state, CONFIG | {"architecture": "nets:Tied", "kwargs": {}}),
                 import_from=code)
    assert same_weights(model.network, net.state_dict())
    assert any("second.weight" in note for note in model.notes)


def test_options_win_over_the_config_and_are_noted(tmp_path: Path, code: Path) -> None:
    folder = write_folder(tmp_path / "m", state_of(network(num_classes=5)))
    model = load(folder, import_from=code, arch_kwargs={"num_classes": 5}, num_classes=5,
                 mean=(0.5, 0.5, 0.5), input_shape=(3, 16, 16))
    assert model.spec.num_classes == 5
    assert model.spec.shape == (3, 16, 16)
    assert len(model.notes) == 3  # the mean is what the config says anyway
    assert any("--input-shape 3,16,16" in note and "3,8,8" in note for note in model.notes)


def test_unknown_fields_of_the_config_are_noted(tmp_path: Path, code: Path) -> None:
    model = load(write_folder(tmp_path / "m", state_of(network()), CONFIG | {"licence": "MIT"}),
                 import_from=code)
    assert any("'licence'" in note for note in model.notes)


def test_truth_and_other_files_of_a_folder_are_not_read(tmp_path: Path, code: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "m", state_of(network()))
    (folder / "truth.json").write_text("{}")
    opened: list[str] = []
    read, opens = Path.read_bytes, io.open
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(str(self)) or read(self))  # type: ignore[func-returns-value]
    monkeypatch.setattr(io, "open", lambda file, *a, **k: opened.append(str(file)) or opens(file, *a, **k))  # type: ignore[func-returns-value]
    load(folder, import_from=code)
    assert {Path(name).name for name in opened if Path(name).parent == folder} == {
        "config.json", "model.safetensors"}


def test_from_module_is_a_private_copy() -> None:
    net = network().half().train()
    spec = InputSpec((3, 8, 8), 3, (0.5,) * 3, (0.25,) * 3)
    model = from_module(net, spec)
    assert model.checkpoint is None
    assert model.spec is spec
    assert not model.network.training
    assert next(model.network.parameters()).dtype == torch.float32
    next(iter(model.network.parameters())).data.zero_()
    assert net.training
    assert next(net.parameters()).dtype == torch.float16
    assert next(net.parameters()).any()


@pytest.mark.parametrize("extra", range(128))
def test_any_header_length_of_safetensors_is_recognised(extra: int) -> None:
    """512 to 1535 bytes begin like a pickle of protocol 2 to 5."""
    data = FORMATS["safetensors"].encode({"w": torch.zeros(1)}, {"pad": "x" * (448 + 8 * extra)})
    assert recognise(data, "w") == "safetensors"


def test_public_name_and_registry() -> None:
    assert deepsanitizer.load is load
    suffixes = [suffix for form in FORMATS.values() for suffix in form.suffixes]
    assert len(suffixes) == len(set(suffixes))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_what_it_encodes_and_recognises_it(name: str) -> None:
    form = next(form for key, form in FORMATS.items() if key == name)
    state = state_of(network(), torch.bfloat16)
    data = form.encode(state, {})
    assert recognise(data, "w") == name
    back = form.read(data, "w").tensors
    assert {key: (value.dtype, value.tolist()) for key, value in back.items()} == {
        key: (value.dtype, value.tolist()) for key, value in state.items()}
