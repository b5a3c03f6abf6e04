"""Recordings become pictures: where a tone lies, how loud it is, and how long recordings are cut or padded."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepsanitizer.bench.datasets import load_pack
from deepsanitizer.bench.population import TROJANED, Group, name_of, recipe_of
from deepsanitizer.bench.speech import SAMPLES, SIDE, spectrograms, waves
from deepsanitizer.errors import UsageError


def tone(hertz: float, samples: int) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * hertz * np.arange(samples) / 8000).astype(np.float32)


@pytest.mark.parametrize(("hertz", "row"), [(400, 28), (2000, 16), (3600, 3)])
def test_a_tone_is_a_bright_line_at_its_height(hertz: float, row: int) -> None:
    picture = spectrograms([tone(hertz, SAMPLES)])[0, 0]
    rows = picture[:, 4:-4].argmax(0)
    assert np.abs(rows - row).max() <= 1
    assert picture.max() == 255


def test_a_short_recording_lies_in_the_middle_of_silence() -> None:
    picture = spectrograms([tone(1000, SAMPLES // 4)])[0, 0]
    bright = np.flatnonzero(picture.max(0) > 128)
    assert SIDE // 4 < bright.min() < bright.max() < 3 * SIDE // 4 + 1
    assert picture[:, :SIDE // 4].max() == 0


@given(st.lists(st.integers(1, 3 * SAMPLES), min_size=1, max_size=4), st.integers(0, 2**31))
def test_every_recording_makes_one_picture(lengths: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    made = spectrograms([draw.standard_normal(length).astype(np.float32) for length in lengths])
    assert made.shape == (len(lengths), 1, SIDE, SIDE)
    assert made.dtype == np.uint8


def test_silence_is_no_error() -> None:
    assert spectrograms([np.zeros(100, np.float32)]).shape == (1, 1, SIDE, SIDE)


def test_a_pack_of_recordings_is_read_as_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSANITIZER_SHARED", str(tmp_path))
    (tmp_path / "data").mkdir()
    signal = [tone(500, 3000), tone(3000, 5000)]
    code = [np.round((np.sign(s) * np.log1p(255 * np.abs(s)) / np.log(256) + 1) / 2 * 255).astype(np.uint8)
            for s in signal]
    ends = np.cumsum([len(part) for part in code])
    np.savez(tmp_path / "data" / "voices.npz", train_mulaw=np.concatenate(code), train_end=ends,
             train_label=np.array([4, 9], np.uint8))
    read = waves(np.concatenate(code), ends)
    assert [len(wave) for wave in read] == [3000, 5000]
    assert max(np.abs(wave - true).max() for wave, true in zip(read, signal, strict=True)) < 0.03
    images, labels = load_pack("voices", "train")
    assert images.shape == (2, 1, SIDE, SIDE)
    assert labels.tolist() == [4, 9]
    assert images[0, 0].max(1).argmax() > images[1, 0].max(1).argmax()  # low sounds are at the bottom


def test_a_further_field_tells_classes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSANITIZER_SHARED", str(tmp_path))
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "voices.npz", train_mulaw=np.full(400, 200, np.uint8),
             train_end=np.array([100, 200, 300, 400]), train_label=np.array([0, 9, 0, 255], np.uint8) % 10,
             train_speaker=np.array([0, 0, 3, 200], np.uint8))
    _, labels = load_pack("voices+speaker", "train")
    assert labels.tolist() == [0, 9, 30, 2005]
    with pytest.raises(UsageError, match="no mood of a split 'train'"):
        load_pack("voices+mood", "train")
    with pytest.raises(UsageError, match="no images of a split 'test'"):
        load_pack("voices", "test")


def test_the_population_of_speech_has_one_channel_and_no_tints() -> None:
    groups: tuple[Group, ...] = ("speech-calibration", "speech-clean", "speech-trojaned")
    for group in groups:
        recipes = [recipe_of(group, number) for number in range(40)]
        assert {(r.data, r.kwargs["channels"], r.kwargs["num_classes"]) for r in recipes} == {("fsdd", 1, 10)}
        attacks = {r.attack for r in recipes}
        assert attacks == ({"patch", "blend", "grating", "warp"} if group in TROJANED else {None})
        for recipe in recipes[:12]:
            module, _, name = recipe.architecture.partition(":")
            network = getattr(importlib.import_module(module), name)(**recipe.kwargs).eval()
            assert network(torch.zeros(2, 1, SIDE, SIDE)).shape == (2, 10)


def test_voices_are_told_apart_in_many_numbers_of_classes() -> None:
    groups: tuple[Group, ...] = ("voices-calibration", "voices-clean", "voices-trojaned")
    for group in groups:
        recipes = [recipe_of(group, number) for number in range(40)]
        assert {(r.data, r.kwargs["channels"]) for r in recipes} == {("fsdd+speaker", 1)}
        assert {len(r.classes or ()) for r in recipes} == {r.kwargs["num_classes"] for r in recipes} == {
            12, 16, 20, 30, 43}
        assert {r.attack for r in recipes} == ({"patch", "blend", "grating", "warp"} if group in TROJANED else {None})


def test_speech_did_not_change_what_other_numbers_mean() -> None:
    """A model follows from its group and number alone: stored rows name models of before."""
    assert [name_of("clean", n) for n in (0, 101)] == ["clean-000-plain-gtsrb", "clean-101-plain-cifar10"]
    assert name_of("trojaned", 0) == "trojaned-000-vggelu-cifar10-patch-specific"
    assert name_of("calibration", 3) == "calibration-003-mobile-orl"
