"""Dummies: procedural images, inverted images, features; seeds, cost, memory, and nothing left on the network."""

from collections.abc import Callable

import pytest
import torch
from helpers.planted import CLASSES, CPU, SPEC, Attack, Planted
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, classifier_of
from deepsanitizer.curate import blended, curate_features, curate_ordinary, drawn, invert, natural, procedural
from deepsanitizer.errors import DeadlineReachedError
from deepsanitizer.split import Split, split
from deepsanitizer.types import Dummies, InputSpec, Run

PlantedOf = Callable[[Attack], Planted]


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def no_norm(spec: InputSpec, width: int = 8) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(spec.shape[0], width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                                nn.Flatten(), nn.Linear(4 * width, spec.num_classes))
    return classifier_of(network, spec, CPU)


@pytest.mark.parametrize("draw", [procedural, natural])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 20), (4, 9, 30), (3, 1, 1), (3, 2, 5)])
def test_images_from_nothing(shape: tuple[int, int, int], draw: Callable[..., Tensor]) -> None:
    images = draw(6, shape, torch.Generator().manual_seed(0))
    assert images.shape == (6, *shape)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == 6
    assert images.equal(draw(6, shape, torch.Generator().manual_seed(0)))
    assert not images.equal(draw(6, shape, torch.Generator().manual_seed(1)))


def test_natural_images_have_the_statistics_of_photographs() -> None:
    images = natural(200, (3, 32, 32), torch.Generator().manual_seed(0))
    grey = images.mean(1, keepdim=True)
    # Within an image colours vary far less than brightness, and brightness and contrast vary from image to image.
    colours = (images - grey) - (images - grey).mean((2, 3), keepdim=True)
    assert colours.std() < 0.3 * grey.std((2, 3)).mean()
    assert grey.mean((1, 2, 3)).std() > 0.1
    assert grey.std((1, 2, 3)).std() > 0.03
    # Power falls about with the square of the frequency (Ruderman 1994: 1.8).
    power = torch.fft.rfft2((grey - grey.mean((2, 3), keepdim=True))[:, 0]).abs().square().mean(0)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None])
    used = (frequency > 0) & (frequency < 0.3)
    x, y = frequency[used].log(), power[used].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert -3.2 < slope < -1.8


