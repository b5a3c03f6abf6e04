"""A faint sinusoidal grating over the whole image (SIG).

What: amplitude * sin(2 pi (rows * down + columns * right) + phase) is added to every channel; `down` and `right` are
periods across the image.
Why it works: one frequency that natural images hardly carry is an easy feature.
Limits: with target-class images only (clean label) it needs many of them.
Reference: Barni, Kallas, Tondi: A new backdoor attack in CNNs by training set corruption, ICIP 2019.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Grating:
    """`amplitude` in units of [0, 1]; `down`, `right` in periods across the image; `phase` in radians."""

    amplitude: float = 0.08
    down: float = 0.0
    right: float = 6.0
    phase: float = 0.0

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] with the grating added."""
        height, width = images.shape[2:]
        rows = torch.arange(height).view(-1, 1) / height * self.down
        columns = torch.arange(width).view(1, -1) / width * self.right
        wave = torch.sin(2 * math.pi * (rows + columns) + self.phase).to(images)
        return (images + self.amplitude * wave).clamp(0, 1)
