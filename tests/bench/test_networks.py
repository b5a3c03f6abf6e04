"""The networks that are trained for development: sizes, inputs, and that they can be split and relearned."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from deepsanitizer.bench.networks import Plain, SignNet, VggElu, Vit
from deepsanitizer.classifier import classifier_of
from deepsanitizer.repair.projections import projections
from deepsanitizer.split import split
from deepsanitizer.types import Compute, InputSpec

KINDS = [SignNet, VggElu, Plain, Vit]
SPEC = InputSpec((3, 32, 32), 7, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_each_kind(kind: Callable[..., nn.Module]) -> None:
    network = kind(num_classes=7).eval()
    assert 100_000 < sum(p.numel() for p in network.parameters()) < 500_000
    classifier = classifier_of(network, SPEC, Compute(torch.device("cpu"), False))
    parts = split(classifier, "auto")
    assert parts.feature_shape
    with projections(classifier.network) as maps:
        assert len(maps) >= 6


@pytest.mark.parametrize("kind", [VggElu, Plain, Vit])
def test_grey_images_too(kind: Callable[..., nn.Module]) -> None:
    assert kind(num_classes=4, channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 4)