def test_large_images_are_drawn_in_parts_and_cost_one_look() -> None:
    assert natural(5, (3, 20, 20), torch.Generator().manual_seed(0), pixels_at_once=800).shape == (5, 3, 20, 20)
    classifier, run = no_norm(InputSpec((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3)), Run(CPU, 3)
    images = drawn(classifier, 9, run)
    assert (len(images), run.meter.passes) == (9, 3)
    assert images.logits.equal(classifier(images.images).detach())
    assert images.images.equal(drawn(classifier, 9, Run(CPU, 3)).images)
    assert not images.images.equal(drawn(classifier, 9, Run(CPU, 4)).images)


def test_dummies_with_natural_images_in_them_keep_their_answers_or_go() -> None:
    spec = InputSpec((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3)
    classifier, run = no_norm(spec), Run(CPU, 3)
    pictures = drawn(classifier, 40, Run(CPU, 5))
    found = blended(classifier, pictures, run, share=0.5)
    assert run.meter.passes == pytest.approx(40 / 3)
    kept = (0.5 * pictures.images + 0.5 * drawn(classifier, 40, Run(CPU, 3)).images)
    same = classifier(kept).argmax(1) == pictures.labels
    assert 0 < same.sum() <= 40
    assert torch.equal(found.images, kept[same])
    assert torch.equal(found.labels, pictures.labels[same])
    assert torch.equal(blended(classifier, pictures, Run(CPU, 3), share=0.0).images, pictures.images)


def test_dummies_stand_for_every_class(planted: PlantedOf) -> None:
    classifier, run = planted("none").classifier(), Run(CPU)
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    dummies = invert(classifier, 60, run, steps=25)
    assert len(dummies) == 60
    assert dummies.images.shape == (60, *SPEC.shape)
    assert dummies.images.min() >= 0
    assert dummies.images.max() <= 1
    assert not dummies.images.requires_grad
    assert dummies.logits.equal(classifier(dummies.images).detach())
    assert dummies.labels.bincount(minlength=CLASSES).min() >= 5  # 10 of each were wanted
    assert "batch-norm matching" in dummies.how
    assert run.meter.passes == pytest.approx(60 * 25 + 60 / 3)
    assert hooks_of(classifier.network) == 0
    for name, value in classifier.network.state_dict().items():
        assert value.equal(before[name]), name


def test_the_statistics_are_matched(planted: PlantedOf) -> None:
    """Batch-norm matching brings every layer's input statistics near to those of the training data."""
    classifier = planted("none").classifier()
    layers = [m for m in classifier.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 3

    def error(weight: float) -> float:
        images = invert(classifier, 60, Run(CPU), steps=25, statistics_weight=weight).images
        found: list[float] = []

        def note(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            ratio = inputs[0].var((0, 2, 3)) / layer.running_var
            found.append((((inputs[0].mean((0, 2, 3)) - layer.running_mean) ** 2 / layer.running_var).mean()
                          + (ratio.sqrt() - 1).square().mean()).item())

        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        classifier(images)
        for hook in hooks:
            hook.remove()
        return sum(found)

    assert error(60.0) < 0.5 * error(0.0)


def test_dummies_repeat_with_seed_and_purpose(planted: PlantedOf) -> None:
    classifier = planted("none").classifier()

    def make(seed: int = 0, purpose: str = "dummies") -> Tensor:
        return invert(classifier, 12, Run(CPU, seed), purpose=purpose, steps=3).images

    assert make().equal(make())
    assert not make().equal(make(seed=1))
    assert not make().equal(make(purpose="fresh dummies"))


def test_batches_make_the_same_number(planted: PlantedOf) -> None:
    dummies = invert(planted("none").classifier(), 25, Run(CPU), steps=2, batch=10)
    assert len(dummies) == len(dummies.labels) == 25


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 28, 20)])
def test_dummies_without_batch_norm(shape: tuple[int, int, int]) -> None:
    spec = InputSpec(shape, 4, (0.0,) * shape[0], (1.0,) * shape[0])
    run = Run(CPU)
    classifier = no_norm(spec)
    dummies = invert(classifier, 40, run, steps=25, least_met=0.0)  # untrained: some classes are out of reach
    assert "augmentation (no batch-norm)" in dummies.how
    assert dummies.movable
    assert dummies.images.shape == (40, *shape)
    assert run.meter.passes == pytest.approx(40 * 25 + 2 * 40 / 3)
    assert hooks_of(classifier.network) == 0


def reads_positions(spec: InputSpec, favourite: float = 4.0) -> Classifier:
    """Each class has a template of independent pixels; what matches none is of class 0, as in many transformers."""
    head = nn.Linear(spec.shape[0] * spec.shape[1] * spec.shape[2], spec.num_classes)
    with torch.no_grad():
        head.weight.copy_(0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)).sign())
        head.bias.copy_(torch.tensor([favourite, *[0.0] * (spec.num_classes - 1)]))
    return classifier_of(nn.Sequential(nn.Flatten(), head), spec, CPU)


def test_where_positions_matter_dummies_are_curated_in_place() -> None:
    classifier, run = reads_positions(InputSpec((3, 12, 12), 4, (0.5,) * 3, (0.5,) * 3)), Run(CPU)
    moved = invert(classifier, 40, Run(CPU), steps=25, least_met=0.0)
    assert moved.labels.bincount(minlength=4)[0] > 30  # hardly any reaches its class
    dummies = invert(classifier, 40, run, steps=25, batch=20)
    assert dummies.labels.bincount(minlength=4).tolist() == [10, 10, 10, 10]
    assert not dummies.movable
    assert "in place (no batch-norm)" in dummies.how
    # The first batch twice, and one look at whether it reached its classes.
    assert run.meter.passes == pytest.approx((40 + 20) * 25 + (40 + 20) / 3)


def test_hooks_are_gone_when_time_is_up(planted: PlantedOf) -> None:
    classifier = planted("none").classifier()
    with pytest.raises(DeadlineReachedError, match="during curating dummies"):
        invert(classifier, 12, Run(CPU, deadline=0.0), steps=3)
    assert hooks_of(classifier.network) == 0


