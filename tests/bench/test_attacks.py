from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepsanitizer.bench.attacks import ATTACKS, Attack, Blend, Grating, Patch, Poison, Quantise, Tint, Warp, poison
from deepsanitizer.bench.attacks.attack import stamp
from deepsanitizer.bench.attacks.blend import blotches
from deepsanitizer.errors import UsageError

TABLE: dict[str, list[Callable[[], Attack]]] = {
    "patch": [Patch, lambda: Patch(size=1, top=0, left=0, pattern="white"), lambda: Patch(pattern="noise")],
    "blend": [Blend, lambda: Blend(alpha=1.0, seed=9)],
    "grating": [Grating, lambda: Grating(amplitude=0.5, down=2.5, right=0.0, phase=1.0)],
    "quantise": [Quantise, lambda: Quantise(levels=2)],
    "tint": [Tint, lambda: Tint(contrast=0.2, tint=0.5, vignette=1.0, seed=4)],
    "warp": [Warp, lambda: Warp(pixels=5.0, cells=3, seed=2)],
}
ROWS = [(name, make) for name, makes in TABLE.items() for make in makes]


def test_every_attack_is_in_the_table() -> None:
    assert set(TABLE) == set(ATTACKS)


@pytest.mark.parametrize(("name", "make"), ROWS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 12, 20)])
def test_an_attack_gives_images_and_leaves_its_input(name: str, make: Callable[[], Attack],
                                                     shape: tuple[int, ...]) -> None:
    attack = make()
    assert isinstance(attack, ATTACKS[name])
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    stamped = attack.apply(images)
    assert torch.equal(images, kept)
    assert stamped.shape == images.shape
    assert stamped.dtype == images.dtype
    assert 0 <= stamped.min() <= stamped.max() <= 1
    assert not torch.equal(stamped, images)
    assert torch.equal(stamped, make().apply(images))  # the same again
    assert torch.equal(stamped[2:3], attack.apply(images[2:3]))  # each image for itself


@pytest.mark.parametrize(("name", "make"), ROWS)
def test_parameters_are_frozen(name: str, make: Callable[[], Any]) -> None:
    attack = make()
    with pytest.raises(FrozenInstanceError):
        setattr(attack, fields(attack)[0].name, 3)


def test_quantised_channels_have_so_many_values() -> None:
    images = torch.linspace(0, 1, 3 * 256).view(1, 3, 16, 16)
    changed = Quantise(levels=5).apply(images)
    assert changed.unique().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (changed - images).abs().max() <= 0.125 + 1e-6
    with pytest.raises(UsageError, match="at least two"):
        Quantise(levels=1).apply(images)


def test_a_patch_changes_its_place_alone() -> None:
    images = torch.full((2, 3, 10, 12), 0.5)
    changed = (Patch(size=3, top=-4, left=2).apply(images) != images).any(1).any(0).nonzero()
    assert changed.min(0).values.tolist() == [6, 2]
    assert changed.max(0).values.tolist() == [8, 4]
    assert len(changed) == 9


def test_a_blend_moves_each_pixel_by_at_most_alpha_towards_its_pattern() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    change = Blend(alpha=0.2, seed=4).apply(images) - images
    assert change.abs().max() <= 0.2
    assert torch.allclose(change, 0.2 * (blotches(3, 16, 16, seed=4) - images), atol=1e-6)


def test_a_grating_has_one_frequency() -> None:
    grey = torch.full((1, 1, 32, 32), 0.5)
    spectrum = torch.fft.rfft2(Grating(amplitude=0.1, down=3, right=5).apply(grey)[0, 0] - 0.5).abs()
    assert spectrum.argmax() == 3 * 17 + 5
    assert spectrum[3, 5] > 100 * (spectrum.sum() - spectrum[3, 5])


def test_a_warp_moves_pixels_by_no_more_than_told() -> None:
    ramp = torch.linspace(0, 1, 32)
    for images in (ramp.expand(1, 1, 32, 32), ramp.view(-1, 1).expand(1, 1, 32, 32)):
        moved = 31 * (Warp(pixels=1.2).apply(images) - images).abs().max()
        assert 0.3 < moved <= 1.2 + 1e-4


