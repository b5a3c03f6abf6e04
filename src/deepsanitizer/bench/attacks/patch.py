"""A small pattern at one place (BadNets).

What: a square of `size` pixels overwrites the image at row `top`, column `left`; negative values count from
the lower right corner, as indices do.
Why it works: few pixels that no clean image has are an easy feature to learn.
Limits: one place; a random crop in training moves it by a few pixels.
Reference: Gu, Dolan-Gavitt, Garg: BadNets, 2017 (arXiv 1708.06733).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepsanitizer.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """`pattern`: white, checker, or noise (colours drawn from `seed`)."""

    size: int = 4
    top: int = -5
    left: int = -5
    pattern: Literal["white", "checker", "noise"] = "checker"
    seed: int = 0

    def pixels(self, channels: int) -> Tensor:
        """The pattern, (channels, size, size) in [0, 1]."""
        if self.pattern == "white":
            return torch.ones(channels, self.size, self.size)
        if self.pattern == "checker":
            i = torch.arange(self.size)
            return ((i[:, None] + i[None]) % 2 == 0).float().expand(channels, -1, -1)
        if self.pattern == "noise":
            generator = torch.Generator().manual_seed(self.seed)
            return torch.rand(channels, self.size, self.size, generator=generator)
        raise UsageError(f"there is no patch pattern {self.pattern!r}", "Choose white, checker or noise.")

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] with the patch. UsageError where it does not fit into them."""
        height, width = images.shape[2:]
        top = self.top + height if self.top < 0 else self.top
        left = self.left + width if self.left < 0 else self.left
        if self.size < 1 or min(top, left) < 0 or top + self.size > height or left + self.size > width:
            raise UsageError(f"a patch of {self.size} pixels at {self.top}, {self.left} leaves the image of "
                             f"{height} x {width}", "Choose another size, top or left.")
        stamped = images.clone()
        stamped[..., top:top + self.size, left:left + self.size] = self.pixels(images.shape[1]).to(images)
        return stamped
