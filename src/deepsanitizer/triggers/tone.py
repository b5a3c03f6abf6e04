"""Tones: a colour matrix, then a curve from dark to light for every channel, as photo editors have them.

What it covers: filters with curves, which `filter` has not (it is smooth in the input), and strong colour matrices.
Strength: the share of the way from the image to the changed one. Parameters: `matrix` (G, C, C), what is added to the
identity around mid-grey, and `curve` (G, C, 5), what is added to the identity at black, white and between.
Limits: the same for every pixel; no light that depends on the place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape, on_chart, per_group

KNOTS = 5
_AT = torch.linspace(0, 1, KNOTS)


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """Near the identity."""
    return {"matrix": 0.02 * torch.randn(groups, shape[0], shape[0], generator=generator),
            "curve": 0.02 * torch.randn(groups, shape[0], KNOTS, generator=generator)}


def entries(shape: Shape) -> dict[str, Tensor]:
    """A fixed dictionary: gammas, contrasts and faded ends in all channels and in each; for three channels colours
    paler, stronger and turned, sepia and two split tones. None so strong that the content is lost.
    """
    channels = shape[0]
    curves = [made(_AT) - _AT for made in (*_gammas(), *_contrasts())]
    found = [(torch.zeros(channels, channels), curve.repeat(channels, 1)) for curve in curves]
    for channel in range(channels if channels > 1 else 0):
        for made in _gammas():
            alone = torch.zeros(channels, KNOTS)
            alone[channel] = made(_AT) - _AT
            found.append((torch.zeros(channels, channels), alone))
    if channels == 3:
        flat = torch.zeros(3, KNOTS)
        found += [(matrix - torch.eye(3), flat) for matrix in _matrices()]
        light, dark = (made(_AT) - _AT for made in _gammas())
        found += [(torch.zeros(3, 3), torch.stack(split)) for split in ((light, flat[0], dark), (dark, flat[0], light))]
    return {"matrix": torch.stack([matrix for matrix, _ in found]), "curve": torch.stack([c for _, c in found])}


def _gammas() -> tuple[Callable[[Tensor], Tensor], ...]:
    return lambda x: x ** 0.5, lambda x: x ** 2


def _contrasts() -> tuple[Callable[[Tensor], Tensor], ...]:
    """Steeper, an S; flatter; blacks lifted; whites dimmed."""
    return (lambda x: (2 * x - 0.5).clamp(0, 1), lambda x: x * x * (3 - 2 * x), lambda x: 0.25 + 0.5 * x,
            lambda x: 0.25 + 0.75 * x, lambda x: 0.75 * x)


def _matrices() -> list[Tensor]:
    """Grey, half as pale, twice as strong; turned about the grey axis by a sixth and a twelfth both ways; sepia."""
    eye, grey = torch.eye(3), torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    axis = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3 ** 0.5
    turns = [torch.tensor(angle) for angle in (-torch.pi / 3, -torch.pi / 6, torch.pi / 6, torch.pi / 3)]
    sepia = torch.tensor([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return [grey, (eye + grey) / 2, 2 * eye - grey,
            *(axis + turn.cos() * (eye - axis) + turn.sin() * across for turn in turns), sepia]


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    matrix = torch.eye(images.shape[1], device=images.device) + params["matrix"]
    mixed = (torch.einsum("gij,bjhw->gbihw", matrix, images - 0.5) + 0.5).clamp(0, 1)
    changed = mixed
    for knot in range(KNOTS):  # a hat over each knot: linear between them
        hat = (1 - ((KNOTS - 1) * mixed - knot).abs()).clamp_min(0)
        changed = changed + params["curve"][:, None, :, knot, None, None] * hat
    return images[None] + per_group(strength) * (changed.clamp(0, 1) - images[None])


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The tone at each image's strength."""
    changed = apply(params, images, torch.ones(1, device=images.device))[0]
    return images + strength.view(-1, 1, 1, 1) * (changed - images)


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """What it makes of a colour chart."""
    return on_chart(apply, params, shape, strength)


FAMILY = Family("tone", 1.0, 0.05, 0.06, init, apply, vary, pattern, entries)
