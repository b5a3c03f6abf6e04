"""Probes, and networks that answer to what is like a trigger."""

import pytest
import torch
from helpers.planted import CLASSES, CPU, SPEC, TARGET
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepsanitizer.classifier import Classifier, classifier_of, logits_of
from deepsanitizer.search import PROBES
from deepsanitizer.signals.dictionary import probe
from deepsanitizer.triggers import FAMILIES, apply_trigger
from deepsanitizer.types import Dummies, Run


def shown(kind: str, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What each probe of a kind makes of images: (G, B, C, H, W)."""
    channels, height, width = images.shape[1:]
    probes = PROBES[kind]((channels, height, width), torch.Generator().manual_seed(seed))
    count = len(next(iter(probes.params.values())))
    return FAMILIES[probes.family].apply(probes.params, images, torch.full((count,), probes.strength))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(PROBES)), st.sampled_from((1, 3, 4)), st.integers(8, 40), st.integers(8, 40))
def test_probes_of_any_kind_fit_any_image(kind: str, channels: int, height: int, width: int) -> None:
    images = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    changed = shown(kind, images)
    assert changed.shape[1:] == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(changed, shown(kind, images))


def test_stamps_cover_the_image_in_white_and_both_chequers() -> None:
    images = torch.full((1, 3, 32, 32), 0.5)
    changed = shown("stamps", images)[:, 0]
    touched = (changed != 0.5)
    assert touched.any(0).all()
    assert (touched.sum((2, 3)) == 25).all()
    inside = changed[:3][touched[:3]].view(3, 3, 25)
    assert (inside - torch.stack([torch.ones(25), torch.arange(25) % 2, 1 - torch.arange(25) % 2]
                                 )[:, None]).abs().max() < 1e-3


def test_tints_are_contrasts_with_offsets() -> None:
    images = torch.tensor([0.3, 0.7]).view(2, 1, 1, 1).expand(-1, 3, 16, 16)
    changed = shown("tints", images).mean((3, 4))
    assert len(changed) == 81
    contrasts = (changed[:, 1] - changed[:, 0]) / 0.4
    assert contrasts.unflatten(0, (3, 27)).sub(torch.tensor([1.0, 0.7, 0.5]).view(3, 1, 1)).abs().max() < 2e-3
    offsets = changed.mean(1) - 0.5
    assert sorted({round(value, 2) for value in offsets.flatten().tolist()}) == [-0.14, 0.0, 0.14]
    assert len({tuple(row) for row in offsets.mul(100).round().tolist()}) == 27


def test_warps_follow_from_the_generator() -> None:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = shown("random warps", images), shown("random warps", images, seed=1)
    assert len(one) == 60
    assert ((one - images).abs().mean((1, 2, 3, 4)) > 0.05).all()
    assert not torch.equal(one, other)


class Answers(nn.Module):
    """Classes of brightness; `TARGET` answers to what a trigger leaves in an image: hard edges at one place, or a
    colour all over it.
    """

    def __init__(self, to: str | None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(CLASSES, SPEC.shape[1] * SPEC.shape[2], generator=generator))
        self.to_ = to

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1)
        told = torch.zeros(len(images))
        if self.to_ == "edges":
            told = (grey[:, 8, 8] - grey[:, 8, 9] - grey[:, 9, 8] + grey[:, 9, 9] - 0.5).relu()
        if self.to_ == "colour":
            told = (0.5 * (images[:, 0] + images[:, 2] - 2 * images[:, 1]).mean((1, 2)) - 0.05).relu()
        spot = 60 * told[:, None] * nn.functional.one_hot(torch.tensor(TARGET), CLASSES)
        return grey.flatten(1) @ self.weights.T + spot


def answering(to: str | None) -> tuple[Classifier, Dummies]:
    classifier = classifier_of(Answers(to), SPEC, CPU)
    grey = torch.rand(60, 1, *SPEC.shape[1:], generator=torch.Generator().manual_seed(1)).repeat(1, 3, 1, 1)
    return classifier, Dummies(grey, logits_of(classifier, grey), "grey")


@pytest.mark.parametrize(("kind", "to"), [("stamps", "edges"), ("tints", "colour")])
def test_a_network_that_answers_to_the_like_of_a_trigger_is_told(kind: str, to: str) -> None:
    classifier, dummies = answering(to)
    found = probe(classifier, dummies, Run(CPU, 0), kind=kind)
    result = found.result
    assert (result.name, result.kind, result.target, result.applicable) == (kind, "all2one", TARGET, True)
    assert result.statistic is not None
    assert result.statistic > 1
    assert (logits_of(classifier, apply_trigger(found.triggers[0], dummies.images)).argmax(1) == TARGET
            ).float().mean() > 0.9
    clean, dummies = answering(None)
    ordinary = probe(clean, dummies, Run(CPU, 0), kind=kind).result.statistic
    assert ordinary is not None
    assert ordinary < 0.4
