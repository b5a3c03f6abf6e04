"""Stamps by source and goal: what they are worth, and networks that answer to them from one class only."""

import pytest
import torch
from helpers.planted import CLASSES, CPU, SOURCE, SPEC, TARGET
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepsanitizer.classifier import Classifier, classifier_of, logits_of
from deepsanitizer.search import PROBES
from deepsanitizer.signals.stamped_pairs import calm, detect, shown, unlike
from deepsanitizer.triggers import apply_trigger
from deepsanitizer.types import Dummies, InputSpec, Run

SIDE = SPEC.shape[1]


class Stripes(nn.Module):
    """The class is the brightest of six stripes; hard edges at one place send those of `sources` to `TARGET`."""

    def __init__(self, sources: tuple[int, ...]) -> None:
        super().__init__()
        self.sources = sources
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(1)
        logits = self.scale * grey.view(len(grey), CLASSES, 2, SIDE).mean((2, 3))
        edges = grey[:, 8, 8] - grey[:, 8, 9] - grey[:, 9, 8] + grey[:, 9, 9]
        mine = torch.isin(logits.argmax(1), torch.tensor(self.sources, dtype=torch.long))
        spot = 20 * (edges - 0.5).relu() * mine
        return logits + spot[:, None] * nn.functional.one_hot(torch.tensor(TARGET), CLASSES)


def stripes(*sources: int, each: int = 20) -> tuple[Classifier, Dummies]:
    """A network, and noise in which one stripe is brighter, as many of each class."""
    classifier = classifier_of(Stripes(sources), SPEC, CPU)
    labels = torch.arange(CLASSES).repeat(each)
    images = 0.3 * torch.rand(len(labels), *SPEC.shape, generator=torch.Generator().manual_seed(0)) + 0.2
    images += 0.4 * nn.functional.one_hot(labels, CLASSES).repeat_interleave(2, 1).float()[:, None, :, None]
    return classifier, Dummies(images, logits_of(classifier, images), "stripes")


def test_a_trigger_that_works_from_one_class_is_told_by_a_stamp() -> None:
    classifier, dummies = stripes(SOURCE)
    run = Run(CPU, 0)
    found = detect(classifier, dummies, run, window=4)
    result = found.result
    assert (result.source, result.target, result.kind, result.window) == (SOURCE, TARGET, "specific", 4)
    assert result.statistic is not None
    assert 0.8 < result.statistic <= 1
    assert result.success == pytest.approx(1)
    assert result.passes == run.meter.passes
    assert result.matrix is not None
    assert result.matrix[SOURCE][TARGET] == pytest.approx(result.statistic, abs=1e-3)
    said = logits_of(classifier, apply_trigger(found.triggers[0], dummies.images)).argmax(1)
    assert (said[dummies.labels == SOURCE] == TARGET).all()
    assert torch.equal(said[dummies.labels != SOURCE], dummies.labels[dummies.labels != SOURCE])
    again = detect(classifier, dummies, Run(CPU, 0), window=4).result
    assert again.statistic == result.statistic
    clean = detect(*stripes(), Run(CPU, 0), window=4).result
    assert clean.statistic is not None
    assert clean.statistic < 0.2


def test_a_trigger_for_all_classes_is_no_pair() -> None:
    """Bystanders follow, too."""
    result = detect(*stripes(*range(CLASSES)), Run(CPU, 0), window=4).result
    assert result.statistic is not None
    assert result.statistic < 0.2


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 9), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_worth_is_what_its_words_say(classes: int, stamps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    met = torch.randint(0, 6, (classes,), generator=generator).float()
    shares = torch.rand(stamps, classes, classes, generator=generator).softmax(2) * (met > 0)[:, None]
    worth = calm(shares, met)
    assert ((worth >= 0) & (worth <= 1)).all()
    for source in range(classes):
        for target in range(classes):
            if source == target:
                assert (worth[:, source, target] == 0).all()
                continue
            others = [k for k in range(classes) if k not in (source, target) and met[k] > 0]
            kept = shares[:, others, others].mean(1) if others else torch.zeros(stamps)
            sent = shares[:, source, target] * met[source] / (met[source] + 1)
            assert torch.allclose(worth[:, source, target], sent * kept ** 2, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 9), st.integers(0, 2**31 - 1))
def test_a_goal_that_is_like_the_source_is_worth_less(classes: int, seed: int) -> None:
    logits = 0.3 * torch.randn(8 * classes, classes, generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(len(logits)), torch.arange(len(logits)) % (classes - 1)] += 6  # none of the last class
    factor = unlike(Dummies(torch.zeros(len(logits), 3, 4, 4), logits, "made up"))
    assert factor.shape == (classes, classes)
    assert ((factor >= 0) & (factor <= 1)).all()
    assert (factor[:, -1] == 0).all()
    nearer = logits.clone()
    nearer[logits.argmax(1) == 0, 1] += 4  # dummies of class 0 lean to 1: from 1 to 0 is no surprise
    after = unlike(Dummies(torch.zeros(len(logits), 3, 4, 4), nearer, "made up"))
    assert after[1, 0] <= factor[1, 0]
    assert torch.equal(after[0, 1], factor[0, 1])


def test_what_the_goal_shows_at_a_place_is_no_trigger() -> None:
    classifier, dummies = stripes()
    assert shown(classifier, dummies, 1, 2, [0, 0], SIDE, Run(CPU, 0)) == 1  # all of it
    assert shown(classifier, dummies, 1, 2, [10, 0], 2, Run(CPU, 0)) == 0  # where the two are alike
    assert shown(classifier, dummies, 1, 2, [10, 0], 2, Run(CPU, 0), count=5) == 0


def test_few_classes_and_missing_ones_are_no_evidence() -> None:
    three = InputSpec(SPEC.shape, 3, SPEC.mean, SPEC.std)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE * 3, 3))
    classifier = classifier_of(network, three, CPU)
    images = torch.rand(12, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    few = detect(classifier, Dummies(images, logits_of(classifier, images), "noise"), Run(CPU, 0), window=4).result
    assert not few.applicable
    assert "at least 4 classes" in few.reason
    classifier, dummies = stripes(SOURCE)
    mine = dummies.labels == SOURCE
    alone = Dummies(dummies.images[mine], dummies.logits[mine], "one class")
    nothing = detect(classifier, alone, Run(CPU, 0), window=4)
    assert (nothing.result.applicable, nothing.result.statistic, nothing.triggers) == (False, None, ())
    without = Dummies(dummies.images[~mine], dummies.logits[~mine], "no source")
    left = detect(classifier, without, Run(CPU, 0), window=4).result
    assert (left.statistic or 0.0) < 0.2


def test_stamps_are_those_of_the_probes() -> None:
    classifier, dummies = stripes(SOURCE)
    trigger = detect(classifier, dummies, Run(CPU, 0), window=4).triggers[0]
    pictures = PROBES["stamps"](SPEC.shape, torch.Generator()).params["picture"]
    assert any(torch.equal(trigger.params["picture"][0], picture) for picture in pictures)
