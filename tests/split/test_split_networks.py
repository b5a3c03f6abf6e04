"""Many kinds of network, each cut at every valid layer: together the parts are the model, left as it was."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, classifier_of
from deepsanitizer.split import list_layers, split
from deepsanitizer.types import Compute, InputSpec

CPU = Compute(torch.device("cpu"), False)


def conv(a: int, b: int, act: nn.Module, *, norm: bool = True, stride: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(a, b, 3, stride, 1), *([nn.BatchNorm2d(b)] if norm else []), act]
    return nn.Sequential(*layers)


def sequential(act: Callable[[], nn.Module] = nn.ReLU, *, channels: int = 3, norm: bool = True) -> nn.Module:
    return nn.Sequential(conv(channels, 6, act(), norm=norm), conv(6, 8, act(), norm=norm, stride=2),
                         nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(16), act(),
                         nn.Linear(16, 5))


class Residual(nn.Module):
    """Torchvision's habits: one in-place ReLU module called again and again, `+=` on the skip edge."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.relu = nn.ReLU(inplace=True)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

        def forward(self, x: Tensor) -> Any:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out += x
            return self.relu(out)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.relu = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(self.Block(8), self.Block(8))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.flatten(self.pool(self.layer1(self.relu(self.bn(self.stem(x))))), 1))


class Inception(nn.Module):
    """GoogLeNet in small, with an auxiliary head that runs in eval mode too: returns (logits, auxiliary)."""

    class Mixed(nn.Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.b1 = conv(a, 4, nn.ReLU(inplace=True))
            self.b2 = nn.Sequential(nn.Conv2d(a, 4, 1), conv(4, 6, nn.ReLU(inplace=True)))
            self.b3 = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(a, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.b1(x), self.b2(x), self.b3(x)], 1)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed1, self.mixed2 = conv(3, 8, nn.ReLU(), stride=2), self.Mixed(8), self.Mixed(12)
        self.aux, self.fc = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        h = self.mixed1(self.stem(x))
        aux = self.aux(h.mean((2, 3)))
        return self.fc(self.mixed2(h).mean((2, 3))), aux


