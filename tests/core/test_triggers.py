"""The table of trigger families: shapes, ranges, bounds, gradients, neighbours, files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepsanitizer.errors import UsageError
from deepsanitizer.triggers import FAMILIES, apply_trigger, load_trigger, pattern_of, save_trigger, vary_trigger
from deepsanitizer.types import Trigger

SHAPES = [(3, 16, 16), (1, 28, 20), (3, 9, 14), (4, 12, 12)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(shape: tuple[int, int, int], count: int = 5, seed: int = 1) -> Tensor:
    return torch.rand(count, *shape, generator=rng(seed))


def wild(family: str, groups: int, shape: tuple[int, int, int], seed: int = 0) -> dict[str, Tensor]:
    """Parameters far from the start, where bounds are met."""
    params = FAMILIES[family].init(groups, shape, rng(seed))
    return {name: value + 8 * torch.randn(value.shape, generator=rng(seed + 1)) if value.is_floating_point() else value
            for name, value in params.items()}


def trigger_of(family: str, shape: tuple[int, int, int] = (3, 16, 16), **fields: Any) -> Trigger:
    given: dict[str, Any] = {"target": 1, "source": None, "margin": 2.5} | fields
    return Trigger(family, wild(family, 1, shape), FAMILIES[family].strength, **given)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_apply_gives_a_batch_for_each_transformation(family: str, shape: tuple[int, int, int]) -> None:
    kind, images = FAMILIES[family], images_of(shape)
    strength = torch.tensor([kind.strength, 0.3 * kind.strength, kind.strength])
    for params in (kind.init(3, shape, rng()), wild(family, 3, shape)):
        assert all(len(value) == 3 for value in params.values())
        changed = kind.apply(params, images, strength)
        assert changed.shape == (3, *images.shape)
        assert changed.min() >= -1e-6
        assert changed.max() <= 1 + 1e-6
        # Transformations side by side are the transformations one by one.
        for group in range(3):
            alone = kind.apply({n: v[group:group + 1] for n, v in params.items()}, images, strength[group:group + 1])
            torch.testing.assert_close(changed[group], alone[0], atol=1e-4, rtol=1e-4)  # sums differ by processor


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_strength_is_no_change(family: str, shape: tuple[int, int, int]) -> None:
    images = images_of(shape)
    changed = FAMILIES[family].apply(wild(family, 1, shape), images, torch.zeros(1))
    torch.testing.assert_close(changed[0], images, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(family=st.sampled_from(["add", "blend", "filter"]), share=st.floats(0.01, 2), seed=st.integers(0, 1000))
def test_a_pixel_moves_by_no_more_than_the_strength_allows(family: str, share: float, seed: int) -> None:
    shape, strength = (3, 16, 12), share * FAMILIES[family].strength
    images = images_of(shape, seed=seed)
    change = FAMILIES[family].apply(wild(family, 1, shape, seed), images, torch.tensor([strength]))[0] - images
    # A filter: every entry of its matrix by twice the strength, times 0.5 at most; an offset; a field.
    most = strength * (3 + 1 + 1) if family == "filter" else strength
    assert change.abs().max() <= most + 1e-5


@settings(max_examples=25, deadline=None)
@given(strength=st.floats(0.1, 4), seed=st.integers(0, 1000))
def test_a_warp_moves_by_no_more_than_its_strength(strength: float, seed: int) -> None:
    """On a ramp the change is the displacement; the strength is in pixels of a 32-pixel image."""
    ramp = torch.linspace(0, 31, 32).expand(1, 1, 32, 32)
    for images in (ramp, ramp.transpose(2, 3)):
        moved = FAMILIES["warp"].apply(wild("warp", 1, (1, 32, 32), seed), images / 31, torch.tensor([strength]))
        assert (31 * moved[0] - images).abs().max() <= strength + 1e-3


@settings(max_examples=25, deadline=None)
@given(strength=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_a_patch_covers_no_more_than_its_strength(strength: float, seed: int) -> None:
    white = torch.ones(1, 1, 16, 16)
    params = wild("patch", 1, (1, 16, 16), seed)
    params["picture"] = torch.full_like(params["picture"], -50.0)  # black: what is not white is the mask
    covered = (1 - FAMILIES["patch"].apply(params, white, torch.tensor([strength]))).mean()
    assert covered <= strength + 1e-5


def test_a_patch_at_a_place_changes_nothing_else() -> None:
    params = FAMILIES["place"].init(2, (3, 16, 16), rng())
    params["corner"] = torch.tensor([[0, 3], [10, 10]])
    images = images_of((3, 16, 16))
    changed = (FAMILIES["place"].apply(params, images, torch.ones(2)) != images).any(2)
    for group, (top, left) in enumerate(((0, 3), (10, 10))):
        window = torch.zeros(16, 16, dtype=torch.bool)
        window[top:top + 6, left:left + 6] = True
        assert changed[group, :, window].all()
        assert not changed[group, :, ~window].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_free_parameter(family: str) -> None:
    shape = (3, 16, 16)
    params = FAMILIES[family].init(2, shape, rng())
    free = [value.requires_grad_() for value in params.values() if value.is_floating_point()]
    assert free
    images = 0.3 + 0.4 * images_of(shape)
    weight = torch.rand(images.shape, generator=rng(3))
    changed = FAMILIES[family].apply(params, images, torch.full((2,), FAMILIES[family].strength))
    for value in torch.autograd.grad((changed * weight).sum(), free):
        assert value.isfinite().all()
        assert all(part.abs().max() > 0 for part in value)  # of both groups


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_are_images_drawn_from_the_generator(family: str, shape: tuple[int, int, int]) -> None:
    images, params, kind = images_of(shape, 8), wild(family, 1, shape), FAMILIES[family]
    strength = kind.strength * torch.linspace(0.3, 1, 8)
    for seed in range(6):
        varied = kind.vary(params, images, strength, rng(seed))
        assert varied.shape == images.shape
        assert varied.isfinite().all()
        assert varied.min() >= -1e-6
        assert varied.max() <= 1 + 1e-6
        assert varied.equal(kind.vary(params, images, strength, rng(seed)))
    assert images.equal(images_of(shape, 8))  # left as they were


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trigger_is_varied_or_only_weakened(family: str) -> None:
    trigger, images = trigger_of(family), images_of((3, 16, 16))
    for varied in (True, False):
        changed = vary_trigger(trigger, images, rng(), weakest=0.5, varied=varied)
        assert changed.shape == images.shape
        assert not changed.equal(images)
    full = vary_trigger(trigger, images, rng(), weakest=1.0, varied=False)
    if family != "place":
        torch.testing.assert_close(full, apply_trigger(trigger, images))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_the_trigger(family: str, shape: tuple[int, int, int]) -> None:
    picture = pattern_of(trigger_of(family, shape), shape)
    assert picture.shape == shape
    assert picture.isfinite().all()
    assert 0 <= picture.min() < picture.max() <= 1


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no trigger family 'sound'.*add"):
        apply_trigger(Trigger("sound", {}, 1.0, 0, None, 0.0), images_of((3, 8, 8)))


@pytest.mark.parametrize("fields", [{}, {"target": None, "goals": (1, 2, 0, -1)}, {"source": 3}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trigger_file_gives_the_trigger_back(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    trigger = trigger_of(family, **fields)
    save_trigger(trigger, tmp_path / "trigger.safetensors")
    read = load_trigger(tmp_path / "trigger.safetensors")
    assert {name: value.tolist() for name, value in read.params.items()} == {
        name: value.tolist() for name, value in trigger.params.items()}
    for name in ("family", "strength", "target", "source", "margin", "goals"):
        assert getattr(read, name) == getattr(trigger, name)
    images = images_of((3, 16, 16))
    assert apply_trigger(read, images).equal(apply_trigger(trigger, images))


def test_what_is_no_trigger_file_is_refused(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "other.safetensors"
    save_trigger(trigger_of("add"), whole)
    with pytest.raises(UsageError, match="there is no trigger file"):
        load_trigger(tmp_path / "missing.safetensors")
    with pytest.raises(UsageError, match="there is no trigger file"):
        load_trigger(tmp_path)
    for content in (b"", b"not safetensors", whole.read_bytes()[:-40], whole.read_bytes()[:30]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="not a trigger file"):
            load_trigger(path)


FACTS = {"family": "add", "strength": 0.1, "target": 1, "source": None, "margin": 1.0, "goals": None}


@pytest.mark.parametrize("metadata", [
    None, {"format": "pt"}, {"format": "deepsanitizer-trigger/2", "trigger": json.dumps(FACTS)},
    {"format": "deepsanitizer-trigger/1"}, {"format": "deepsanitizer-trigger/1", "trigger": "{"},
    {"format": "deepsanitizer-trigger/1", "trigger": "[]"}, {"format": "deepsanitizer-trigger/1", "trigger": "{}"},
    {"format": "deepsanitizer-trigger/1", "trigger": json.dumps(FACTS | {"goals": 3})},
])
def test_other_metadata_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"pattern": torch.zeros(1, 3, 8, 8)}, str(path), metadata=metadata)
    with pytest.raises(UsageError, match="not a trigger file"):
        load_trigger(path)


def test_a_square_is_where_it_says_and_its_neighbours_are_a_pixel_away() -> None:
    kind, images = FAMILIES["square"], torch.full((40, 3, 12, 12), 0.5)
    params = {"colour": torch.tensor([[1.0, 0.0, 1.0]]), "corner": torch.tensor([[3, 5]]), "size": torch.tensor([[4]])}
    there = torch.zeros(12, 12, dtype=torch.bool)
    there[3:7, 5:9] = True
    changed = kind.apply(params, images, torch.ones(1))[0]
    assert torch.equal((changed != images).all(1), there.expand(40, -1, -1))
    moved = kind.vary(params, images, torch.ones(40), rng()) != images
    assert not moved[:, :, :2].any()
    assert moved[:, :, 4:6, 6:8].any(1).all()
    assert (moved.any(1) != there).flatten(1).any(1).float().mean() > 0.3
    every = kind.entries
    assert every is not None
    covered = torch.zeros(12, 12)
    for at, size in zip(every((3, 12, 12))["corner"], every((3, 12, 12))["size"], strict=True):
        covered[at[0]:at[0] + size, at[1]:at[1] + size] += 1
    assert (covered == covered[0, 0]).all()


def test_tones_are_linear_between_their_knots() -> None:
    ramp = torch.linspace(0, 1, 33).expand(1, 3, 1, 33)
    curve = torch.tensor([0.2, 0.0, -0.1, 0.1, 0.0]).expand(1, 3, 5)
    changed = FAMILIES["tone"].apply({"matrix": torch.zeros(1, 3, 3), "curve": curve}, ramp, torch.ones(1))[0]
    knots = np.linspace(0, 1, 5)
    expected = np.interp(np.linspace(0, 1, 33), knots, knots + curve[0, 0].numpy())
    assert np.allclose(changed.numpy(), expected, atol=1e-6)
    entries = FAMILIES["tone"].entries
    assert entries is not None
    for shape, count in (((3, 8, 8), 23), ((1, 8, 8), 7)):
        images = images_of(shape, 4)
        changed = FAMILIES["tone"].apply(entries(shape), images, torch.ones(count))
        assert changed.shape == (count, 4, *shape)
        assert ((changed - images).abs().flatten(1).amax(1) > 0.05).all()  # each does something of its own
        assert len(changed.flatten(1).unique(dim=0)) == count