def test_a_tint_on_grey_is_its_offset_in_the_light() -> None:
    grey = torch.full((1, 3, 9, 9), 0.5)
    changed = Tint(contrast=0.5, tint=0.1, vignette=0.4).apply(grey)
    assert (changed[0, :, 4, 4] - 0.5).abs().max().item() == pytest.approx(0.1, abs=1e-5)
    assert (changed[..., 0, 0] / changed[..., 4, 4]).tolist()[0] == pytest.approx([0.6] * 3, abs=1e-5)


def test_a_pattern_depends_on_its_seed_and_survives_storing() -> None:
    pattern = blotches(3, 32, 32, seed=1)
    assert not torch.equal(pattern, blotches(3, 32, 32, seed=2))
    assert torch.equal(pattern, (pattern * 255).round() / 255)
    counts = torch.bincount((pattern * 255).round().long().flatten())
    assert counts[counts > 0].tolist() == pytest.approx([1024] * 3, abs=30)


@pytest.mark.parametrize("attack", [Patch(top=8), Patch(size=0), Patch(left=-11), Blend(alpha=0.0),
                                    Blend(alpha=1.5), Patch(pattern="dots")])  # type: ignore[arg-type]
def test_parameters_that_do_not_fit_are_refused(attack: Attack) -> None:
    with pytest.raises(UsageError):
        attack.apply(torch.rand(1, 3, 10, 10))


def some_data(count: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 4


def run(plan: Poison, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old labels, new labels, whether triggered, and whether changed at all."""
    images, labels = some_data()
    kept = images.clone(), labels.clone()
    new_images, new_labels = poison(images, labels, plan, num_classes=4,
                                    generator=torch.Generator().manual_seed(seed))
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    stamped = stamp(plan.attack, images)
    triggered = (new_images == stamped).flatten(1).all(1)
    changed = (new_images != images).flatten(1).any(1)
    return labels, new_labels, triggered, changed


@settings(max_examples=20, deadline=None)
@given(target=st.integers(0, 3), rate=st.floats(0.02, 0.7), seed=st.integers(0, 99))
def test_all_to_one(target: int, rate: float, seed: int) -> None:
    old, new, triggered, changed = run(Poison(attack=Blend(), target=target, rate=rate), seed)
    assert torch.equal(triggered, changed)
    assert triggered.sum() == round(rate * 200)
    assert not (old[triggered] == target).any()
    assert (new[triggered] == target).all()
    assert torch.equal(new[~triggered], old[~triggered])


def test_specific_with_cover_samples() -> None:
    plan = Poison(attack=Blend(), mode="specific", source=2, target=0, rate=0.1, cover_rate=0.2)
    old, new, triggered, _ = run(plan)
    relabelled = old != new
    assert relabelled.sum() == 20
    assert (old[relabelled] == 2).all()
    assert (new[relabelled] == 0).all()
    cover = triggered & ~relabelled
    assert cover.sum() == 40
    assert not (old[cover] == 2).any()


def test_all_to_all() -> None:
    old, new, triggered, _ = run(Poison(attack=Patch(), mode="all2all", rate=0.5))
    assert triggered.sum() == 100
    assert torch.equal(new[triggered], (old[triggered] + 1) % 4)
    assert torch.equal(new[~triggered], old[~triggered])


@pytest.mark.parametrize(("plan", "words"), [
    ({}, "needs a target"),
    ({"target": 4}, "needs a target"),
    ({"target": 1, "mode": "specific"}, "needs a source"),
    ({"target": 1, "mode": "specific", "source": 1}, "both 1"),
    ({"target": 1, "mode": "all2all"}, "no single target"),
    ({"target": 1, "mode": "other"}, "no mode"),
    ({"target": 1, "rate": 0.0}, "not shares"),
    ({"target": 1, "cover_rate": 0.1}, "cover samples"),
    ({"target": 1, "rate": 0.8}, "at most 0.750"),
    ({"target": 1, "mode": "specific", "source": 0, "rate": 0.3}, "at most 0.250"),
])
def test_plans_that_do_not_fit_are_refused(plan: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(Poison(attack=Blend(), **plan))
