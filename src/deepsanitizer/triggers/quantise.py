"""Fewer levels: every channel is rounded to a few values, on a grid that may be shifted.

What it covers: quantised and posterised images (BppAttack without its dithering).
Strength: the share of the way from the image to the rounded one. Parameters: `fineness` (G, 1) the logarithm of the
number of steps from black to white, `shift` (G, C) of each channel's grid, in steps.
Limits: rounding has no slope, so that only the grid is searched by gradient, from a dictionary's best entries.
Reference: Wang, Zhai, Ma, "BppAttack", CVPR 2022.
"""

import math

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, per_group

LEVELS = (4, 5, 6, 8, 10, 16)  # fewer are seen by eye, and move natural images, too; more change hardly anything
MOST = math.log(255)  # steps of a stored image


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Random numbers of levels, from black to white in all channels."""
    levels = torch.tensor(LEVELS)[torch.randint(len(LEVELS), (groups, 1), generator=generator)]
    return {"fineness": (levels - 1).float().log(), "shift": torch.zeros(groups, shape[0])}


def entries(shape: Shape) -> dict[str, Tensor]:
    """A fixed dictionary: every number of levels, with values at black and white and half a step beside them."""
    grid = [(math.log(levels - 1), shift) for levels in LEVELS for shift in (0.0, 0.5)]
    return {"fineness": torch.tensor([[fineness] for fineness, _ in grid]),
            "shift": torch.tensor([[shift] * shape[0] for _, shift in grid])}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    fineness, shift = params["fineness"].view(-1, 1, 1, 1, 1), params["shift"][:, None, :, None, None]
    return (images[None] + per_group(strength) * (_rounded(images[None], fineness, shift) - images[None])).clamp(0, 1)


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """On a grid of each image's own, a little finer or coarser and shifted, at each image's strength."""
    finer, moved = ((size * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)).to(images.device)
                    for size in (0.1, 0.2))
    shift = params["shift"][:, :, None, None] + moved
    rounded = _rounded(images, params["fineness"].view(-1, 1, 1, 1) + finer, shift)
    return (images + strength.view(-1, 1, 1, 1) * (rounded - images)).clamp(0, 1)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """What it makes of a ramp from black to white."""
    ramp = torch.linspace(0, 1, shape[2], device=params["shift"].device).expand(1, *shape)
    return apply(params, ramp, torch.tensor([strength], device=ramp.device))[0, 0]


def _rounded(images: Tensor, fineness: Tensor, shift: Tensor) -> Tensor:
    """Images on the grid; the slope is that of the grid's values, each image's value taken as fixed."""
    steps = fineness.clamp(0, MOST).exp()
    value = (images * steps - shift).round().detach()
    return ((value + shift) / steps).clamp(0, 1)


FAMILY = Family("quantise", 1.0, 0.01, 0.0, init, apply, vary, pattern, entries)
