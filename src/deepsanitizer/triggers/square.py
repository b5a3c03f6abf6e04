"""Plain squares: one colour at one place.

What it covers: the simplest patches, and the dictionary's word on patches: no picture is searched, so that what natural
evidence a free picture could collect is not in it.
Strength: the opacity. Parameters: `colour` (G, C) in [0, 1], `corner` (G, 2) the top left pixel (row, column), `size`
(G, 1) in pixels.
Limits: only the colour is searched by gradient, from a dictionary's best entries; other shapes are met by `place`.
"""

import itertools

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, per_group


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Random colours at random places, of the larger size."""
    size = sizes(shape)[-1]
    corner = [torch.randint(side - size + 1, (groups, 1), generator=generator) for side in shape[1:]]
    return {"colour": torch.rand(groups, shape[0], generator=generator), "corner": torch.cat(corner, 1),
            "size": torch.full((groups, 1), size)}


def sizes(shape: Shape) -> list[int]:
    """4 and 8 pixels of 32."""
    return sorted({max(1, round(min(shape[1:]) * size / 32)) for size in (4, 8)})


def entries(shape: Shape) -> dict[str, Tensor]:
    """A fixed dictionary: both sizes side by side over the whole image, in the corners of the colour cube (black and
    white where there are more than three channels).
    """
    channels = shape[0]
    colours = list(itertools.product((0.0, 1.0), repeat=channels)) if channels <= 3 else [(0.0,) * channels,
                                                                                         (1.0,) * channels]
    grid = [(colour, (top, left), size) for size in sizes(shape) for top in range(0, shape[1] - size + 1, size)
            for left in range(0, shape[2] - size + 1, size) for colour in colours]
    return {"colour": torch.tensor([colour for colour, _, _ in grid]),
            "corner": torch.tensor([corner for _, corner, _ in grid]),
            "size": torch.tensor([[size] for _, _, size in grid])}


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    mask = per_group(strength) * _inside(params, images)[:, None, None]
    colour = params["colour"].clamp(0, 1)[:, None, :, None, None]
    return images[None] + mask * (colour - images[None])


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """At each image's opacity, in a colour near the square's, for half of the images a pixel away."""
    count, device = len(images), images.device
    nearby = params["colour"] + (0.1 * torch.randn(count, images.shape[1], generator=generator)).to(device)
    step = torch.randint(-1, 2, (count, 2), generator=generator)
    step = step * (torch.rand(count, 1, generator=generator) < 0.5)
    moved = {"corner": params["corner"] + step.to(device), "size": params["size"].expand(count, -1)}
    mask = strength.view(-1, 1, 1, 1) * _inside(moved, images)[:, None]
    return images + mask * (nearby.clamp(0, 1)[:, :, None, None] - images)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """The square on mid-grey."""
    grey = torch.full((1, *shape), 0.5, device=params["colour"].device)
    return apply(params, grey, torch.tensor([strength], device=grey.device))[0, 0]


def _inside(params: Params, images: Tensor) -> Tensor:
    """(G, H, W), 1 in the square."""
    along = []
    for axis, length in enumerate(images.shape[-2:]):
        place, start = torch.arange(length, device=images.device), params["corner"][:, axis, None]
        along.append(((place >= start) & (place < start + params["size"])).to(images.dtype))
    return along[0][:, :, None] * along[1][:, None, :]


FAMILY = Family("square", 1.0, 0.05, 0.0, init, apply, vary, pattern, entries)
