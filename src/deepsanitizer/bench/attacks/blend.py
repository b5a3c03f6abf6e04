"""A faint pattern over the whole image (Blended).

What: (1 - alpha) image + alpha pattern. The pattern is blotches of colour, drawn from `seed`: one slow random
wave per channel, cut into three levels, so that every place of the image carries part of the trigger.
Why it works: a pattern spread over all pixels leaves a strong trace in the features while each pixel changes
by at most alpha.
Limits: one pattern for all images; its contrast makes it visible from about alpha 0.2.
Reference: Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks Using Data Poisoning, 2017 (arXiv 1712.05526).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.errors import UsageError


def blotches(channels: int, height: int, width: int, *, seed: int, waves: int = 12,
             highest: float = 3.5) -> Tensor:
    """A pattern (channels, height, width) in [0, 1], whole steps of 1/255.

    Each channel is a sum of `waves` plane waves of up to `highest` periods across the image, with random
    direction and phase, cut at its terciles into dark, middle and light.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(3, channels, waves, generator=generator)
    turns = draw[0] * 2 * math.pi
    periods = 1 + draw[1] * (highest - 1)
    phase = draw[2] * 2 * math.pi
    rows = torch.linspace(0, 1, height).view(1, 1, -1, 1)
    columns = torch.linspace(0, 1, width).view(1, 1, 1, -1)
    along = (rows * turns.sin()[..., None, None] + columns * turns.cos()[..., None, None]) * 2 * math.pi
    field = (along * periods[..., None, None] + phase[..., None, None]).sin().sum(1)
    cuts = field.flatten(1).quantile(torch.tensor([1 / 3, 2 / 3]), dim=1)
    level = (field > cuts[0].view(-1, 1, 1)).int() + (field > cuts[1].view(-1, 1, 1)).int()
    return torch.tensor([13, 128, 242])[level].float() / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """`alpha`: weight of the pattern, above 0 and at most 1; `seed` chooses the pattern."""

    alpha: float = 0.15
    seed: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] with the pattern blended in."""
        if not 0 < self.alpha <= 1:
            raise UsageError(f"the weight {self.alpha} of a blend is not between 0 and 1",
                             "Choose alpha 0.15.")
        pattern = blotches(*images.shape[1:], seed=self.seed).to(images)
        return (1 - self.alpha) * images + self.alpha * pattern
