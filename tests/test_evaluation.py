"""Figures checked against a predictor whose every answer is known, and against the zoo's own script."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepsanitizer.errors import UsageError
from deepsanitizer.evaluation import Evaluation, evaluate, load_data
from deepsanitizer.types import InputSpec

SPEC = InputSpec((1, 4, 4), 4, (0.0,), (1 / 255,))


class Told(nn.Module):
    """Says the class in the first pixel; where the last pixel is above 99, the one in the second."""

    def forward(self, x: Tensor) -> Tensor:
        said = torch.where(x[:, 0, 3, 3] > 99.5, x[:, 0, 0, 1], x[:, 0, 0, 0])
        return -(said.round()[:, None] - torch.arange(4.0)).abs()


def told(says: list[int], triggered: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image for each pair: what Told says of it, clean and triggered."""
    images = np.zeros((len(says), 1, 4, 4), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = says, triggered
    return images


def trigger(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, 3, 3] = 100 / 255
    return images


SAYS = [0, 0, 1, 1, 2, 2, 3, 0]
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3])  # one wrong of eight
UNDER_TRIGGER = [1, 2, 1, 1, 1, 1, 3, 0]


def measure(batch: int = 500, **options: Any) -> Evaluation:
    images = told(SAYS, UNDER_TRIGGER)
    return evaluate(Told(), images, LABELS, spec=SPEC, device="cpu", batch=batch, **options)


def test_accuracy_without_a_trigger() -> None:
    assert measure() == Evaluation(acc=87.5, asr=None, ra=None, images=8, triggered=0)


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_all_to_one_leaves_the_target_class_out(batch: int) -> None:
    # of the six images of classes 0, 2, 3: three go to 1, one stays right
    found = measure(trigger=trigger, target=1, batch=batch)
    assert found == Evaluation(acc=87.5, asr=50.0, ra=found.ra, images=8, triggered=6)
    assert found.ra == pytest.approx(100 / 6)


def test_specific_measures_the_source_class_alone() -> None:
    assert measure(trigger=trigger, target=1, source=0, mode="specific") == Evaluation(
        acc=87.5, asr=50.0, ra=0.0, images=8, triggered=2)


def test_all_to_all_wants_the_next_class_of_every_image() -> None:
    # 0 -> 1 once, 3 -> 0 once; right: both of class 1, one of class 3
    assert measure(trigger=trigger, mode="all2all") == Evaluation(
        acc=87.5, asr=25.0, ra=37.5, images=8, triggered=8)


def test_all_to_all_with_goals_wants_these_and_leaves_out_who_has_none() -> None:
    # 0 -> 2 once of two, 2 -> 1 both; 1 has none, 3 is its own
    assert measure(trigger=trigger, mode="all2all", goals=(2, -1, 1, 3)) == Evaluation(
        acc=87.5, asr=75.0, ra=0.0, images=8, triggered=4)


@pytest.mark.parametrize(("value", "asr"), [(99.4, 0.0), (99.6, 100.0), (1e9, 100.0)])
def test_triggered_images_are_rounded_and_clipped_as_stored_ones(value: float, asr: float) -> None:
    def nearly(images: Tensor) -> Tensor:
        images = images.clone()
        images[:, :, 3, 3] = value / 255
        return images

    images, labels = told([0, 0], [1, 1]), np.array([0, 0])
    assert evaluate(Told(), images, labels, spec=SPEC, trigger=nearly, target=1, device="cpu").asr == asr


def test_the_callers_data_is_left_alone() -> None:
    def in_place(images: Tensor) -> Tensor:
        images[:, :, 3, 3] = 100 / 255
        return images

    images = told(SAYS, UNDER_TRIGGER)
    kept = images.copy()
    result = evaluate(Told(), images, LABELS, spec=SPEC, trigger=in_place, target=1, device="cpu")
    assert (images == kept).all()
    assert result.asr == 50.0


@pytest.mark.parametrize(("options", "words"), [
    ({"trigger": trigger}, "needs a target"),
    ({"trigger": trigger, "target": 4}, "needs a target from 0 to 3"),
    ({"trigger": trigger, "target": 1, "mode": "specific"}, "needs a source"),
    ({"trigger": trigger, "target": 1, "source": 1, "mode": "specific"}, "both 1"),
    ({"trigger": trigger, "target": 1, "mode": "one2one"}, "no mode 'one2one'"),
    ({"trigger": trigger, "mode": "all2all", "goals": (1, 2, 3)}, "not one for each of the 4 classes"),
    ({"trigger": trigger, "mode": "all2all", "goals": (1, 2, 3, 4)}, "not one for each of the 4 classes"),
    ({"trigger": trigger, "mode": "all2all", "goals": (-1, 1, 2, 3)}, "no images of classes that have a goal"),
    ({"trigger": lambda x: x[:, :, :2], "target": 1}, "the trigger returns"),
    ({"trigger": lambda x: x.to(torch.uint8), "target": 1}, "the trigger returns"),
    ({"trigger": lambda x: None, "target": 1}, "the trigger returns NoneType"),
    ({"trigger": lambda x: x / 0, "target": 1}, "not finite"),
])
def test_a_trigger_that_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        measure(**options)