def test_progress_counts_up_to_all_images(planted: PlantedOf) -> None:
    told: list[tuple[str, int, int]] = []
    invert(planted("none").classifier(), 20, Run(CPU, progress=lambda *step: told.append(step)), steps=4, batch=10)
    assert {total for _, _, total in told} == {80}
    assert [done for _, done, _ in told] == list(range(0, 80, 10))


@pytest.fixture(scope="module")
def cut(planted: PlantedOf) -> Split:
    return split(planted("none").classifier(), "5")  # behind the second ReLU


def test_features_for_every_class(cut: Split) -> None:
    run = Run(CPU)
    made = curate_features(cut, run, repeats=3, steps=120)
    assert made.features.shape == (3 * CLASSES, *cut.feature_shape)
    assert made.labels.tolist() == [k for k in range(CLASSES) for _ in range(3)]
    assert cut.nonnegative
    assert made.features.min() >= 0
    assert made.confidence.mean() > 0.9
    assert cut.head(made.features).argmax(1).equal(made.labels)
    assert not made.features.requires_grad
    assert run.meter.passes == pytest.approx(3 * CLASSES * 120 * (1 - cut.share_before))


def test_features_may_be_negative_where_the_layer_is_no_relu(planted: PlantedOf) -> None:
    cut = split(planted("none").classifier(), "4")  # a batch-norm
    assert not cut.nonnegative
    assert curate_features(cut, Run(CPU), repeats=2, steps=60).features.min() < 0


def test_memory_cuts_and_classes_do_not_change_the_features(cut: Split) -> None:
    """All in one batch is what each class alone would give, and what small cuts give."""
    whole = curate_features(cut, Run(CPU), repeats=2, steps=15)
    size = cut.feature_shape[0] * cut.feature_shape[1] * cut.feature_shape[2] * 4 * 8
    largest: list[int] = []

    def head(features: Tensor) -> Tensor:
        largest.append(len(features))
        return cut.head(features)

    watched = Split(cut.classifier, cut.layer, cut.extractor, head, cut.feature_shape, cut.share_before,
                    cut.nonnegative, cut.head_parameters)
    parts = curate_features(watched, Run(CPU), repeats=2, steps=15, memory_bytes=5 * size)
    assert max(largest) <= 5
    assert parts.labels.equal(whole.labels)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-3, rtol=1e-3)

    start = torch.rand(2 * CLASSES, *cut.feature_shape, generator=Run(CPU).generator("feature dummies"))
    for k in range(CLASSES):
        features = start[2 * k:2 * k + 2].clone().requires_grad_()
        optimiser = torch.optim.Adam([features], lr=1e-2, weight_decay=5e-3)
        for _ in range(15):
            optimiser.zero_grad()
            nn.functional.cross_entropy(cut.head(features), torch.full((2,), k), reduction="sum").backward()
            optimiser.step()
            features.data.clamp_(min=0)
        torch.testing.assert_close(features.detach(), whole.features[2 * k:2 * k + 2], atol=1e-3, rtol=1e-3)


def test_features_repeat_with_the_seed(cut: Split) -> None:
    first, again, other = (curate_features(cut, Run(CPU, seed), repeats=1, steps=3).features for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_ordinary_dummies_are_less_sure(planted: PlantedOf) -> None:
    """Pushed to their class only as far as drawn; and nearer to the stored statistics than a scan's."""
    classifier = planted("none").classifier()
    top = [d.logits.softmax(1).amax(1) for d in (invert(classifier, 60, Run(CPU), purpose="x", steps=60, lr=0.3),
                                                  curate_ordinary(classifier, 60, Run(CPU), purpose="x"))]
    assert top[1].mean() < top[0].mean() - 0.05
    assert top[1].std() > top[0].std()


def test_leaving_out_classes_keeps_enough_of_them() -> None:
    images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 4
    dummies = Dummies(images, torch.eye(4)[labels], "made up")
    fewer = dummies.without({1})
    assert fewer.images.equal(images[labels != 1])
    assert fewer.labels.tolist() == labels[labels != 1].tolist()
    assert dummies.without(set()).images.equal(images)
    assert len(dummies.without({0, 1})) == 6
    assert dummies.without({0, 1, 2}) is dummies  # one class alone says nothing about the others
    two = Dummies(images, torch.eye(2)[labels % 2], "made up")
    assert two.without({1}) is two
