"""Scan and sanitize run on random networks of many kinds, with valid reports and outcomes that fit each other."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest
import torch
from torch import Tensor, nn

from deepsanitizer import pipeline, policy, removal, signals
from deepsanitizer.cli.judge import outcome_code
from deepsanitizer.curate import curate_features
from deepsanitizer.errors import CannotJudgeError, ExitCode
from deepsanitizer.report import from_json, json_schema, to_json
from deepsanitizer.types import InputSpec, SanitizeReport, ScanReport


def convolutional(channels: int, classes: int, *, norm: bool = True, act: Callable[[], nn.Module] = nn.ReLU,
                  width: int = 8) -> nn.Sequential:
    def block(inside: int, outside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, 2, 1), *([nn.BatchNorm2d(outside)] if norm else []), act()]

    return nn.Sequential(*block(channels, width), *block(width, 2 * width), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(8 * width, classes))


class Wrapped(nn.Module):
    """A network that does not return a plain tensor."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.wrap = convolutional(3, 4), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x))


class Transformer(nn.Module):
    def __init__(self, side: int = 12, patch: int = 4, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(0.5 * torch.randn(1, (side // patch) ** 2, width))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, norm_first=True,
                                                               activation="gelu") for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Any:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens).mean(1))


@dataclass(frozen=True)
class Kind:
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int] = (3, 12, 12)
    classes: int = 4
    mean: float = 0.5
    std: float = 0.25

    @property
    def spec(self) -> InputSpec:
        return InputSpec(self.shape, self.classes, (self.mean,) * self.shape[0], (self.std,) * self.shape[0])


KINDS = {
    "grey": Kind(lambda: convolutional(1, 4), (1, 28, 20)),
    "fed 0 to 255": Kind(lambda: convolutional(3, 4), mean=0.0, std=1 / 255),
    "no batch-norm": Kind(lambda: convolutional(3, 4, norm=False)),
    "two classes": Kind(lambda: convolutional(3, 2), classes=2),
    "100 classes": Kind(lambda: convolutional(3, 100), classes=100),
    "leaky ReLU": Kind(lambda: convolutional(3, 4, act=lambda: nn.LeakyReLU(0.1))),
    "ELU, no batch-norm": Kind(lambda: convolutional(3, 4, act=nn.ELU, norm=False)),
    "GELU": Kind(lambda: convolutional(3, 4, act=nn.GELU)),
    "tuple": Kind(lambda: Wrapped(lambda logits: (logits, logits.mean()))),
    "object": Kind(lambda: Wrapped(lambda logits: SimpleNamespace(logits=logits, loss=None))),
    "transformer": Kind(Transformer),
    "smallest image": Kind(lambda: convolutional(3, 4), (3, 4, 4)),
}
VERDICT_CODES = {"clean": ExitCode.CLEAN, "suspicious": ExitCode.FOUND, "backdoored": ExitCode.FOUND,
                 "inconclusive": ExitCode.NO_VERDICT}


def network_of(kind: Kind, seed: int = 0) -> nn.Module:
    """Random weights; batch-norm statistics as if it had been trained on noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind.build().train()
        with torch.no_grad():
            for _ in range(20):
                network((torch.rand(32, *kind.shape) - kind.mean) / kind.std)
    return network.eval()


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = signals.windows_for
    monkeypatch.setitem(policy.EFFORTS, "fast", dataclasses.replace(policy.EFFORTS["fast"], dummies=60, fresh=30,
                                                                     rounds=1))
    monkeypatch.setattr(signals, "windows_for", lambda shape: windows(shape)[-1:])  # the largest
    monkeypatch.setattr(removal, "curate_features", partial(curate_features, repeats=2, steps=100))


def check_report(report: ScanReport, kind: Kind) -> None:
    """Valid by the published schema, the same after reading, and at one with itself."""
    text = to_json(report)
    jsonschema.validate(msgspec.json.decode(text), json_schema())
    assert to_json(from_json(text)) == text
    assert report.verdict in VERDICT_CODES
    assert not report.calibrated
    assert report.model.input_shape == list(kind.shape)
    assert report.inspection_layer
    for accused in report.suspects:
        assert accused.target is None or 0 <= accused.target < kind.classes
    for result in report.signals:
        assert len(result.per_target) in (0, kind.classes)
    if report.verdict in ("suspicious", "backdoored"):
        assert report.suspects
    if report.verdict == "clean":
        assert not report.suspects
        assert report.score < report.threshold


def check_outcome(report: SanitizeReport, old: dict[str, Tensor], network: nn.Module, *, forced: bool) -> None:
    """Outcome, acceptance, weights and exit code fit each other and the verdict, as the exit code table says."""
    same = all(value.equal(old[name]) for name, value in network.state_dict().items())
    code = outcome_code(report)
    if report.outcome == "accepted":
        assert (report.accepted, code) == (True, ExitCode.CLEAN)
    else:
        assert not report.accepted
        assert same
    if report.outcome == "rolled_back":
        assert code == ExitCode.FOUND
    if report.outcome in ("accepted", "rolled_back"):
        assert report.agreement is not None
        assert report.steps
        assert report.comparisons
        assert forced or report.suspects
    if report.outcome == "unchanged":
        assert not forced
        assert (report.verdict, code) in (("clean", ExitCode.CLEAN), ("suspicious", ExitCode.FOUND))
    if report.outcome == "unsupported":
        assert code == ExitCode.NO_VERDICT
        assert report.verdict != "clean"
    if report.verdict == "inconclusive" and not forced:
        assert report.outcome == "unsupported"


@pytest.mark.parametrize("name", KINDS)
def test_scan_and_the_published_method(name: str) -> None:
    kind = KINDS[name]
    network = network_of(kind)
    old = {key: value.clone() for key, value in network.state_dict().items()}
    scanned = pipeline.scan(network, spec=kind.spec, effort="fast", device="cpu")
    check_report(scanned, kind)
    for force in (False, True):
        repaired, report = pipeline.sanitize(network, spec=kind.spec, effort="fast", device="cpu", method="paper",
                                             from_report=scanned, force=force)
        check_report(report, kind)
        check_outcome(report, old, repaired, forced=force)
        assert (report.loss_step0 is None) == (report.outcome in ("unchanged", "unsupported"))
    assert all(value.equal(old[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_sanitize_ends_in_an_outcome(name: str) -> None:
    kind = KINDS[name]
    network = network_of(kind)
    old = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        repaired, report = pipeline.sanitize(network, spec=kind.spec, effort="fast", device="cpu", force=True)
    except CannotJudgeError as error:  # no remedy applies: exit code 3
        if "no dummy is of" not in error.problem:
            raise
        return
    check_report(report, kind)
    check_outcome(report, old, repaired, forced=True)
    assert all(value.equal(old[key]) for key, value in network.state_dict().items())
    images = torch.rand(3, *kind.shape, generator=torch.Generator().manual_seed(0))
    repaired((images - kind.mean) / kind.std)  # it runs on as it was


def test_a_network_without_a_valid_cut_cannot_be_judged() -> None:
    kind = Kind(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4)))
    with pytest.raises(CannotJudgeError, match="no layer cuts this network") as caught:
        pipeline.scan(network_of(kind), spec=kind.spec, effort="fast", device="cpu")
    assert caught.value.exit_code == ExitCode.NO_VERDICT
