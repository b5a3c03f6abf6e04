"""Attackers who train against the tool: each does what it says, and the model is saved with who made it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.planted import CPU, SPEC, TARGET, textures, tiny_net
from torch import nn

from deepsanitizer import loading
from deepsanitizer.bench import adaptive, train
from deepsanitizer.bench.attacks import Patch
from deepsanitizer.bench.zoo import code_of
from deepsanitizer.classifier import Classifier
from deepsanitizer.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return textures(40, torch.Generator().manual_seed(3))


def model() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(tiny_net(), SPEC, CPU).train()


def test_the_pattern_climbs_the_margin_within_its_strength(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    classifier, penalty = model().eval(), adaptive.SmallMargin(TARGET, strength=0.1, rate=0.02)
    plain = classifier(images)[:, TARGET].mean().item()
    for _ in range(8):
        term = penalty(classifier, images, labels)
    assert term.requires_grad
    assert term.item() > 0
    assert penalty.pattern is not None
    assert penalty.pattern.abs().max() <= 0.1 + 1e-6
    assert not penalty.pattern.requires_grad
    assert classifier((images + penalty.pattern).clamp(0, 1))[:, TARGET].mean() > plain
    assert penalty(classifier, images, torch.full_like(labels, TARGET)).item() == 0


def test_concentration_is_one_where_all_channels_change_alike() -> None:
    plain = torch.zeros(3, 5, 2, 2)
    assert adaptive.concentration(torch.cat([plain, plain + 1])).item() == pytest.approx(1)
    single = plain.clone()
    single[:, 2] = 4
    assert adaptive.concentration(torch.cat([plain, single])).item() == pytest.approx(5)


def test_spreading_leaves_statistics_and_mode_alone(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    classifier = model()
    before = {name: value.clone() for name, value in classifier.network.named_buffers()}
    term = adaptive.Spread(Patch(), TARGET)(classifier, *batch)
    term.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in classifier.network.parameters())
    assert all(value.equal(before[name]) for name, value in classifier.network.named_buffers())
    assert classifier.network.training
    assert not any(m._forward_hooks for m in classifier.network.modules())


def test_a_model_is_trained_and_its_head_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(name: str, split: str) -> tuple[Any, Any]:
        images = torch.rand(96, 3, 32, 32, generator=torch.Generator().manual_seed(len(split)))
        return (images * 255).to(torch.uint8).numpy(), (torch.arange(96) % 10).numpy()

    monkeypatch.setattr(train, "_pack", pack)

    def call(*arguments: str) -> dict[str, Any]:
        answer = CliRunner().invoke(adaptive.main, ["--epochs", "1", *arguments])
        assert answer.exit_code == 0, answer.output
        told: dict[str, Any] = json.loads(answer.output.splitlines()[-1])
        return told

    assert call("--attacker", "margin", "--output", str(tmp_path / "margin"))["attacker"] == "margin"
    truth = json.loads((tmp_path / "margin" / "truth.json").read_text())
    assert (truth["attacker"], truth["attack"], truth["target"]) == ("margin", "patch", 3)
    call("--attacker", "spread", "--output", str(tmp_path / "spread"))
    call("--attacker", "extractor", "--clean", str(tmp_path / "spread"), "--output", str(tmp_path / "extractor"))
    old, new = (loading.load(tmp_path / name, import_from=code_of(tmp_path)).network.state_dict()
                for name in ("spread", "extractor"))
    assert all(new[name].equal(old[name]) for name in ("fc.weight", "fc.bias"))
    assert not new["stem.0.weight"].equal(old["stem.0.weight"])
    refused = CliRunner().invoke(adaptive.main, ["--attacker", "extractor", "--output", str(tmp_path / "no")])
    assert refused.exit_code == 4
    assert not (tmp_path / "no").exists()


def test_a_frozen_head_needs_a_linear_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda *a, **k: type("L", (), {"network": nn.Conv2d(1, 1, 1)})())
    with pytest.raises(UsageError, match="no linear layer"):
        adaptive.head_frozen(tmp_path)