class Transformer(nn.Module):
    """A class token and positions are parameters of the network itself; returns an object with .logits."""

    def __init__(self, *, norm_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.token, self.pos = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(16, 2, 32, 0.1, "gelu", batch_first=True, norm_first=norm_first)
            for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> SimpleNamespace:
        h = self.embed(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.pos
        return SimpleNamespace(logits=self.head(self.norm(self.blocks(h))[:, 0]))


class Functional(nn.Module):
    """Everything but the layers with weights is a function, and one weight is used without its module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 9, 16), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.relu_(self.conv2(x))
        x = F.adaptive_max_pool2d(x, 3).reshape(len(x), -1)
        x = F.dropout(F.relu(self.fc1(x)), training=self.training) * self.scale
        return F.linear(x, self.fc2.weight, self.fc2.bias)


class Dense(nn.Module):
    """DenseNet in small: inside a block every output is concatenated to the next input."""

    class Block(nn.Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(conv(a + 4 * i, 4, nn.ReLU()) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return x

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block1, self.block2 = conv(3, 6, nn.ReLU()), self.Block(6), self.Block(6)
        self.transition = nn.Sequential(nn.Conv2d(18, 6, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.block2(self.transition(self.block1(self.stem(x)))).mean((2, 3)))


class Laid(nn.Module):
    """The features are a transposed view, and what follows takes a view that only this layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), _Transpose())
        self.mix, self.fc = nn.Linear(8 * 16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        h = self.tokens(x.contiguous()).transpose(1, 2).view(len(x), -1)
        return self.fc(F.gelu(self.mix(h)))


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous().transpose(1, 2)


class Tuples(nn.Module):
    """Blocks that return tuples, as in some published transformers: only layers inside them can be cut at."""

    class Block(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.body = conv(a, b, nn.ReLU())

        def forward(self, x: Tensor) -> tuple[Any, None]:
            return self.body(x), None

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.fc = self.Block(3, 6), self.Block(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.block2(self.block1(x)[0])[0].mean((2, 3)))


# The network, its input shape, layers that must be valid, layers that must not be.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], set[str], set[str]]] = {
    "sequential": (sequential, (3, 16, 16), {"0", "0.0", "0.1", "0.2", "1", "2", "3", "4", "5", "6"}, set()),
    "grey": (lambda: sequential(channels=1), (1, 12, 10), {"0", "1.2", "4"}, set()),
    "in place": (lambda: sequential(lambda: nn.ReLU(inplace=True)), (3, 16, 16), {"0.0", "0.1", "0.2", "6"},
                 set()),
    "leaky": (lambda: sequential(lambda: nn.LeakyReLU(0.1), norm=False), (3, 16, 16), {"0", "1.1"}, set()),
    "elu": (lambda: sequential(nn.ELU), (3, 16, 16), {"0", "1"}, set()),
    "gelu": (lambda: sequential(nn.GELU, norm=False), (3, 16, 16), {"0", "1"}, set()),
    "residual": (Residual, (3, 12, 12), {"stem", "bn", "relu", "layer1.0", "layer1.1", "layer1", "pool"},
                 {"layer1.0.conv1", "layer1.0.bn2", "layer1.0.relu", "layer1.1.relu"}),
    "inception": (Inception, (3, 16, 16), {"stem", "mixed1", "mixed2"},
                  {"aux", "mixed1.b1", "mixed1.b2", "mixed1.b2.0", "mixed2.b3.1"}),
    "pre-norm transformer": (Transformer, (3, 16, 16), {"embed", "blocks.0", "blocks.1", "blocks.2", "norm"},
                             {"blocks.1.norm1", "blocks.1.linear1", "blocks.1.self_attn"}),
    "post-norm transformer": (lambda: Transformer(norm_first=False), (3, 16, 16),
                              {"blocks.0.norm1", "blocks.0.norm2", "blocks.0"},
                              {"blocks.0.linear1", "blocks.0.dropout2"}),
    "functional": (Functional, (3, 16, 16), {"conv1", "conv2", "fc1"}, {"fc2"}),
    "dense": (Dense, (3, 12, 12), {"stem", "block1", "transition.0", "transition", "block2"},
              {"block1.layers.0", "block1.layers.2", "block2.layers.1.0"}),
    "laid out": (Laid, (3, 16, 16), {"tokens.0", "tokens", "mix"}, set()),
    "tuples": (Tuples, (3, 8, 8), {"block1.body", "block2.body"}, {"block1", "block2"}),
}


def randomised(network: nn.Module, shape: tuple[int, int, int]) -> Classifier:
    """The network with weights and statistics that leave no part of it idle."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        network.eval()(torch.zeros(2, *shape))  # sizes lazy layers
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None  # noqa: PT018
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    channels = shape[0]
    return classifier_of(network, InputSpec(shape, 5, (0.4,) * channels, (0.3,) * channels), CPU)


@pytest.fixture(autouse=True)
def _seed_kept() -> Any:
    """The networks above draw their weights from torch's global generator: the same ones each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield
    torch.set_num_threads(threads)


def rand(count: int, shape: tuple[int, int, int], seed: int = 5) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_valid_cut_gives_the_model_again(name: str) -> None:
    build, shape, valid, refused = NETWORKS[name]
    classifier = randomised(build(), shape)
    before = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    dicts = {id(m): set(vars(m)) for m in classifier.network.modules()}
    infos = {info.name: info for info in list_layers(classifier, all=True)}
    assert valid <= {n for n, info in infos.items() if info.valid}, infos
    assert refused <= {n for n, info in infos.items() if not info.valid and info.reason}, infos
    assert set(infos) == {n for n, _ in classifier.network.named_modules() if n}
    images = rand(5, shape)
    parameters = dict(classifier.network.named_parameters())
    for info in infos.values():
        if not info.valid:
            continue
        cut = split(classifier, info.name)
        with torch.no_grad():
            for part in (images, images[:1]):
                features = cut.extractor(part)
                kept = features.clone()
                assert features.dtype == torch.float32
                assert features.shape == (len(part), *info.feature_shape) == (len(part), *cut.feature_shape)
                torch.testing.assert_close(cut.head(features), classifier(part), rtol=1e-4, atol=1e-5)
                assert torch.equal(features, kept), "the head changed the features it was given"
        assert cut.layer == info.name
        assert cut.share_before == info.madds_before
        after = sum(parameters[p].numel() for p in cut.head_parameters)
        assert info.params_after == pytest.approx(after / sum(p.numel() for p in parameters.values()))
        assert info.params_before + info.params_after == pytest.approx(1)
        assert info.madds_before + info.madds_after == pytest.approx(1)
    shares = [info.madds_before for info in list_layers(classifier)]
    assert shares == sorted(shares)
    after_all = classifier.network.state_dict()
    assert all(torch.equal(before[key], after_all[key]) for key in before)
    for module in classifier.network.modules():
        assert set(vars(module)) == dicts[id(module)], "something was left on the caller's module"
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p.requires_grad for p in parameters.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_auto_follows_its_rule(name: str) -> None:
    build, shape, _, _ = NETWORKS[name]
    classifier = randomised(build(), shape)
    cut = split(classifier)
    able = [i for i in list_layers(classifier) if i.madds_before > 0 and i.params_after > 0]
    nearest = min(abs(info.madds_before - 0.5) for info in able)
    assert abs(cut.share_before - 0.5) == pytest.approx(nearest)
    ties = [info.name for info in able if info.madds_before == cut.share_before]
    assert cut.layer in ties
    assert cut.layer.count(".") == min(tie.count(".") for tie in ties)
    assert split(classifier).layer == cut.layer


def test_auto_takes_the_block_and_the_nonnegative_side() -> None:
    classifier = randomised(sequential(), (3, 16, 16))
    cut = split(classifier)
    assert cut.layer == "0"
    assert cut.nonnegative
    assert not split(classifier, "0.1").nonnegative
    assert split(classifier, "3").nonnegative  # max-pooling of a ReLU's output
    assert not split(randomised(sequential(nn.ELU), (3, 16, 16)), "0").nonnegative


def _zoo() -> Path:
    return Path(os.environ.get("DEEPSANITIZER_SHARED", Path(__file__).parents[3] / "shared")) / "zoo"


@pytest.mark.zoo
@pytest.mark.parametrize(("kind", "crossed"), [
    ("ResNet", {"stages.2.1.bn2"}), ("ViT", {"blocks.2.linear2"}), ("WideResNet", {"block1.layer.1.conv2"}),
    ("VGG", set()), ("PlainCNN", set()), ("SmallVGG", set())])
def test_the_zoos_networks(kind: str, crossed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not (_zoo() / "networks.py").exists():
        pytest.skip("the folder shared/ with trained models is not beside the checkout")
    monkeypatch.syspath_prepend(str(_zoo()))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import networks  # type: ignore[import-not-found]

    spec = InputSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    classifier = classifier_of(getattr(networks, kind)(), spec, CPU)
    infos = list_layers(classifier, all=True)
    valid = [info.name for info in infos if info.valid]
    images = rand(4, spec.shape)
    with torch.no_grad():
        for layer in [*valid[::4], "auto"]:
            cut = split(classifier, layer)
            logits = cut.head(cut.extractor(images))
            torch.testing.assert_close(logits, classifier(images), rtol=1e-4, atol=1e-5)
    refused = {info.name for info in infos if "goes around it" in info.reason}
    assert crossed <= refused
    assert crossed or not refused  # the plain stacks have no skip edge
    assert 0.2 < split(classifier).share_before < 0.8
