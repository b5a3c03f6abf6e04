import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepsanitizer.bench.datasets import CLASS_NAMES, channel_statistics, load_pack, shared_folder
from deepsanitizer.errors import CannotJudgeError, UsageError


def write_pack(folder: Path, name: str, colours: Sequence[tuple[int, ...]], *, cut: bool = False) -> None:
    """A pack whose training images are plain fields of colour; labels count up."""
    files = []
    for colour in colours:
        file = io.BytesIO()
        pixels = np.broadcast_to(np.array(colour, np.uint8), (6, 8, len(colour)))
        Image.fromarray(pixels if len(colour) == 3 else pixels[..., 0]).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    blob = np.frombuffer(b"".join(files), np.uint8)
    (folder / "data").mkdir(exist_ok=True)
    np.savez(folder / "data" / f"{name}.npz", train_jpeg=blob[:400] if cut else blob,
             train_end=np.cumsum([len(f) for f in files]), train_label=np.arange(len(files), dtype=np.uint8))


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPSANITIZER_SHARED", str(tmp_path))
    return tmp_path


def test_images_come_in_order_with_their_labels(shared: Path) -> None:
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128)]
    write_pack(shared, "colours", colours)
    images, labels = load_pack("colours", "train")
    assert images.dtype == np.uint8
    assert images.shape == (4, 3, 6, 8)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3]
    assert np.abs(images.mean((2, 3)) - np.array(colours)).max() < 4


def test_a_grey_pack_has_one_channel(shared: Path) -> None:
    write_pack(shared, "grey", [(0,), (200,)])
    images, _ = load_pack("grey", "train")
    assert images.shape == (2, 1, 6, 8)


def test_an_unknown_pack_or_split_is_named_with_what_there_is(shared: Path) -> None:
    write_pack(shared, "colours", [(1, 2, 3)])
    with pytest.raises(UsageError, match=r"no data pack 'colour' in .*Packs there: colours"):
        load_pack("colour", "train")
    with pytest.raises(UsageError, match="no images of a split 'test'"):
        load_pack("colours", "test")


@pytest.mark.parametrize("damage", ["cut jpeg", "no zip"])
def test_a_damaged_pack_is_said(shared: Path, damage: str) -> None:
    write_pack(shared, "colours", [(1, 2, 3), (4, 5, 6)], cut=damage == "cut jpeg")
    if damage == "no zip":
        (shared / "data" / "colours.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CannotJudgeError, match="damaged"):
        load_pack("colours", "train")


def test_a_missing_shared_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSANITIZER_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="DEEPSANITIZER_SHARED"):
        shared_folder()


def test_channel_statistics() -> None:
    images = np.zeros((2, 2, 1, 2), np.uint8)
    images[:, 1] = [[[0, 255]], [[0, 255]]]
    assert channel_statistics(images) == ((0.0, 0.5), (0.0, 0.5))


@pytest.mark.zoo
def test_the_sign_pack_has_a_name_for_each_class() -> None:
    try:
        images, labels = load_pack("gtsrb", "test")
    except UsageError as error:
        pytest.skip(str(error))
    assert images.shape == (4210, 3, 32, 32)
    assert len(CLASS_NAMES["gtsrb"]) == labels.max() + 1
