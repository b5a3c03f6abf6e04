"""Remedies on planted networks: the trigger goes, accuracy stays, the original is left alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest
import torch
from helpers.planted import CLASSES, CPU, PATCH, SPEC, TARGET, Attack, Planted, accuracy, patched
from torch import Tensor, nn

from deepsanitizer import channels
from deepsanitizer.classifier import Classifier, classifier_of, logits_of
from deepsanitizer.curate import curate_features
from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.repair import bound, closed_form, clp, confine, overshoot, paper, sharp, shift, tune
from deepsanitizer.repair.bank import Lead, follow, matched
from deepsanitizer.repair.pairs import augment, make_pairs
from deepsanitizer.search import shifts
from deepsanitizer.split import Split, split
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, InputSpec, Run, Trigger

PlantedOf: TypeAlias = Callable[[Attack], Planted]
DummiesOf: TypeAlias = Callable[[Attack], Dummies]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def true_patch() -> Trigger:
    """The planted patch itself, as a search by place would have to find it."""
    picture = patched(torch.zeros(1, *SPEC.shape))[:, :, PATCH[0]:PATCH[0] + 3, PATCH[1]:PATCH[1] + 3]
    params = {"picture": torch.logit(picture.clamp(0.01, 0.99)), "corner": torch.tensor([PATCH])}
    return Trigger("place", params, 1.0, TARGET, None, 10.0)


def nothing() -> Trigger:
    """A transformation that changes nothing."""
    return Trigger("filter", {name: torch.zeros_like(value) for name, value in FAMILIES["filter"].init(
        1, SPEC.shape, rng()).items()}, 0.15, TARGET, None, 0.0)


def state_of(classifier: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


REMEDIES: dict[str, Callable[[Classifier, Dummies, list[Trigger], Run], Classifier]] = {
    "closed_form": lambda c, d, b, r: closed_form.repair(c, d, b, r, pairs=400),
    "bound": lambda c, d, b, r: bound.repair(c, d, b, r, pairs=400),
    "tune": lambda c, d, b, r: tune.repair(c, d, b, r, steps=20),
    "sharp": lambda c, d, b, r: tune.repair(c, d, b, r, steps=20, radius=sharp.RADIUS),
    "confine": lambda c, d, b, r: confine.repair(c, tune.repair(c, d, b, r, steps=20), d, b, r),
    "paper": lambda c, d, b, r: paper.repair(split(c, "auto"), curate_features(split(c, "auto"), r, repeats=2,
                                                                              steps=50), r, epochs=2)[0],
    "shift": lambda c, d, b, r: shift.repair(split(c, "auto"), d, TARGET, r, rounds=1, restarts=2, steps=5)[0],
}


@pytest.mark.parametrize("method", REMEDIES)
def test_the_original_is_untouched_and_the_result_is_drop_in(method: str, planted: PlantedOf,
                                                            dummies_for: DummiesOf) -> None:
    original, dummies = planted("patch").classifier(), dummies_for("patch")
    before, images = state_of(original), dummies.images.clone()
    repaired = REMEDIES[method](original, dummies, [true_patch()], Run(CPU))
    for name, value in original.network.state_dict().items():
        assert value.equal(before[name]), name
    assert dummies.images.equal(images)
    after = repaired.network.state_dict()
    assert list(after) == list(before)
    assert all(after[name].dtype == value.dtype and after[name].shape == value.shape for name, value in before.items())
    assert any(not after[name].equal(value) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    assert not any(p.requires_grad for p in repaired.network.parameters())
    assert not repaired.network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*original.network.modules(),
                                                                       *repaired.network.modules()])


@pytest.mark.parametrize("method", REMEDIES)
def test_a_remedy_repeats_with_its_seed(method: str, planted: PlantedOf, dummies_for: DummiesOf) -> None:
    original, dummies = planted("patch").classifier(), dummies_for("patch")
    first, again = (state_of(REMEDIES[method](original, dummies, [true_patch()], Run(CPU))) for _ in range(2))
    assert all(value.equal(again[name]) for name, value in first.items())


def test_closed_form_unlearns_the_patch_and_keeps_the_rest(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    model = planted("patch")
    repaired = closed_form.repair(model.classifier(), dummies_for("patch"), [true_patch()], Run(CPU))
    acc, asr = accuracy(repaired.network, "patch")
    assert asr < 20
    assert acc > model.acc - 5


def test_tuning_weakens_the_patch_and_keeps_the_rest(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    model = planted("patch")
    tuned = tune.repair(model.classifier(), dummies_for("patch"), [true_patch()], Run(CPU), steps=60, lr=1e-2)
    acc, asr = accuracy(tuned.network, "patch")
    assert asr < model.asr - 20
    assert acc > model.acc - 5


def test_a_confined_tune_removes_as_much_and_leaves_plain_answers_alone(planted: PlantedOf,
                                                                        dummies_for: DummiesOf) -> None:
    original, dummies = planted("patch").classifier(), dummies_for("patch")
    tuned = tune.repair(original, dummies, [true_patch()], Run(CPU), steps=60, lr=1e-2, keep=1.0)
    confined = confine.repair(original, tuned, dummies, [true_patch()], Run(CPU))

    def moved(new: Classifier) -> float:
        return float((logits_of(new, dummies.images) - dummies.logits.cpu()).square().mean())

    assert 0 < moved(confined) < 0.7 * moved(tuned)
    (acc, asr), (acc_tuned, asr_tuned) = (accuracy(c.network, "patch") for c in (confined, tuned))
    assert asr < planted("patch").asr - 20
    assert asr < asr_tuned + 10
    assert acc > acc_tuned - 1


def test_what_no_transformation_changes_is_not_touched(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    original, dummies = planted("patch").classifier(), dummies_for("patch")
    tuned = tune.repair(original, dummies, [true_patch()], Run(CPU), steps=5)
    confined = confine.repair(original, tuned, dummies, [nothing()], Run(CPU))
    for name, value in state_of(original).items():
        assert torch.allclose(state_of(confined)[name], value, atol=1e-6), name


def test_to_overshoot_goes_on_along_the_line(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    model = planted("patch")
    original = model.classifier()
    repaired = closed_form.repair(original, dummies_for("patch"), [true_patch()], Run(CPU), keep=16)
    further = overshoot.repair(original, repaired, beyond=1.5)
    old, new = state_of(original), state_of(repaired)
    for name, value in state_of(further).items():
        wanted = old[name] + 1.5 * (new[name] - old[name]) if name.endswith(("weight", "bias")) else new[name]
        assert torch.allclose(value, wanted, atol=1e-6), name
    assert all(torch.equal(state_of(repaired)[name], value) for name, value in new.items())
    (acc, asr), (acc_before, asr_before) = (accuracy(c.network, "patch") for c in (further, repaired))
    assert asr < asr_before
    assert acc > acc_before - 5


def test_closed_form_does_nearly_nothing_where_nothing_is_to_be_undone(planted: PlantedOf,
                                                                       dummies_for: DummiesOf) -> None:
    model, dummies = planted("none"), dummies_for("none")
    original = model.classifier()
    same = closed_form.repair(original, dummies, [nothing()], Run(CPU), pairs=200)
    for name, value in original.network.named_parameters():
        change = same.network.get_parameter(name) - value
        assert change.norm() < 0.02 * value.norm(), name
    assert (logits_of(same, dummies.images).argmax(1) == dummies.labels).float().mean() > 0.98
    assert accuracy(same.network)[0] > model.acc - 1


def test_closed_form_starts_from_an_edited_network(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    """The wanted responses stay the original's: what an earlier edit broke is mended."""
    model, dummies = planted("none"), dummies_for("none")
    broken = model.classifier()
    with torch.no_grad():
        broken.network.get_parameter("0.weight").mul_(0.7)
    mended = closed_form.repair(model.classifier(), dummies, [nothing()], Run(CPU), pairs=200, start=broken)
    assert accuracy(mended.network)[0] > model.acc - 1


