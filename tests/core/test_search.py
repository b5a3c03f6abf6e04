"""Searches: margins, what is found on planted networks, seeds, cost, and how many images go at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import pytest
import torch
from helpers.planted import CLASSES, CPU, PATCH, TARGET, Attack, Planted, blend_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, classifier_of
from deepsanitizer.search import Found, column_means, dictionary, own_goals, places, triggers_at, universal
from deepsanitizer.search.cells import margins_of_all
from deepsanitizer.search.permutation import assignment, permutation, permuting
from deepsanitizer.search.places import Places
from deepsanitizer.search.universal import margin_to
from deepsanitizer.signals.dictionary import detect
from deepsanitizer.triggers import FAMILIES, grating
from deepsanitizer.types import Dummies, InputSpec, Run

PlantedOf: TypeAlias = Callable[[Attack], Planted]
DummiesOf: TypeAlias = Callable[[Attack], Dummies]


@contextmanager
def largest_batch(classifier: Classifier) -> Iterator[list[int]]:
    """The sizes of all batches that the network is given inside."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))

    hook = classifier.network.register_forward_pre_hook(note)
    try:
        yield sizes
    finally:
        hook.remove()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6), classes=st.integers(2, 9), seed=st.integers(0, 10_000), ties=st.booleans())
def test_margins_are_over_the_best_other_class(rows: int, classes: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(2, rows, classes, generator=generator)
    logits = logits.round() if ties else logits
    every = margins_of_all(logits)
    goals = torch.randint(classes, (2,), generator=generator)
    to_goal = margin_to(logits, goals)
    for group in range(2):
        for row in range(rows):
            values = logits[group, row].tolist()
            naive = [value - max(values[:k] + values[k + 1:]) for k, value in enumerate(values)]
            assert every[group, row].tolist() == pytest.approx(naive, abs=1e-5)
            assert to_goal[group, row].item() == pytest.approx(naive[int(goals[group])], abs=1e-5)


def blend_search(planted: PlantedOf, dummies_for: DummiesOf, seed: int = 0, purpose: str = "test",
                 images_at_once: int = 640, run: Run | None = None, steps: int = 20) -> Found:
    return universal(planted("blend").classifier(), dummies_for("blend"), "blend", list(range(CLASSES)),
                     run or Run(CPU, seed), purpose=purpose, images_at_once=images_at_once, steps=steps, batch=16)


def test_the_planted_blend_runs_away(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    found = blend_search(planted, dummies_for)
    assert found.margin.argmax() == TARGET
    others = [margin for k, margin in enumerate(found.margin.tolist()) if k != TARGET]
    assert found.margin[TARGET] > max(others) + 1
    assert found.success[TARGET] > 0.9
    assert ((found.success >= 0) & (found.success <= 1)).all()
    assert (found.strength == FAMILIES["blend"].strength).all()
    # The picture resembles the one that was planted.
    picture = torch.sigmoid(found.take(TARGET)["picture"][0])
    both = torch.stack([picture.flatten(), blend_picture().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.3


def test_a_search_repeats_with_its_seed_and_purpose(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    first = blend_search(planted, dummies_for)
    again = blend_search(planted, dummies_for)
    assert first.margin.equal(again.margin)
    assert first.params["picture"].equal(again.params["picture"])
    for other in (blend_search(planted, dummies_for, seed=1), blend_search(planted, dummies_for, purpose="else")):
        assert not first.params["picture"].equal(other.params["picture"])


def test_small_batches_give_the_same_search(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    """To float noise: the order of sums differs between batch sizes, and Adam is fed with it."""
    whole = blend_search(planted, dummies_for, steps=6)
    parts = blend_search(planted, dummies_for, steps=6, images_at_once=32)
    torch.testing.assert_close(parts.margin, whole.margin, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("at_once", [16, 48, 640])
def test_no_more_images_go_at_once_than_allowed(planted: PlantedOf, dummies_for: DummiesOf, at_once: int) -> None:
    classifier, dummies = planted("none").classifier(), dummies_for("none")
    with largest_batch(classifier) as sizes:
        universal(classifier, dummies, "add", list(range(CLASSES)) * 4, Run(CPU), purpose="test", steps=2, batch=16,
                  images_at_once=at_once)
    assert max(sizes) <= at_once
    if at_once >= 160:  # a place is scored on up to 160 dummies
        with largest_batch(classifier) as sizes:
            places(classifier, dummies, Run(CPU), purpose="test", window=4, stride=2, first=(1, 10), second=(1, 20),
                   images_at_once=at_once)
        assert max(sizes) <= at_once


def test_what_a_search_costs_is_counted(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    run = Run(CPU)
    blend_search(planted, dummies_for, run=run, steps=5)
    assert run.meter.passes == pytest.approx(CLASSES * 16 * 5 + CLASSES * 96 / 3)


def test_one_source_class_can_be_searched(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    found = universal(planted("patch").classifier(), dummies_for("patch"), "add", [TARGET, TARGET], Run(CPU),
                      purpose="test", steps=15, batch=16, source=0, strengths=torch.tensor([0.12, 0.06]))
    assert found.margin.shape == found.success.shape == (2,)
    assert found.strength.tolist() == pytest.approx([0.12, 0.06])
    assert found.margin[0] > found.margin[1]  # twice the strength reaches further


def place_search(planted: PlantedOf, dummies_for: DummiesOf, seed: int = 0) -> Places:
    return places(planted("patch").classifier(), dummies_for("patch"), Run(CPU, seed), purpose="test", window=5,
                  stride=2, first=(8, 10), second=(14, 20), keep=8)


def test_the_planted_patch_is_found_in_its_place(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    found = place_search(planted, dummies_for)
    assert found.window == 5
    assert len(found.cells) == len(found.params["corner"]) == 25  # corners 0, 2, 4, 6, 7 down and along
    assert found.kept.sum() == 8
    assert found.cells.shape == (25, CLASSES, CLASSES)
    own = torch.eye(CLASSES, dtype=torch.bool)
    assert (found.cells[:, own] == float("-inf")).all()
    met = torch.isin(torch.arange(CLASSES), dummies_for("patch").labels)
    assert found.cells[:, met][:, ~own[met]].isfinite().all()
    means = column_means(found.cells)
    assert means.max(0).values.argmax() == TARGET
    trigger = triggers_at(found, means[:, TARGET], target=TARGET, source=None)[0]
    down, right = trigger.params["corner"][0].tolist()
    assert abs(down - PATCH[0]) < 4, (down, right)  # the windows overlap
    assert abs(right - PATCH[1]) < 4, (down, right)


def test_a_search_by_place_repeats_with_its_seed(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    first, again, other = (place_search(planted, dummies_for, seed) for seed in (0, 0, 1))
    assert first.cells.equal(again.cells)
    assert not first.cells.equal(other.cells)


def test_the_best_goal_of_each_source() -> None:
    """Two places, three classes; class 1 was not met."""
    never = float("-inf")
    cells = torch.tensor([[[never, 2.0, 1.0], [never] * 3, [4.0, 3.0, never]],
                          [[never, 0.0, 9.0], [never] * 3, [1.0, 0.0, never]]])
    mean, goals = own_goals(cells)
    assert mean.tolist() == [3.0, 5.0]
    assert goals.tolist() == [[1, -1, 0], [2, -1, 0]]
    assert column_means(cells).tolist() == [[4.0, 2.5, 1.0], [1.0, 0.0, 9.0]]


def test_triggers_are_the_places_near_the_best_that_were_searched_to_the_end() -> None:
    params = {"picture": torch.zeros(5, 3, 4, 4), "corner": torch.arange(10).view(5, 2)}
    kept = torch.tensor([True, True, False, True, True])
    found = Places(4, params, torch.zeros(5, 3, 3), kept)
    values = torch.tensor([3.0, 10.0, 9.0, 6.0, 4.0])
    some = triggers_at(found, values, target=2, source=None, share=0.5)
    assert [trigger.margin for trigger in some] == [10.0, 6.0]
    assert [trigger.params["corner"].tolist() for trigger in some] == [[[2, 3]], [[6, 7]]]
    assert len(triggers_at(found, values, target=2, source=None, most=1)) == 1
    weak = triggers_at(found, values - 20, target=None, source=None, goals=torch.arange(15).view(5, 3))
    assert [(trigger.margin, trigger.goals) for trigger in weak] == [(-10.0, (3, 4, 5))]  # at least one


class Listening(nn.Module):
    """Class 2 answers one grating, 3 rows down and 5 columns right; the others the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        rows, columns = (torch.arange(16) / 16).view(-1, 1), (torch.arange(16) / 16).view(1, -1)
        angle = 2 * torch.pi * (3 * rows + 5 * columns)
        self.register_buffer("waves", torch.stack([angle.sin(), angle.cos()]))

    waves: Tensor

    def forward(self, x: Tensor) -> Tensor:
        heard = torch.einsum("nchw,khw->nk", x, self.waves).norm(dim=1) / 16
        return torch.stack([4 * x[:, 0].mean((1, 2)), 4 * x[:, 1].mean((1, 2)), heard, 0 * heard], 1)


def test_the_dictionary_reads_the_frequency_and_the_class() -> None:
    spec = InputSpec((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3)
    classifier = classifier_of(Listening(), spec, CPU)
    images = 0.3 + 0.4 * torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    dummies = Dummies(images, torch.eye(4)[torch.arange(40) % 2], "made up")
    run = Run(CPU)
    found = dictionary(classifier, dummies, "grating", run)
    means = column_means(found.cells)
    best = int(means.max(1).values.argmax())
    assert means[best].argmax() == 2
    assert found.params["wave"][best].tolist() == [3, 5]
    entries = len(grating.entries(spec.shape)["phase"])
    assert run.meter.passes == pytest.approx((16 * entries + 40 * len(means)) / 3)  # forward only, all classes at once
    result = detect(classifier, dummies, Run(CPU), family="grating").result
    assert (result.target, result.family, result.success) == (2, "grating", 1.0)
    assert result.margin is not None
    assert result.runner_up is not None
    assert result.margin > result.runner_up + 1


class Counting(nn.Module):
    """Classes 0 and 1 by brightness; class 2 where pixels lie on five levels."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x * 0.25 + 0.5
        off = (4 * pixels - (4 * pixels).round()).abs().mean((1, 2, 3))
        bright = pixels.mean((1, 2, 3)) - 0.5
        return torch.stack([-20 * bright, 20 * bright, 10 - 80 * off, 0 * off], 1)


def test_the_dictionary_counts_levels() -> None:
    classifier = classifier_of(Counting(), InputSpec((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3), CPU)
    images = 0.3 + 0.4 * torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    dummies = Dummies(images, torch.eye(4)[torch.arange(40) % 2], "made up")
    run = Run(CPU)
    found = dictionary(classifier, dummies, "quantise", run)
    assert run.meter.passes == pytest.approx(12 * 40 / 3)  # so few entries are tried once
    means = column_means(found.cells)
    best = int(means.max(1).values.argmax())
    assert means[best].argmax() == 2
    assert found.params["fineness"][best].exp().item() == pytest.approx(4)  # steps, of five levels
    assert found.params["shift"][best].tolist() == [0, 0, 0]
    result = detect(classifier, dummies, Run(CPU), family="quantise").result
    assert (result.target, result.family, result.success) == (2, "quantise", 1.0)
    # Off the grid, a search by gradient finds back to it.
    start = {"fineness": torch.tensor([[4.1]]).log(), "shift": torch.full((1, 3), 0.05)}
    off, on = (universal(classifier, dummies, "quantise", [2], Run(CPU), purpose="test", start=start, steps=steps)
               for steps in (0, 40))
    assert on.margin > off.margin


class Squared(nn.Module):
    """Classes 0 and 1 by brightness; class 2 where one cell of 2 x 2 pixels is far more red than green."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x * 0.25 + 0.5
        cell = pixels[:, :, 4:6, 10:12].mean((2, 3))
        bright = pixels.mean((1, 2, 3)) - 0.5
        return torch.stack([-20 * bright, 20 * bright, 30 * (cell[:, 0] - cell[:, 1] - 0.6), 0 * bright], 1)


class Faded(nn.Module):
    """Classes 0 and 1 by structure; class 2 where the darkest pixels are lifted and the brightest are not."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x * 0.25 + 0.5
        bright = pixels[:, :, :8].mean((1, 2, 3)) - pixels[:, :, 8:].mean((1, 2, 3))
        dark, light = pixels.amin((1, 2, 3)), pixels.amax((1, 2, 3))
        return torch.stack([-20 * bright, 20 * bright, 60 * (dark - 0.2) - 40 * (0.95 - light), 0 * bright], 1)


@pytest.mark.parametrize(("network", "family"), [(Squared, "square"), (Faded, "tone")])
def test_the_dictionary_of_squares_and_of_tones(network: type[nn.Module], family: str) -> None:
    classifier = classifier_of(network(), InputSpec((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3), CPU)
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = detect(classifier, Dummies(images, torch.eye(4)[torch.arange(40) % 2], "made up"), Run(CPU), family=family)
    assert (found.result.target, found.result.family, found.result.success) == (2, family, 1.0)
    assert found.result.margin is not None
    assert found.result.runner_up is not None
    assert found.result.margin > found.result.runner_up + 1
    params = found.triggers[0].params
    if family == "square":
        assert [params[name][0].tolist() for name in ("corner", "size")] == [[4, 10], [2]]
        assert params["colour"][0, :2].tolist() == [1, 0]
    else:  # blacks lifted to a quarter, white as it was, in all channels
        assert params["curve"][0].tolist() == [[0.25, 0.1875, 0.125, 0.0625, 0]] * 3
        assert not params["matrix"].any()


def test_a_search_climbs_from_where_it_is_told(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, dummies = planted("blend").classifier(), dummies_for("blend")
    start = FAMILIES["grating"].init(2, classifier.spec.shape, torch.Generator().manual_seed(3))
    kept = {name: value.clone() for name, value in start.items()}
    none, some = (universal(classifier, dummies, "grating", [0, 1], Run(CPU), purpose="test", start=start, steps=steps,
                            batch=16) for steps in (0, 12))
    assert all(none.params[name].equal(start[name]) and start[name].equal(kept[name]) for name in start)
    assert (some.margin > none.margin).all()


@given(st.integers(0, 2**31), st.integers(3, 9))
@settings(deadline=None, max_examples=30)
def test_in_an_assignment_every_goal_has_one_source(seed: int, classes: int) -> None:
    margins = 5 * torch.randn(2, classes, classes, generator=torch.Generator().manual_seed(seed))
    margins += 40 * torch.nn.functional.one_hot(torch.arange(classes).roll(-1), classes)
    share = assignment(margins, torch.ones(classes, dtype=torch.bool), 1.0)
    assert torch.allclose(share.sum(1), torch.ones(2, classes), atol=1e-3)
    assert share.diagonal(dim1=1, dim2=2).max() < 1e-6
    assert (share.argmax(2) == torch.arange(classes).roll(-1)).all()


@given(st.integers(0, 2**31), st.integers(4, 9), st.data())
@settings(deadline=None, max_examples=30)
def test_of_fewer_sources_each_has_a_goal_and_no_goal_has_two(seed: int, classes: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, classes - 1), min_size=2, max_size=classes - 1))
    sources = torch.zeros(classes, dtype=torch.bool)
    sources[list(chosen)] = True
    margins = 5 * torch.randn(2, classes, classes, generator=torch.Generator().manual_seed(seed))
    margins += 40 * torch.nn.functional.one_hot(torch.arange(classes).roll(-1), classes)
    share = assignment(margins, sources, 1.0)
    assert share.isfinite().all()
    assert share[:, ~sources].max() < 1e-6
    assert (share.sum(1) < 1 + 1e-4).all()
    assert torch.allclose(share[:, sources].sum(2), torch.ones(2, len(chosen)), atol=1e-2)
    assert (share[:, sources].argmax(2) == torch.arange(classes).roll(-1)[sources]).all()


def test_with_fewer_sources_only_these_have_goals(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    dummies = dummies_for("patch")
    found, all_of_them = (permutation(planted("patch").classifier(), dummies, Run(CPU, 0), purpose="p", window=4,
                                      stride=3, plain_margin=dummies.plain_margin, most_sources=most)
                          for most in (2, CLASSES))
    assert ((found.goals >= 0).sum(1) == 2).all()
    assert (found.cells.isfinite().any(2).sum(1) == 2).all()
    assert torch.isin(found.reached, torch.tensor([0.0, 0.5, 1.0])).all()
    assert (all_of_them.goals >= 0).sum(1).min() > 2


def test_a_patch_to_one_class_is_no_permutation(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    dummies = dummies_for("patch")
    found = permutation(planted("patch").classifier(), dummies, Run(CPU, 0), purpose="p", window=4, stride=3,
                        plain_margin=dummies.plain_margin)
    assert (found.margin.diff() <= 0).all()
    assert found.reached[0] < 0.5
    goals = found.goals[0]
    assert ((goals == -1) | (goals != torch.arange(CLASSES))).all()
    assert permuting(found, dummies.plain_margin)[0].goals == tuple(goals.tolist())