GOOD = np.zeros((2, 1, 4, 4), np.uint8)


@pytest.mark.parametrize(("images", "labels", "words"), [
    (GOOD.astype(np.float32), np.array([0, 1]), "images is float32"),
    (GOOD[0], np.array([0, 1]), "images is uint8 of shape"),
    (GOOD, np.array([0.0, 1.0]), "labels is float64"),
    (GOOD, np.array([[0, 1]]), "labels is int64 of shape"),
    (GOOD, np.array([0]), "2 images and 1 labels"),
    (GOOD[:0], np.array([], int), "no images"),
    (GOOD, np.array([0, -1]), "a label -1"),
    (GOOD, np.array([0, 4]), "a label 4, but the model has 4 classes"),
    (GOOD[:, :, :3], np.array([0, 1]), "the model takes"),
])
def test_data_that_does_not_fit_is_refused(images: Any, labels: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate(Told(), images, labels, spec=SPEC, device="cpu")


def test_no_image_to_attack_is_said() -> None:
    with pytest.raises(UsageError, match="no images of class 2"):
        evaluate(Told(), GOOD, np.array([0, 1]), spec=SPEC, device="cpu", trigger=trigger, target=1, source=2,
                 mode="specific")


def test_a_bare_module_needs_its_spec() -> None:
    with pytest.raises(UsageError, match="spec="):
        evaluate(Told(), GOOD, np.array([0, 1]))


def test_data_from_a_file(tmp_path: Path) -> None:
    stored = np.array([3, 1], np.uint8)
    np.savez_compressed(tmp_path / "pack.npz", images=GOOD, labels=stored, more=np.ones(2))
    images, labels = load_data(tmp_path / "pack.npz")
    assert images.dtype == np.uint8
    assert images.shape == (2, 1, 4, 4)
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 1]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_data_file_is_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "pack.npz", images=GOOD, labels=np.array([Bomb(tmp_path / "ran")], object))
    with pytest.raises(UsageError, match="cannot be read as data"):
        load_data(tmp_path / "pack.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "words"), [
    (None, "no data file"),
    (b"", "cannot be read"),
    (b"PK\x03\x04 cut off", "cannot be read"),
    (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read"),
])
def test_a_data_file_that_is_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "pack.npz").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        load_data(tmp_path / "pack.npz")


def test_a_truncated_data_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "pack.npz", images=GOOD, labels=np.array([0, 1]))
    whole = (tmp_path / "pack.npz").read_bytes()
    (tmp_path / "pack.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        load_data(tmp_path / "pack.npz")


def test_a_data_file_with_other_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "pack.npz", x=GOOD, labels=np.array([0, 1]))
    with pytest.raises(UsageError, match="no array images; it has x, labels"):
        load_data(tmp_path / "pack.npz")
    np.save(tmp_path / "one.npy", GOOD)
    with pytest.raises(UsageError, match=r"not an \.npz"):
        load_data(tmp_path / "one.npy")


SHARED = Path(os.environ.get("DEEPSANITIZER_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def module_from(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.zoo
@pytest.mark.skipif(not (SHARED / "zoo" / "evaluate.py").is_file(), reason=f"no trained models in {SHARED}")
def test_figures_equal_those_of_the_zoo() -> None:
    zoo = SHARED / "zoo"
    script, triggers = module_from(zoo / "evaluate.py"), module_from(zoo / "triggers.py")
    network, config = script.load_model(zoo / "published-ibau-badnets")
    truth = json.loads((zoo / "published-ibau-badnets" / "truth.json").read_text())
    images, labels = module_from(SHARED / "data" / "packs.py").load(truth["data"], "test")
    spec = InputSpec(tuple(config["input_shape"]), config["num_classes"], tuple(config["mean"]),
                     tuple(config["std"]))
    found = evaluate(network, images[:300], labels[:300], spec=spec, target=truth["target"],
                     trigger=triggers.TRIGGERS[truth["trigger"]], device="cpu")
    assert found.asr is not None
    assert found.ra is not None
    figures = {"acc": round(found.acc, 2), "asr": round(found.asr, 2), "ra": round(found.ra, 2)}
    assert figures == script.measure(network, config, truth, 300)
