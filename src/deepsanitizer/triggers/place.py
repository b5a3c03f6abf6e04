"""Patches at a given place: a free picture in a square window.

What it covers: every local trigger, once all places are searched side by side.
Strength: the opacity. Parameters: `picture` (G, C, w, w), `corner` (G, 2) the top left pixel (row, column).
Limits: triggers larger than the window are met in part: search several sizes.
"""

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, per_group


def init(groups: int, shape: Shape, generator: torch.Generator, *, window: int = 6) -> dict[str, Tensor]:
    """Random pictures in the top left corner."""
    size = min(window, *shape[1:])
    return {"picture": 0.5 * torch.randn(groups, shape[0], size, size, generator=generator),
            "corner": torch.zeros(groups, 2, dtype=torch.long)}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    picture, (height, width) = torch.sigmoid(params["picture"]), images.shape[-2:]
    groups, channels, size = picture.shape[:3]
    offset = torch.arange(size, device=images.device)
    rows, columns = (params["corner"][:, axis, None] + offset for axis in (0, 1))
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]  # (G, 1, w * w)
    blank = torch.zeros(groups, channels, height * width, device=images.device)
    canvas = blank.scatter(2, index.expand(-1, channels, -1), picture.flatten(2))
    mask = blank[:, :1].scatter(2, index, 1.0)
    canvas, mask = (part.view(groups, 1, -1, height, width) for part in (canvas, mask))
    opacity = per_group(strength)
    return images[None] * (1 - opacity * mask) + opacity * canvas


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """For most batches only a part of the window; each image at its opacity; some pictures half a plain colour."""
    picture = torch.sigmoid(params["picture"])
    count, (channels, size) = len(images), picture.shape[1:3]
    part = size
    if size > 3 and torch.rand(1, generator=generator) < 0.6:
        part = int(torch.randint(3, size + 1, (1,), generator=generator))
    down, right = torch.randint(0, size - part + 1, (2,), generator=generator).tolist()
    top, left = (params["corner"][0] + torch.tensor([down, right], device=params["corner"].device)).tolist()
    shown = picture[:, :, down:down + part, right:right + part].expand(count, -1, -1, -1)
    if torch.rand(1, generator=generator) < 0.4:
        plain = (torch.rand(count, channels, 1, 1, generator=generator) > 0.5).float().to(images.device)
        shown = 0.5 * shown + 0.5 * plain
    opacity = strength.view(-1, 1, 1, 1)
    changed = images.clone()
    window = changed[:, :, top:top + part, left:left + part]
    changed[:, :, top:top + part, left:left + part] = (1 - opacity) * window + opacity * shown
    return changed


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """The picture at its place, on white."""
    white = torch.ones(1, *shape, device=params["picture"].device)
    return apply(params, white, torch.tensor([strength], device=white.device))[0, 0]


FAMILY = Family("place", 1.0, 0.5, 0.0, init, apply, vary, pattern)
