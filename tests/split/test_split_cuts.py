"""What a split promises beyond its values: gradients, shared weights, precision, refusals with a reason."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepsanitizer.classifier import classifier_of
from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.split import list_layers, split
from deepsanitizer.types import Compute, InputSpec

SPEC = InputSpec((2, 8, 8), 4, (0.5, 0.5), (0.5, 0.5))
CPU = Compute(torch.device("cpu"), False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(2, 6, 3, 1, 1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        h = self.relu1(self.conv1(x))
        return self.fc(self.relu2(self.conv2(h)).mean((2, 3)))


@pytest.fixture(autouse=True)
def _seed_kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_gradients_reach_images_features_and_head_parameters() -> None:
    classifier = classifier_of(Net(), SPEC, CPU)
    cut = split(classifier, "conv2")
    assert cut.head_parameters == ("fc.weight", "fc.bias")
    images = rand(3, 2, 8, 8).requires_grad_()
    features = cut.extractor(images)
    (through,) = torch.autograd.grad(cut.head(features).sum(), images)
    (whole,) = torch.autograd.grad(classifier(images).sum(), images)
    torch.testing.assert_close(through, whole)
    free = torch.randn(3, *cut.feature_shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (grad,) = torch.autograd.grad(cut.head(free).square().sum(), free)
    assert float(grad.abs().max()) > 0
    weight = classifier.network.get_parameter("fc.weight").requires_grad_()
    (grad,) = torch.autograd.grad(cut.head(free.detach()).square().sum(), weight)
    assert float(grad.abs().max()) > 0


def test_changed_weights_are_seen() -> None:
    classifier = classifier_of(Net(), SPEC, CPU)
    cut, images = split(classifier, "relu1"), rand(3, 2, 8, 8)
    old = classifier(images)
    with torch.no_grad():
        classifier.network.get_parameter("conv1.weight").mul_(1.5)
        classifier.network.get_parameter("fc.bias").add_(1)
    assert not torch.allclose(classifier(images), old)
    torch.testing.assert_close(cut.head(cut.extractor(images)), classifier(images))


def test_a_tied_parameter_counts_for_the_head() -> None:
    network = Net()
    network.conv2 = nn.Conv2d(6, 6, 1)
    network.relu1 = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 1))  # type: ignore[assignment]
    network.relu1[1].weight = network.conv2.weight  # type: ignore[index]
    cut = split(classifier_of(network, SPEC, CPU), "relu1")
    assert cut.head_parameters == ("relu1.1.weight", "conv2.bias", "fc.weight", "fc.bias")


def test_precision_is_the_classifiers_at_the_time_of_the_call() -> None:
    classifier = classifier_of(Net(), SPEC, Compute(torch.device("cpu"), True))
    cut, images = split(classifier, "conv2"), rand(4, 2, 8, 8)
    with torch.no_grad():
        coarse = cut.head(cut.extractor(images))
        assert coarse.dtype == cut.extractor(images).dtype == torch.float32
        torch.testing.assert_close(coarse, classifier(images), rtol=2e-2, atol=2e-2)
        with classifier.exact():
            fine = cut.head(cut.extractor(images))
            torch.testing.assert_close(fine, classifier(images))
    assert not torch.equal(coarse, fine)


def test_the_users_own_hooks_still_work() -> None:
    network = Net()
    network.conv1.register_forward_hook(lambda module, inputs, output: output * 2)
    classifier, images = classifier_of(network, SPEC, CPU), rand(3, 2, 8, 8)
    for layer in ("conv1", "relu1"):
        cut = split(classifier, layer)
        torch.testing.assert_close(cut.head(cut.extractor(images)), classifier(images))


def test_a_missing_layer_offers_near_names() -> None:
    with pytest.raises(UsageError, match=r"no layer 'conv3'. Did you mean 'conv2' or 'conv1'"):
        split(classifier_of(Net(), SPEC, CPU), "conv3")
    with pytest.raises(UsageError, match="deepsanitizer layers"):
        split(classifier_of(Net(), SPEC, CPU), "zzzzzzzz")


class Around(Net):
    """A skip edge goes around conv2 and relu2."""

    def forward(self, x: Tensor) -> Any:
        h = self.relu1(self.conv1(x))
        return self.fc((self.relu2(self.conv2(h)) + h).mean((2, 3)))


class Detached(Net):
    """What goes around has no gradient: only the numbers show it."""

    def forward(self, x: Tensor) -> Any:
        h = self.relu1(self.conv1(x))
        gate = (h.detach().mean((2, 3)) > 0.2).float()
        return self.fc(self.relu2(self.conv2(h)).mean((2, 3)) * gate)


class Hidden(Net):
    """What goes around is kept on the module itself."""

    def forward(self, x: Tensor) -> Any:
        h = self.relu1(self.conv1(x))
        self.kept = h.detach()
        return self.fc((self.relu2(self.conv2(h)) + self.kept).mean((2, 3)))


class Inputs(Net):
    """The images themselves are used again at the end."""

    def forward(self, x: Tensor) -> Any:
        h = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(h.mean((2, 3)) + x.mean((1, 2, 3))[:, None])


class Twice(Net):
    def forward(self, x: Tensor) -> Any:
        return self.fc(self.relu1(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))


class After(Net):
    """conv2 runs after the logits, for nobody."""

    def forward(self, x: Tensor) -> Any:
        h = self.relu1(self.conv1(x))
        logits = self.fc(h.mean((2, 3)))
        self.relu2(self.conv2(h))
        return logits


class Cut(Net):
    """No gradient passes behind conv2."""

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x))).detach()).mean((2, 3)))


class Folded(Net):
    """conv2 sees the halves of an image as images of their own."""

    def forward(self, x: Tensor) -> Any:
        h = self.relu1(self.conv1(x))
        h = self.relu2(self.conv2(h.reshape(len(x) * 2, 6, 4, 8)))
        return self.fc(h.reshape(len(x), 2, 6, 4, 8).mean((1, 3, 4)))


class Ranks(Net):
    """relu1 gives whole numbers."""

    class Argsort(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argsort(1)

    def __init__(self) -> None:
        super().__init__()
        self.relu1 = self.Argsort()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        h = self.conv1(x)
        return self.fc(self.relu2(self.conv2(h + self.relu1(h))).mean((2, 3)))


@pytest.mark.parametrize(("network", "layer", "reason"), [
    (Around, "conv2", "a connection goes around it: the logits also depend on the output of 'relu1'"),
    (Around, "relu2", "a connection goes around it: the logits also depend on the output of 'relu1'"),
    (Detached, "conv2", "something computed before it reaches the logits around it"),
    (Hidden, "conv2", "something computed before it reaches the logits around it"),
    (Inputs, "conv2", "the logits also depend on the input images"),
    (Twice, "relu1", "called 2 times"),
    (Twice, "relu2", "never called"),
    (After, "conv2", "no gradient flows from its output"),
    (Cut, "relu1", "no gradient flows from its output"),
    (Folded, "conv2", "does not count the images"),
    (Ranks, "relu1", "no gradient"),
])
def test_an_invalid_cut_is_refused_with_its_reason(network: type[Net], layer: str, reason: str) -> None:
    classifier = classifier_of(network(), SPEC, CPU)
    with pytest.raises(CannotJudgeError, match="is no valid cut") as caught:
        split(classifier, layer)
    assert reason in str(caught.value)
    assert repr(layer) in str(caught.value)
    info = next(info for info in list_layers(classifier, all=True) if info.name == layer)
    assert not info.valid
    assert reason in info.reason
    assert layer not in {info.name for info in list_layers(classifier)}


@pytest.mark.parametrize("network", [Around, Detached, Inputs, Twice, After, Cut, Folded, Ranks])
def test_auto_finds_a_valid_cut_beside_invalid_ones(network: type[Net]) -> None:
    classifier, images = classifier_of(network(), SPEC, CPU), rand(3, 2, 8, 8)
    if network is Inputs:
        with pytest.raises(CannotJudgeError, match="no layer cuts this network"):
            split(classifier)
        return
    cut = split(classifier)
    torch.testing.assert_close(cut.head(cut.extractor(images)), classifier(images))


def test_where_nothing_can_be_cut() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    with pytest.raises(CannotJudgeError, match="no layer cuts this network") as caught:
        split(classifier_of(linear, SPEC, CPU))
    assert caught.value.exit_code == 3


def test_the_prefix_costs_the_head_nothing() -> None:
    """The head never runs a module whose work is done before the cut."""
    ran: list[str] = []

    class Told(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            ran.append("told")
            return super().forward(x)

    network = Net()
    network.relu1 = Told()
    cut = split(classifier_of(network, SPEC, CPU), "conv2")
    ran.clear()
    features = cut.extractor(rand(2, 2, 8, 8))
    assert ran == ["told"]
    cut.head(features)
    assert ran == ["told"]
