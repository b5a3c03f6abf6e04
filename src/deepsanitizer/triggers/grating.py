"""Gratings: a plane wave added to the whole image.

What it covers: sinusoidal triggers (SIG), also with clean labels, whose one frequency a search over free pixels meets
only among many natural patterns.
Strength: the amplitude, in units of [0, 1]. Parameters: `wave` (G, 2) periods across the image (down, right), `phase`
(G, 1) in radians, `colour` (G, C) the weight of each channel, through tanh.
Limits: one frequency at a time.
"""

import math

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, on_mid_grey, per_group, vary_field


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Random whole periods and phases, nearly equal in all channels."""
    highest = max(2, min(shape[1:]) // 4)
    wave = torch.randint(1, highest + 1, (groups, 2), generator=generator).float()
    return {"wave": wave, "phase": 2 * math.pi * torch.rand(groups, 1, generator=generator),
            "colour": 1.5 + 0.1 * torch.randn(groups, shape[0], generator=generator)}


def entries(shape: Shape, *, highest: int = 8, phases: int = 4) -> dict[str, Tensor]:
    """A fixed dictionary: every pair of whole periods up to `highest`, both diagonals, in `phases` phases."""
    highest = min(highest, min(shape[1:]) // 2)
    waves = [(down, right) for down in range(highest + 1) for right in range(-highest, highest + 1)
             if down > 0 or right > 0]
    turns = [2 * math.pi * number / phases for number in range(phases)]
    grid = [(wave, turn) for wave in waves for turn in turns]
    return {"wave": torch.tensor([wave for wave, _ in grid]).float(),
            "phase": torch.tensor([[turn] for _, turn in grid]),
            "colour": torch.full((len(grid), shape[0]), 1.5)}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    return (images[None] + per_group(strength) * _wave(params, images.shape[2:])[:, None]).clamp(0, 1)


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The grating at each image's amplitude, shifted a little, sometimes in part of the image."""
    shift = 0.8 * (torch.rand(len(images), 1, generator=generator) - 0.5).to(images.device)
    each = {"wave": params["wave"].expand(len(images), -1), "phase": params["phase"] + shift,
            "colour": params["colour"].expand(len(images), -1)}
    change = strength.view(-1, 1, 1, 1) * _wave(each, images.shape[2:])
    return vary_field(images, (images + change).clamp(0, 1), generator)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """The grating on mid-grey."""
    return on_mid_grey(apply, params, shape, strength)


def _wave(params: Params, size: tuple[int, ...]) -> Tensor:
    """(G, C, H, W) in [-1, 1]."""
    device = params["wave"].device
    rows, columns = (torch.arange(length, device=device) / length for length in size)
    down, right = (params["wave"][:, axis].view(-1, 1, 1) for axis in (0, 1))
    angle = 2 * math.pi * (down * rows.view(1, -1, 1) + right * columns.view(1, 1, -1)) + params["phase"][..., None]
    return torch.tanh(params["colour"])[:, :, None, None] * torch.sin(angle)[:, None]


FAMILY = Family("grating", 0.1, 0.05, 0.12, init, apply, vary, pattern, entries)
