"""A network with its normalisation, seeds and streams, costs, goals of triggers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.planted import CPU
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, classifier_of, logits_of, pick_logits, resolve_compute
from deepsanitizer.errors import CannotJudgeError, DeadlineReachedError, UsageError
from deepsanitizer.types import Compute, InputSpec, PassMeter, Run, Trigger

SPEC = InputSpec((2, 4, 4), 3, (0.5, 0.0), (0.5, 1 / 255))


class Probe(nn.Module):
    """Shows its input: the means of both channels, and zero."""

    def forward(self, x: Tensor) -> Any:
        means = x.mean((2, 3))
        return torch.cat([means, torch.zeros_like(means[:, :1])], 1)


def test_images_are_normalised_channel_by_channel() -> None:
    classifier = Classifier(Probe(), SPEC, CPU)
    shown = classifier(torch.full((2, 2, 4, 4), 1.0))
    torch.testing.assert_close(shown, torch.tensor([[1.0, 255.0, 0.0]] * 2))


def test_logits_are_picked_from_what_a_network_returns() -> None:
    logits = torch.zeros(2, 3)
    good: list[Any] = [logits, (logits, 1), [logits], SimpleNamespace(logits=logits), (SimpleNamespace(logits=logits),)]
    for output in good:
        assert pick_logits(output) is logits
    bad: list[Any] = [{"scores": logits}, None, ()]
    for output in bad:
        with pytest.raises(CannotJudgeError, match="not logits"):
            pick_logits(output)


def test_precision_and_device_have_one_place() -> None:
    assert resolve_compute("cpu").device.type == "cpu"
    with pytest.raises(UsageError, match="no device 'tpu'"):
        resolve_compute("tpu")
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), SPEC, Compute(torch.device("cpu"), True))
    images = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    rough = classifier(images)
    assert rough.dtype == torch.float32
    with classifier.exact() as exact:
        fine = exact(images)
    assert not rough.equal(fine)
    assert rough.equal(classifier(images))
    with pytest.raises(ZeroDivisionError), classifier.exact():
        raise ZeroDivisionError
    assert rough.equal(classifier(images))


def test_a_classifier_is_a_private_copy_to_be_judged() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3)).double().train()
    classifier = classifier_of(network, SPEC, CPU)
    assert network.training
    assert network[2].weight.dtype == torch.float64
    assert all(p.requires_grad for p in network.parameters())
    assert not classifier.network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in classifier.network.parameters())
    copy = classifier.clone()
    next(copy.network.parameters()).zero_()
    assert all(p.abs().sum() > 0 for p in classifier.network.parameters())


@pytest.mark.parametrize(("network", "message"), [
    (nn.Sequential(nn.Flatten(), nn.Linear(33, 3)), "does not take images of shape"),
    (nn.Conv2d(3, 3, 1), "does not take images of shape"),
    (nn.Sequential(nn.Flatten(), nn.Linear(32, 4)), "not 3 logits"), (nn.Conv2d(2, 3, 1), "not 3 logits"),
])
def test_a_network_that_does_not_fit_cannot_be_judged(network: nn.Module, message: str) -> None:
    with pytest.raises(CannotJudgeError, match=message):
        classifier_of(network, SPEC, CPU)


def test_logits_that_are_no_numbers_cannot_be_judged() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        network.get_parameter("1.bias")[1] = float("inf")
    with pytest.raises(CannotJudgeError, match="not finite"):
        classifier_of(network, SPEC, CPU)


def test_logits_come_batch_by_batch() -> None:
    classifier = Classifier(Probe(), SPEC, CPU)
    images = torch.rand(7, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits_of(classifier, images, batch=3), classifier(images))


def test_each_seed_and_purpose_has_a_stream_of_its_own() -> None:
    def draw(seed: int, purpose: str) -> list[float]:
        drawn: list[float] = torch.rand(4, generator=Run(CPU, seed).generator(purpose)).tolist()
        return drawn

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, purpose)) for seed in (0, 1, 10**30, -1) for purpose in ("a", "b", "1:a")}) == 12


def test_the_deadline_stops_a_step_after_it_was_told() -> None:
    told: list[tuple[str, int, int]] = []
    Run(CPU, progress=lambda *step: told.append(step), deadline=1e12).step("work", 1, 5)
    with pytest.raises(DeadlineReachedError, match="during work"):
        Run(CPU, progress=lambda *step: told.append(step), deadline=0.0).step("work", 2, 5)
    assert told == [("work", 1, 5), ("work", 2, 5)]


def test_a_pass_is_an_image_forward_and_backward() -> None:
    meter = PassMeter()
    meter.add(10, backward=True)
    meter.add(9, backward=False)
    meter.add(10, backward=True, share=0.5)
    assert meter.passes == pytest.approx(18)


@pytest.mark.parametrize(("target", "source", "goals", "expected"), [
    (2, None, None, [2, 2, -1]), (2, 0, None, [2, -1, -1]), (2, 2, None, [-1, -1, -1]),
    (None, None, (1, 2, 0), [1, 2, 0]), (None, None, (1, 1, -1), [1, -1, -1]), (None, None, None, [-1, -1, -1]),
])
def test_goals_of_a_trigger(target: int | None, source: int | None, goals: tuple[int, ...] | None,
                            expected: list[int]) -> None:
    trigger = Trigger("add", {}, 0.1, target, source, 0.0, goals)
    assert trigger.goals_of(torch.arange(3)).tolist() == expected


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"shape": (2, 4)}, UsageError, "not \\(channels, height, width\\)"),
    ({"shape": (2, 0, 4)}, UsageError, "not \\(channels"), ({"num_classes": 1}, CannotJudgeError, "1 class"),
    ({"mean": (0.5,)}, UsageError, "mean has 1 values for 2"), ({"std": (1.0, 0.0)}, UsageError, "not above zero"),
    ({"std": (1.0, float("nan"))}, UsageError, "not above zero"),
    ({"class_names": ("cat",)}, UsageError, "1 names for 3 classes"),
])
def test_an_input_that_makes_no_sense_is_refused(fields: dict[str, Any], error: type[Exception],
                                                 message: str) -> None:
    given: dict[str, Any] = {"shape": (2, 4, 4), "num_classes": 3, "mean": (0.5, 0.0), "std": (0.5, 1.0)} | fields
    with pytest.raises(error, match=message):
        InputSpec(**given)


def test_classes_are_named_for_people() -> None:
    assert SPEC.class_label(1) == "1"
    assert InputSpec(SPEC.shape, 3, SPEC.mean, SPEC.std, ("cat", "dog", "owl")).class_label(1) == "1 (dog)"
