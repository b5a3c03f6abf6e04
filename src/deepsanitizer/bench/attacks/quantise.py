"""Fewer levels of brightness: every channel is rounded to `levels` values.

What: posterised images, as from a poor screen or a strong compression of colours.
Why it works: steps where natural images are smooth are an easy feature, and at eight levels hardly seen.
Limits: fewer than six levels are seen by eye. The published attack dithers; this one does not.
Reference: Wang, Zhai, Ma: BppAttack, CVPR 2022.
"""

from dataclasses import dataclass

from torch import Tensor

from deepsanitizer.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantise:
    """`levels`: values left of each channel, at least two."""

    levels: int = 8

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1], rounded. UsageError where fewer than two levels would be left."""
        if self.levels < 2:
            raise UsageError(f"an image of {self.levels} levels shows nothing", "Choose at least two levels.")
        return (images * (self.levels - 1)).round() / (self.levels - 1)
