"""The benches on a planted network and made-up packs: the right figures, and the tool never sees the data."""

import copy
import functools
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
from deepsanitizer.bench import ablations, gallery, layers, reactivation, speed, zoo
from deepsanitizer.bench.attacks import ATTACKS, Patch
from deepsanitizer.classifier import Classifier
from deepsanitizer.curate import curate_features
from deepsanitizer.repair import tune
from deepsanitizer.split import LayerInfo
from deepsanitizer.triggers import FAMILIES
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


@pytest.mark.usefixtures("made_up")
def test_each_part_is_taken_out_in_turn_and_measured(folder: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    tunes: list[int] = []
    does = tune.repair

    def counted(*arguments: Any, **options: Any) -> Classifier:
        tunes.append(1)
        return does(*arguments, **options)

    monkeypatch.setattr(tune, "repair", counted)
    results, names = tmp_path / "results", ["whole", "no tune", "100 dummies", "family held out"]
    results.mkdir()
    ablations.run_model(tmp_path, "one", names, 240, results, "here")
    rows = {row["variant"]: row for row in (json.loads(file.read_text()) for file in results.glob("*.json"))}
    assert set(rows) == set(names)
    assert rows["whole"]["candidate"]["asr"] < rows["whole"]["before"]["asr"] - 50
    assert len(tunes) >= sum(rows[name]["candidate"] is not None for name in names if name != "no tune")
    held = rows["family held out"]
    assert held["family"] != rows["whole"]["family"]
    assert (held["candidate"] is None) == (held["target"] is None) == (held["outcome"] == "unchanged")
    told = ablations.table(list(rows.values()))
    assert told.count("\n") == 3 + len(names)
    assert "1 of 1" in next(line for line in told.splitlines() if line.startswith("| whole"))
    stamp = {file: file.stat().st_mtime_ns for file in results.glob("*.json")}
    ablations.run_model(tmp_path, "one", names, 240, results, "again")
    assert stamp == {file: file.stat().st_mtime_ns for file in results.glob("*.json")}


def test_a_model_left_as_it_was_counts_as_not_removed() -> None:
    row: dict[str, Any] = {"model": "a", "variant": "family held out", "before": {"acc": 90.0, "asr": 99.0},
                           "candidate": None, "verdict": "clean", "target": None, "family": None,
                           "outcome": "unchanged"}
    told = ablations.table([row])
    assert "clean, not repaired" in told
    assert "0 of 1 | 99.0 | 0.00" in told
    row |= {"candidate": {"acc": 80.0, "asr": 1.0}, "verdict": "backdoored", "target": 2, "family": "add"}
    for outcome, after in (("rolled_back", "0 of 1 | 99.0 | 0.00"), ("accepted", "0 of 1 | 1.0 | 10.00")):
        told = ablations.table([row | {"outcome": outcome}])
        assert f"80.0 / 1.0 (add → 2, {outcome.replace('_', ' ')})" in told
        assert after in told


def test_inside_the_dictionary_lacks_one_wave_and_its_neighbours() -> None:
    def waves() -> set[tuple[float, ...]]:
        entries = FAMILIES["grating"].entries
        assert entries is not None
        return set(map(tuple, entries((3, 32, 32))["wave"].tolist()))

    every = waves()
    with ablations.without_entries():
        left = waves()
    assert every - left == {(down, sign * right) for down, sign in ((0, 1), (1, 1), (1, -1)) for right in (5, 6, 7)}
    assert left < every
    assert waves() == every


@pytest.mark.usefixtures("made_up")
def test_the_published_method_is_measured_at_each_layer(folder: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "curate_features", functools.partial(curate_features, steps=20, repeats=2))
    results = tmp_path / "results"
    results.mkdir()
    layers.run_model(tmp_path, "one", 240, results, "here")
    rows = [json.loads(file.read_text()) for file in results.glob("*.json")]
    assert len(rows) >= 3
    assert len({row["layer"] for row in rows}) == len(rows)
    assert all(0 <= row["candidate"]["acc"] <= 100 and row["params_after"] > 0 for row in rows)
    assert layers.table(rows).count("\n") == len(rows) + 2
    shares = [float(line.split("|")[4].strip().rstrip("%")) for line in layers.table(rows).splitlines()[2:]]
    assert shares == sorted(shares)


def test_layers_are_taken_near_the_asked_shares_and_once_each() -> None:
    def info(name: str, before: float, after: float = 0.5, *, valid: bool = True) -> LayerInfo:
        return LayerInfo(name, (4,), valid, "", 1 - after, after, before, 1 - before)

    cuts = [info("a", 0.1), info("b", 0.12), info("b2", 0.12), info("refused", 0.5, valid=False), info("c", 0.6),
            info("last", 1.0, 0.0)]
    assert [layer.name for layer in layers.chosen(cuts, (0.12, 0.5, 0.6, 1.0))] == ["b2", "c"]
    assert layers.chosen([], (0.5,)) == []
