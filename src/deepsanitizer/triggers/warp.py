"""Smooth warps: a 5x5 flow field, enlarged, moves every pixel by at most the strength.

What it covers: warping triggers (WaNet), small rotations, shifts and scalings.
Strength: the largest displacement, in pixels of a 32-pixel image (it grows with the image).
Searched without noise, which drowns the effect of a warp.
Limits: flows finer than the field are met only in part.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Small random flows."""
    return {"flow": 0.1 * torch.randn(groups, 2, 5, 5, generator=generator)}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    groups, (count, channels, height, width) = len(params["flow"]), images.shape
    grid = _grid(params["flow"], strength, height, width)
    many = images[None].expand(groups, -1, -1, -1, -1).flatten(0, 1)
    return _sample(many, grid[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)).view(
        groups, count, channels, height, width)


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The flow at each image's strength."""
    flow = params["flow"].expand(len(images), -1, -1, -1)
    return _sample(images, _grid(flow, strength, *images.shape[-2:]))


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """What it makes of a chequered image; the displacement is magnified four times."""
    channels, height, width = shape
    rows, columns = torch.arange(height).view(-1, 1) // 4, torch.arange(width).view(1, -1) // 4
    board = (0.2 + 0.6 * ((rows + columns) % 2)).expand(channels, height, width).to(params["flow"].device)
    return apply(params, board[None].float(), torch.tensor([4 * strength], device=board.device))[0, 0]


def _grid(flow: Tensor, strength: Tensor, height: int, width: int) -> Tensor:
    """Sampling grid (G, H, W, 2); in grid units the image is 2 wide, so pixels of a 32-pixel image are 1/16."""
    smooth = F.interpolate(torch.tanh(flow), size=(height, width), mode="bicubic", align_corners=False)
    moved = smooth.clamp(-1, 1) * strength.view(-1, 1, 1, 1) / 16  # bicubic enlargement overshoots
    vertical, horizontal = (torch.linspace(-1, 1, size, device=flow.device) for size in (height, width))
    rows, columns = torch.meshgrid(vertical, horizontal, indexing="ij")
    return torch.stack((columns, rows), -1)[None] + moved.permute(0, 2, 3, 1)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, align_corners=True, padding_mode="border")


FAMILY = Family("warp", 1.5, 0.2, 0.0, init, apply, vary, pattern)
