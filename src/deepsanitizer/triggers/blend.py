"""Blended pictures: (1 - a) x + a p, a free picture p laid over the image with opacity a.

What it covers: blended triggers, watermarks, trojan masks.
Strength: the opacity. Limits: as `add`; at high opacity any class can be reached.
"""

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, per_group, vary_field


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Nearly grey pictures."""
    return {"picture": 0.1 * torch.randn(groups, *shape, generator=generator)}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    opacity = per_group(strength)
    return (1 - opacity) * images[None] + opacity * torch.sigmoid(params["picture"])[:, None]


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The picture at each image's opacity, sometimes in part of the image."""
    opacity = strength.view(-1, 1, 1, 1)
    return vary_field(images, (1 - opacity) * images + opacity * torch.sigmoid(params["picture"]), generator)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """The picture itself."""
    return torch.sigmoid(params["picture"][0])


FAMILY = Family("blend", 0.24, 0.3, 0.12, init, apply, vary, pattern)