def test_the_published_method_starts_at_a_loss_near_zero_and_changes_the_head_alone(planted: PlantedOf) -> None:
    original = planted("patch").classifier()
    parts, before, run = split(original, "5"), state_of(original), Run(CPU)
    features = curate_features(parts, run, repeats=4, steps=300)
    repaired, loss_step0 = paper.repair(parts, features, run, epochs=5)
    with torch.no_grad():
        logits = parts.head(features.features)
    assert loss_step0 == pytest.approx(nn.functional.cross_entropy(logits, features.labels).item(), abs=1e-5)
    assert 0 <= loss_step0 < 0.1
    changed = {name for name, value in repaired.network.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert changed <= set(parts.head_parameters)
    assert len(parts.head_parameters) < len(list(original.network.parameters()))


def test_shifts_that_reach_the_goal_are_unlearned_by_the_head_alone(planted: PlantedOf,
                                                                    dummies_for: DummiesOf) -> None:
    model = planted("patch")
    original, dummies, run = model.classifier(), dummies_for("patch"), Run(CPU)
    parts, before = split(original, "5"), state_of(original)
    repaired, reached = shift.repair(parts, dummies.without({TARGET}), TARGET, run)
    changed = {name for name, value in repaired.network.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert changed <= set(parts.head_parameters)
    assert len(reached) == 3

    def climbs(cut: Split) -> float:
        with torch.no_grad():
            features = parts.extractor(dummies.images)
        found = shifts(cut, features, dummies.labels, [TARGET] * 4, run, generator=rng(9), spread=0.5)
        return found.margin.max().item()

    assert reached[0] > 0
    assert climbs(split(repaired, "5")) < climbs(parts) - 1  # by a search with another seed
    assert accuracy(repaired.network, "patch")[0] > model.acc - 5


class Tokens(nn.Module):
    """A small vision transformer whose encoder layer has a fused path."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return told


def test_every_linear_map_of_a_transformer_is_relearned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = classifier_of(Tokens(), SPEC, CPU)
    images = torch.rand(60, *SPEC.shape, generator=rng())
    dummies = Dummies(images, logits_of(original, images), "random")
    goal = int(dummies.labels.mode().values)
    trigger = Trigger("add", FAMILIES["add"].init(1, SPEC.shape, rng()), 0.3, (goal + 1) % CLASSES, None, 1.0)
    repaired = closed_form.repair(original, dummies, [trigger], Run(CPU), pairs=100)
    for name, value in original.network.named_parameters():
        assert repaired.network.get_parameter(name).equal(value) == ("norm" in name), name


def test_pairs_are_dummies_with_and_without_the_bank(dummies_for: DummiesOf) -> None:
    dummies = dummies_for("patch")
    one = Trigger("add", FAMILIES["add"].init(1, SPEC.shape, rng()), 0.1, None, 1, 1.0, (3, 0, 0, 0, 0, 0))
    specific = Trigger("add", one.params, 0.1, 4, 1, 1.0)
    pairs = make_pairs(dummies, [true_patch(), one, specific], rng(), count=170, chunk=50, augmented=False)
    assert len(pairs.plain) == len(pairs.changed) == len(pairs.goals) == 170
    known = {tuple(image.flatten().tolist()): int(label) for image, label in zip(dummies.images, dummies.labels,
                                                                                  strict=True)}
    for plain, changed, goal in zip(pairs.plain, pairs.changed, pairs.goals.tolist(), strict=True):
        label = known[tuple(plain.flatten().tolist())]
        assert 0 <= goal < CLASSES
        assert goal != label
        assert goal != 4 or label == 1 or goal == TARGET
        assert not changed.equal(plain)
    assert make_pairs(dummies, [true_patch()], rng(), count=7).changed.equal(
        make_pairs(dummies, [true_patch()], rng(), count=7).changed)


@pytest.mark.parametrize("method", ["closed_form", "tune"])
def test_a_bank_that_applies_to_no_dummy_is_refused(method: str, planted: PlantedOf, dummies_for: DummiesOf) -> None:
    dummies = dummies_for("none")
    some = Dummies(dummies.images[dummies.labels == 0], dummies.logits[dummies.labels == 0], "one class")
    for target, source in ((2, 5), (0, None)):
        bank = [Trigger("place", true_patch().params, 1.0, target, source, 1.0)]
        with pytest.raises(CannotJudgeError, match="no dummy is of a class"):
            REMEDIES[method](planted("none").classifier(), some, bank, Run(CPU))


def test_uphill_the_loss_is_higher_and_the_weights_come_back() -> None:
    weights = [torch.randn(5, 4, generator=rng(k)).requires_grad_(True) for k in range(2)]
    unused = torch.ones(3, requires_grad=True)

    def loss() -> Tensor:
        return (weights[0] * weights[1]).tanh().sum()

    before = [w.detach().clone() for w in weights]
    loss().backward()
    plain = loss().item()
    heights = []
    for radius in (0.01, 0.1):
        with sharp.uphill([*weights, unused], radius):
            heights.append(loss().item())
            moved = torch.cat([((w - b) / b).flatten() for w, b in zip(weights, before, strict=True)])
            assert moved.norm().item() == pytest.approx(radius, rel=1e-3)  # measured by each weight's own size
        assert all(w.equal(b) for w, b in zip(weights, before, strict=True))
    assert plain < heights[0] < heights[1]


def test_augmentation_moves_and_mirrors() -> None:
    images = torch.rand(40, 1, 7, 9, generator=rng())
    changed = augment(images, rng(1))
    assert changed.shape == images.shape
    views = {tuple(torch.roll(image, (down, right), (1, 2)).flatten().tolist())
             for image in (images[0], images[0].flip(2)) for down in range(-2, 3) for right in range(-2, 3)}
    assert tuple(changed[0].flatten().tolist()) in views


def test_dummies_that_lose_their_class_when_moved_are_left_in_place(dummies_for: DummiesOf) -> None:
    bank = [Trigger("place", true_patch().params, 1.0, TARGET, None, 1.0)]
    dummies = dummies_for("patch")
    known = {tuple(image.flatten().tolist()) for image in dummies.images}
    for movable in (True, False):
        pairs = make_pairs(replace(dummies, movable=movable), bank, rng(), count=80, chunk=10)
        assert all(tuple(image.flatten().tolist()) in known for image in pairs.plain) is not movable


def test_the_bank_follows_each_lead(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, dummies, run = planted("patch").classifier(), dummies_for("patch"), Run(CPU)
    leads = [Lead("add", "all2one", None, TARGET, 0.0, strength=0.12),
             Lead("place", "all2one", None, TARGET, 0.0, window=5, stride=3),
             Lead("place", "specific", 0, TARGET, 0.0, window=5, stride=3),
             Lead("place", "all2all", None, None, 0.0, window=5, stride=3)]
    leads = matched(classifier, dummies, leads, run, plain_margin=5.0)
    assert 0 < leads[0].strength <= 0.12
    found = [follow(classifier, dummies, lead, run, purpose="test") for lead in leads]
    groups = [item.triggers for item in found]
    for item, lead, group in zip(found, leads, groups, strict=True):
        assert item.lead == lead
        assert item.margin == group[0].margin
        assert math.isfinite(item.others)
        assert all((t.family, t.target, t.source) == (lead.family, lead.target, lead.source) for t in group)
        assert [t.margin for t in group] == sorted((t.margin for t in group), reverse=True)
        assert all(math.isfinite(t.margin) for t in group)
        assert all(value.shape[0] == 1 for t in group for value in t.params.values())
    assert all(t.goals is not None and len(t.goals) == CLASSES for t in groups[3])
    assert all(t.goals is None for group in groups[:3] for t in group)


def test_grey_networks_of_another_shape_are_relearned() -> None:
    spec = InputSpec((1, 28, 20), 3, (0.1,), (0.3,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = classifier_of(nn.Sequential(nn.Conv2d(1, 4, 3, 2, groups=1), nn.GELU(), nn.Conv2d(
            4, 4, 3, groups=4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)), spec, CPU)
    images = torch.rand(40, 1, 28, 20, generator=rng())
    logits = torch.eye(3)[torch.arange(40) % 3]
    trigger = Trigger("warp", FAMILIES["warp"].init(1, spec.shape, rng()), 1.5, 0, None, 1.0)
    repaired = closed_form.repair(original, Dummies(images, logits, "made up"), [trigger], Run(CPU), pairs=60)
    assert logits_of(repaired, images).isfinite().all()


def test_a_source_class_without_dummies_proves_nothing(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    """Its margins are minus infinity, which must not pass for a trigger that is gone."""
    dummies = dummies_for("patch")
    some = Dummies(dummies.images[dummies.labels != 0], dummies.logits[dummies.labels != 0], "no dummy of class 0")
    lead = Lead("place", "specific", 0, TARGET, 0.0, window=5, stride=4)
    with pytest.raises(CannotJudgeError, match="no dummy is of class 0"):
        follow(planted("patch").classifier(), some, lead, Run(CPU), purpose="test")


def test_scarce_rows_are_pulled_to_the_old_weights() -> None:
    """A map with many inputs and few rows would fit the dummies; where rows abound nothing changes."""
    spec = InputSpec((1, 12, 12), 3, (0.1,), (0.3,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3))
    original = classifier_of(network, spec, CPU)
    dummies = Dummies(torch.rand(30, 1, 12, 12, generator=rng()), torch.eye(3)[torch.arange(30) % 3], "made up")
    trigger = Trigger("add", FAMILIES["add"].init(1, spec.shape, rng()), 0.3, 0, None, 1.0)
    moved = {}
    for scarcity in (0.0, 50.0):
        new = closed_form.repair(original, dummies, [trigger], Run(CPU), pairs=60, scarcity=scarcity)
        moved[scarcity] = [(a - b).norm().item() for a, b in zip(
            new.network.parameters(), original.network.parameters(), strict=True)]
    assert moved[50.0][2] < 0.7 * moved[0.0][2]  # 201 inputs, 120 rows
    assert moved[50.0][0] == pytest.approx(moved[0.0][0], rel=0.2)  # 10 inputs, thousands of rows


def attending() -> Classifier:
    """A convolution in groups, an attention layer and linear layers, on tokens of a small image."""
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(4, 8, 4, 4, groups=2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            answer: Tensor = self.head((tokens + mixed).mean(1))
            return answer

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return classifier_of(Attending(), InputSpec((4, 16, 16), 3, (0.5,) * 4, (0.5,) * 4), CPU)


@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_one_pass_relearns_as_many_short_ones_do(kind: str, planted: PlantedOf, dummies_for: DummiesOf) -> None:
    """Where the feature maps of all images do not fit in memory, prefixes run again; the weights are the same."""
    if kind == "attention":
        original = attending()
        dummies = Dummies(torch.rand(60, 4, 16, 16, generator=rng()), torch.eye(3)[torch.arange(60) % 3], "made up")
        bank = [Trigger("add", FAMILIES["add"].init(1, (4, 16, 16), rng()), 0.3, 0, None, 1.0)]
    else:
        original, dummies, bank = planted("patch").classifier(), dummies_for("patch"), [true_patch()]
    passes, states = [], []
    for memory in (4 << 30, 0):
        run = Run(CPU)
        states.append(state_of(closed_form.repair(original, dummies, bank, run, pairs=100, memory=memory)))
        passes.append(run.meter.passes)
    for name, value in states[0].items():
        assert value.allclose(states[1][name], atol=1e-5), name
        if value.ndim > 1:
            assert not value.equal(original.network.get_parameter(name)), name
    assert passes[0] < passes[1]


def test_a_ladder_of_weights_is_repair_at_each(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    original, dummies = planted("patch").classifier(), dummies_for("patch")
    rungs = closed_form.ladder(original, dummies, [true_patch()], Run(CPU), keeps=(8.0, 2.0), pairs=100)
    for keep, rung in zip((8.0, 2.0), rungs, strict=True):
        alone = closed_form.repair(original, dummies, [true_patch()], Run(CPU), keep=keep, pairs=100)
        for name, value in state_of(rung).items():
            assert value.equal(state_of(alone)[name]), name


def test_early_layers_keep_plain_responses_with_more_weight(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    """With `early` the first layer changes less, and the last one is weighed as without."""
    original, dummies = planted("patch").classifier(), dummies_for("patch")
    even, graded = (state_of(closed_form.repair(original, dummies, [true_patch()], Run(CPU), pairs=200, early=early))
                    for early in (1.0, 64.0))
    before = state_of(original)
    assert (graded["0.weight"] - before["0.weight"]).norm() < 0.7 * (even["0.weight"] - before["0.weight"]).norm()
    assert accuracy(closed_form.repair(original, dummies, [true_patch()], Run(CPU), pairs=400).network, "patch")[1] < 20


def outlying(norm: bool) -> tuple[nn.Sequential, InputSpec]:
    """Two convolutions of 32 channels, in each of which one channel is ten times as strong as the others."""
    def block(inside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, 32, 3, bias=not norm), *([nn.BatchNorm2d(32)] if norm else []), nn.ReLU()]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(*block(3), *block(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        for number, module in enumerate(m for m in network if isinstance(m, nn.BatchNorm2d if norm else nn.Conv2d)):
            module.weight[5 + number] *= 10
    return network, InputSpec((3, 12, 12), 4, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("norm", [True, False])
def test_clp_silences_the_channel_that_stands_out_and_no_other(norm: bool) -> None:
    original = classifier_of(*outlying(norm), CPU)
    before = state_of(original)
    pruned, silenced = clp.repair(original)
    assert silenced == 2
    judged = [m for m in pruned.network.modules() if isinstance(m, nn.BatchNorm2d if norm else nn.Conv2d)]
    for number, module in enumerate(judged):
        quiet = module.weight.detach().flatten(1).norm(dim=1) == 0 if module.weight.ndim > 1 else module.weight == 0
        assert quiet.nonzero().flatten().tolist() == [5 + number]
        assert module.bias is not None
        assert module.bias[5 + number] == 0
    assert all(value.equal(before[name]) for name, value in state_of(original).items())
    assert clp.repair(original, u=100.0)[1] == 0


def test_clp_bounds_are_the_published_ones() -> None:
    """Step by step, channel by channel: the filter as (inputs, positions) times |gamma| / sigma, largest singular
    value; above mean + u * deviation of the layer.
    """
    network, spec = outlying(norm=True)
    convolution, norm = network[0], network[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2.0, generator=rng())
    bounds = torch.stack([
        torch.linalg.svdvals(convolution.weight[k].reshape(3, 9)
                             * (norm.weight[k] / (norm.running_var[k] + 1e-5).sqrt()).abs()
                             ).max() for k in range(32)])
    for u in (0.5, 1.0, 3.0):
        expected = (bounds > bounds.mean() + u * bounds.std()).nonzero().flatten().tolist()
        pruned, _ = clp.repair(classifier_of(network, spec, CPU), u=u)
        module = pruned.network.get_submodule("1")
        assert isinstance(module, nn.BatchNorm2d)
        assert (module.weight == 0).nonzero().flatten().tolist() == expected


def test_bounds_are_what_the_given_share_of_dummies_stays_under(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    original, images = planted("patch").classifier(), dummies_for("patch").images
    limits = channels.bounds(original, images, quantile=0.5)
    layers = [m for m in original.network.modules() if isinstance(m, nn.BatchNorm2d)]
    layers = layers or [m for m in original.network.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[misc]
    assert len(limits) == len(layers)
    assert all(limit.isfinite().all() for limit in limits)
    seen: list[Tensor] = []
    plain = logits_of(original, images)
    with channels.bounded(original, limits):
        handle = layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        changed = logits_of(original, images)
        handle.remove()
    assert not changed.equal(plain)
    peaks = torch.cat(seen).amax((2, 3))
    assert (peaks <= limits[0] * (1 + 1e-2 * limits[0].sign()) + 1e-6).all()
    assert 0.3 < (peaks >= limits[0] * (1 - 1e-2 * limits[0].sign())).float().mean() < 0.7
    assert logits_of(original, images).equal(plain)  # nothing stays behind


def test_bounding_weakens_the_patch_and_keeps_the_rest(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    model = planted("patch")
    repaired = bound.repair(model.classifier(), dummies_for("patch"), [true_patch()], Run(CPU))
    acc, asr = accuracy(repaired.network, "patch")
    assert asr < model.asr - 20
    assert acc > model.acc - 5
