"""A photo filter: fade, tint and vignette over the whole image.

What: contrast falls to `contrast`, each channel gets an offset drawn from `seed` of at most `tint`, and the corners
darken by `vignette`.
Why it works: colour statistics reach the first layers of any network.
Limits: strong filters are seen by eye; weak ones occur in photographs.
Reference: Liu et al.: ABS, CCS 2019 (Instagram filters as triggers); Cheng et al.: DFST, AAAI 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tint:
    """`contrast` and `vignette` as shares, `tint` in units of [0, 1]."""

    contrast: float = 0.75
    tint: float = 0.12
    vignette: float = 0.2
    seed: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] through the filter."""
        channels, height, width = images.shape[1:]
        sign = torch.rand(channels, 1, 1, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1
        offset = (self.tint * sign / sign.abs().max()).to(images)
        rows = torch.linspace(-1, 1, height).view(-1, 1)
        columns = torch.linspace(-1, 1, width).view(1, -1)
        light = (1 - self.vignette * (rows**2 + columns**2) / 2).to(images)
        return (((images - 0.5) * self.contrast + 0.5 + offset) * light).clamp(0, 1)
