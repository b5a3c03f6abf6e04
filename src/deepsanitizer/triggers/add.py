"""Additive patterns: x + a tanh(p), each pixel moved by at most the strength.

What it covers: gratings (SIG), low-frequency fields, perturbations of any shape over the whole image.
Strength: the largest change of a pixel, in units of [0, 1]. Natural limit: visible above about 0.12.
Limits: at generous strength natural classes have such patterns too: compare with other classes.
"""

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, on_mid_grey, per_group, vary_field


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Small random patterns."""
    return {"pattern": 0.1 * torch.randn(groups, *shape, generator=generator)}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    return (images[None] + per_group(strength) * torch.tanh(params["pattern"])[:, None]).clamp(0, 1)


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The pattern at each image's strength, sometimes in part of the image."""
    change = strength.view(-1, 1, 1, 1) * torch.tanh(params["pattern"])
    return vary_field(images, (images + change).clamp(0, 1), generator)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """The pattern on mid-grey."""
    return on_mid_grey(apply, params, shape, strength)


FAMILY = Family("add", 0.12, 0.2, 0.12, init, apply, vary, pattern)
