"""Procedural images: dead leaves over smooth noise, drawn from a generator and nothing else.

Why: natural images are occluding patches of slowly varying colour, which makes these a better start for inversion than
noise, at no cost.
Limits: they carry no class, and their colours are saturated: `natural` draws images that networks take for photographs
(docs/research/log.md, 54). Reference: Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_noise(count: int, shape: tuple[int, int, int], cells: int, generator: torch.Generator) -> Tensor:
    """Random fields of cells x cells values, enlarged bicubically: (count, C, H, W) in [0, 1]."""
    channels, height, width = shape
    grid = torch.rand(count, channels, cells, cells, generator=generator)
    return F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def procedural(count: int, shape: tuple[int, int, int], generator: torch.Generator, *, leaves: int = 12) -> Tensor:
    """Draw `count` images (count, C, H, W) in [0, 1]."""
    channels, height, width = shape

    def uniform(size: int = 1) -> Tensor:
        return torch.rand(count, size, 1, 1, generator=generator)

    image = sum(weight * smooth_noise(count, shape, cells, generator)
                for weight, cells in ((0.5, 2), (0.3, 5), (0.2, 9)))
    assert isinstance(image, Tensor)
    rows = torch.arange(height).view(1, 1, -1, 1)
    columns = torch.arange(width).view(1, 1, 1, -1)
    for _ in range(leaves):
        aspect = 0.4 + 1.2 * uniform()
        radius = (0.05 + 0.3 * uniform() ** 2) * height
        dx, dy = (columns - uniform() * width) * aspect, (rows - uniform() * height) / aspect
        box = (dx.abs() < radius) & (dy.abs() < radius)
        leaf = torch.where(uniform() < 0.4, box, dx**2 + dy**2 < radius**2).float()
        texture = 1 + 0.3 * (smooth_noise(count, shape, 7, generator) - 0.5)
        image = image * (1 - leaf) + leaf * (uniform(channels) * texture).clamp(0, 1)
    return image.clamp(0, 1)
