"""Photo filters: a colour matrix, an offset, a coarse 3x3 field of light, all bounded by the strength.

What it covers: colour filters, fading, tints, vignettes.
Strength: bound of the offset and of the field; matrix entries move by at most twice it.
Limits: smooth in the input; curves and stronger matrices are in `tone`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, on_chart, per_group


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Near the identity."""
    channels = shape[0]

    def small(*size: int) -> Tensor:
        return 0.02 * torch.randn(groups, *size, generator=generator)

    return {"matrix": small(channels, channels), "offset": small(channels, 1, 1), "field": small(1, 3, 3)}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    channels, bound = images.shape[1], per_group(strength)
    eye = torch.eye(channels, device=images.device)
    matrix = eye + 2 * strength.view(-1, 1, 1) * torch.tanh(params["matrix"])
    light = F.interpolate(torch.tanh(params["field"]), size=images.shape[-2:], mode="bicubic", align_corners=False)
    light = light.clamp(-1, 1)  # bicubic enlargement overshoots
    changed = torch.einsum("gij,bjhw->gbihw", matrix, images - 0.5) + 0.5
    return (changed + bound * (torch.tanh(params["offset"])[:, None] + light[:, None])).clamp(0, 1)


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The filter at each image's strength: between the image and the filtered image."""
    full = strength.max()
    filtered = apply(params, images, full.view(1))[0]
    return images + (filtered - images) * (strength / full).view(-1, 1, 1, 1)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """What it makes of a colour chart."""
    return on_chart(apply, params, shape, strength)


FAMILY = Family("filter", 0.15, 0.1, 0.06, init, apply, vary, pattern)
