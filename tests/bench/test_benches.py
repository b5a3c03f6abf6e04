"""The benches on a planted network and made-up packs: the right figures, and the tool never sees the data."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import SPEC, Planted, patched, textures
from safetensors.torch import save_file

from deepsanitizer import loading
from deepsanitizer.bench import gallery, reactivation, speed, zoo
from deepsanitizer.bench.attacks import ATTACKS, Patch
from deepsanitizer.types import Loaded

pytestmark = pytest.mark.usefixtures("one_thread")

TRUTH = {"data": "made up", "attack": "patch", "attack_kwargs": {"size": 3, "top": 8, "left": 8}, "mode": "all2one",
         "target": 2, "source": None}


class Corner(Patch):
    """The planted patch, under the name of the project's own."""

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        return patched(images)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack of textures in place of a data pack."""
    def pack(name: str, split: str) -> tuple[Any, Any]:
        assert name == "made up"
        images, labels = textures(300, torch.Generator().manual_seed(5 if split == "train" else 99))
        return (images * 255).round().to(torch.uint8).numpy(), labels.numpy()

    for module in (zoo, reactivation):
        monkeypatch.setattr(module, "load_pack", pack)
    monkeypatch.setitem(ATTACKS, "patch", Corner)


@pytest.fixture
def folder(planted: Callable[[str], Planted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that the loader is spared: it gives the planted network for it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "truth.json").write_text(json.dumps(TRUTH))
    monkeypatch.setattr(loading, "load", lambda path, **options: copy.deepcopy(planted("patch").loaded))
    return tmp_path / "one"


@pytest.mark.usefixtures("made_up")
def test_a_folder_without_a_script_of_its_own_is_measured_here(folder: Path, tmp_path: Path,
                                                                planted: Callable[[str], Planted]) -> None:
    told = zoo.evaluated(tmp_path, "one", None, 240)
    assert told["acc"] > 90
    assert told["asr"] > 95
    state = planted("patch").network.state_dict()
    broken = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in state.items()}
    save_file(broken, str(tmp_path / "w.safetensors"))
    assert zoo.evaluated(tmp_path, "one", tmp_path / "w.safetensors", 240)["acc"] < 30
    assert zoo.truth_of(folder)["trigger"] == "patch"


@pytest.mark.usefixtures("made_up")
def test_a_trojaned_network_stays_trojaned_and_a_clean_one_learns_late(planted: Callable[[str], Planted]) -> None:
    training = reactivation.few("made up", Corner(), 2, count=200, share=0.1, classes=6)
    assert (training[1] == 2).sum() > 200 / 6
    networks = {name: copy.deepcopy(planted(name).network) for name in ("patch", "none")}
    told = dict(reactivation.courses(networks, SPEC, training, "made up", Corner(), 2, images=240))
    assert [len(course) for course in told.values()] == [len(reactivation.AT)] * 2
    assert told["patch"][0].asr is not None
    assert told["patch"][0].asr > 95
    assert told["none"][0].asr is not None
    assert told["none"][0].asr < 20
    assert told["none"][-1].acc > 85


def test_training_is_timed_for_every_batch_and_the_model_stays(planted: Callable[[str], Planted]) -> None:
    network = planted("patch").network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rates = speed.training_rates(Loaded(network, SPEC, None), batches=(8, 16), seconds=0.05)
    assert set(rates) == {8, 16}
    assert all(rate > 0 for rate in rates.values())
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_the_gallery_has_a_row_for_each_model() -> None:
    plain = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    row = gallery.Shown("one: planted patch", plain, patched(plain[None])[0], plain)
    one, two = gallery.drawn([row]), gallery.drawn([row, row])
    assert two.size == (one.size[0], one.size[1] + gallery.SIDE + gallery.FOOT)
    pixels = np.asarray(one)[gallery.HEAD:gallery.HEAD + gallery.SIDE]
    column = gallery.SIDE + gallery.GAP
    dummy, planted_, recovered = (pixels[:, gallery.GAP + k * column:gallery.GAP + k * column + gallery.SIDE]
                                  for k in (0, 1, 3))
    assert np.array_equal(dummy, recovered)
    assert not np.array_equal(dummy, planted_)
