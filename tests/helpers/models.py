"""Small random networks as model folders, and what surrounds them in tests of the command line."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

SOURCE = '''"""A small network without anything unusual."""

from torch import nn


def small(num_classes: int = 4, channels: int = 3, width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
'''


def small(num_classes: int = 4, channels: int = 3, width: int = 8, *, seed: int = 0) -> nn.Module:
    """The network of SOURCE with random weights; the global random state is left as it was."""
    space: dict[str, Any] = {}
    exec(SOURCE, space)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = space["small"](num_classes, channels, width)
    return network.eval()


def write_code(folder: Path) -> Path:
    """The folder to give as --import-from: it holds `nets.py`, that is SOURCE."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nets.py").write_text(SOURCE)
    return folder


def write_folder(folder: Path, *, num_classes: int = 4, channels: int = 3, size: int = 12, seed: int = 0,
                 network: nn.Module | None = None, **config: Any) -> Path:
    """A model folder of a small random network; `config` replaces fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"architecture": "nets:small", "kwargs": {"num_classes": num_classes, "channels": channels},
              "input_shape": [channels, size, size], "num_classes": num_classes,
              "mean": [0.5] * channels, "std": [0.25] * channels} | config
    (folder / "config.json").write_text(json.dumps(fields))
    state = (network or small(num_classes, channels, seed=seed)).state_dict()
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name: to show that nothing was touched, and nothing left."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
