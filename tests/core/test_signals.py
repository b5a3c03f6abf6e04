"""The signals one by one: on planted networks, against independent references, and what does not apply."""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from helpers.planted import CLASSES, CPU, Attack, Planted
from torch import nn

from deepsanitizer.classifier import Classifier
from deepsanitizer.curate import curate_features
from deepsanitizer.signals import SCREEN_DUMMIES, bounded_gap, freeeagle, head_weights, lipschitz, mm_bd, screen
from deepsanitizer.signals.outlier import not_applicable, of_classes, quartile_score
from deepsanitizer.split import split
from deepsanitizer.types import Dummies, Run

PlantedOf: TypeAlias = Callable[[Attack], Planted]
DummiesOf: TypeAlias = Callable[[Attack], Dummies]


def test_freeeagle_gives_what_the_published_procedure_gives_class_by_class(planted: PlantedOf) -> None:
    """One class after the other, written from the description: same features, same matrix, same score."""
    parts = split(planted("patch").classifier(), "auto")
    start = torch.rand(CLASSES, *parts.feature_shape, generator=Run(CPU).generator("feature dummies"))
    rows = []
    for label in range(CLASSES):
        feature = start[label:label + 1].clone().requires_grad_(True)
        optimiser = torch.optim.Adam([feature], lr=1e-2, weight_decay=5e-3)
        for _ in range(60):
            optimiser.zero_grad()
            F.cross_entropy(parts.head(feature), torch.tensor([label])).backward()
            optimiser.step()
            if parts.nonnegative:
                feature.data.clamp_(min=0)
        with torch.no_grad():
            row = parts.head(feature).softmax(1)[0]
        row[label] = 0
        rows.append(row)
    expected = torch.stack(rows)
    found = freeeagle.posterior_matrix(parts, curate_features(parts, Run(CPU), repeats=1, steps=60))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    told = freeeagle.detect(parts, Run(CPU), steps=60).result
    means = (expected.sum(0) / (CLASSES - 1)).tolist()
    assert told.statistic == pytest.approx(quartile_score(means), rel=1e-2)
    assert told.target == max(range(CLASSES), key=means.__getitem__)
    assert told.score is None  # it supports, it does not accuse


def test_the_screen_stays_within_its_cost_and_leaves_the_network_alone(planted: PlantedOf,
                                                                       dummies_for: DummiesOf) -> None:
    classifier, run = planted("patch").classifier(), Run(CPU)
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    found = screen(classifier, dummies_for("patch"), run)
    assert run.meter.passes + 41 * SCREEN_DUMMIES < 50_000
    assert all(item.result.stage == "screen" and item.result.name.startswith("screen ") for item in found)
    assert len({item.result.name for item in found}) == len(found)
    assert all(value.equal(before[name]) for name, value in classifier.network.state_dict().items())


def test_maximum_margins_and_their_p_value(planted: PlantedOf) -> None:
    told = mm_bd.detect(planted("blend").classifier(), Run(CPU), images=4, steps=5).result
    assert len(told.per_target) == CLASSES
    assert told.statistic is not None
    assert told.statistic >= 0
    assert mm_bd.largest_p_value([1.0, 1.1, 0.9, 1.05, 9.0]) < 1e-6
    assert mm_bd.largest_p_value([1.0, 1.1, 0.9, 1.05, 1.1]) > 0.3
    assert mm_bd.largest_p_value([1.0, 1.0]) == 1.0
    assert mm_bd.largest_p_value([-1.0, -2.0, -3.0]) == 1.0


def test_weight_signals_find_what_is_put_into_the_weights(planted: PlantedOf) -> None:
    classifier = planted("none").classifier()
    last = [m for m in classifier.network.modules() if isinstance(m, nn.Linear)][-1]
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    sound = head_weights.detect(classifier).result.statistic, lipschitz.detect(classifier).result.statistic
    with torch.no_grad():
        last.weight[4] += last.weight.std() * 3
        first.weight[5] *= 50
    heavy, loud = head_weights.detect(classifier).result, lipschitz.detect(classifier).result
    assert heavy.target == 4
    assert None not in (*sound, heavy.statistic, loud.statistic)
    assert heavy.statistic > sound[0]  # type: ignore[operator]
    assert loud.statistic > sound[1]  # type: ignore[operator]


def test_a_network_without_the_layers_is_told_so(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    spec = planted("none").classifier().spec
    bare = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 9), nn.ReLU(), nn.Linear(9, CLASSES + 1),
                                    nn.Linear(CLASSES + 1, CLASSES)), spec, CPU)
    assert not lipschitz.detect(bare).result.applicable
    assert not bounded_gap.detect(bare, dummies_for("none"), Run(CPU)).result.applicable
    assert head_weights.detect(bare).result.applicable
    assert not of_classes("x", [1.0, float("nan")], 1.0).result.applicable
    assert not_applicable("x", "why").result.reason == "why"
    assert quartile_score([1.0, 2.0]) == 0.0
