"""Small networks, the code they are built from, and checkpoints of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepsanitizer.errors import DeepSanitizerError

SOURCE = '''"""Networks for the tests."""

from torch import nn


class Net(nn.Module):
    """Convolution, batch-norm, linear."""

    def __init__(self, num_classes=3, channels=3, width=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x.mean((2, 3))))


def number(**kwargs):
    return 7


CONSTANT = 7
'''
CONFIG: dict[str, Any] = {"architecture": "nets:Net", "kwargs": {"width": 4}, "input_shape": [3, 8, 8],
                          "num_classes": 3, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
ARCH: dict[str, Any] = {"arch": "nets:Net", "input_shape": (3, 8, 8), "num_classes": 3,
                        "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def network(name: str = "Net", seed: int = 0, **kwargs: Any) -> nn.Module:
    """A network of SOURCE with random weights and batch-norm statistics; the global random state stays."""
    space: dict[str, Any] = {"__name__": "nets"}
    exec(SOURCE, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = space[name](**kwargs)
        for key, value in net.state_dict().items():
            if "running" in key:
                value.copy_(torch.rand_like(value) + 0.5)
    return net.eval()


def state_of(net: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """An independent state dict, its floating-point tensors in a dtype."""
    return {key: value.to(dtype) if value.is_floating_point() else value.clone()
            for key, value in ((k, v.clone()) for k, v in net.state_dict().items())}


def write_folder(path: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None,
                 metadata: dict[str, str] | None = None) -> Path:
    """A model folder."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(state, path / "model.safetensors", metadata)
    return path


def changed(net: nn.Module) -> dict[str, Tensor]:
    """A state dict as a repair would give it: one layer is another."""
    state = state_of(net)
    key = next(key for key in state if key.endswith("weight"))
    state[key] = (state[key] * 1.25 + 0.01).float()
    return state


def problem(kind: type[DeepSanitizerError], call: Callable[[], object]) -> str:
    """The message of the error that a call must raise: of exactly this kind, one printable line."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    text = str(caught.value)
    assert text.isprintable(), text
    assert caught.value.remedy
    return text
