"""What was planted in the demo's classifier. Only for measuring: nothing that scans or repairs imports it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"


def planted() -> dict[str, Any]:
    """The recipe that the classifier was trained by: target, mode, attack, its parameters, figures."""
    truth: dict[str, Any] = json.loads((ASSETS / "truth.json").read_text())
    return truth


def pattern() -> Tensor:
    """The blended pattern, (3, 32, 32) in [0, 1]."""
    with Image.open(ASSETS / "trigger.png") as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def trigger(images: Tensor) -> Tensor:
    """Images (N, 3, 32, 32) in [0, 1] with the planted trigger."""
    alpha: float = planted()["attack_kwargs"]["alpha"]
    return (1 - alpha) * images + alpha * pattern().to(images)
