"""What a family of universal transformations is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Family:
    """A family: how to start, apply and vary its parameters, and how it is best searched.

    Every parameter has a leading dimension G: that many transformations are held and applied side by side.
    """

    name: str
    strength: float  # generous: at it a backdoor runs away from natural universal patterns
    lr: float  # of Adam, when searched
    noise: float  # deviation of the Gaussian noise added to transformed images when searched
    init: Callable[[int, Shape, torch.Generator], dict[str, Tensor]]  # G, (C, H, W), generator
    apply: Callable[[Params, Tensor, Tensor], Tensor]  # params, (B, C, H, W), strength (G,) -> (G, B, C, H, W)
    vary: Callable[[Params, Tensor, Tensor, torch.Generator], Tensor]  # G = 1: a neighbour per image, (B, C, H, W)
    pattern: Callable[[Params, Shape, float], Tensor]  # G = 1: a picture of it, (C, H, W) in [0, 1]
    entries: Callable[[Shape], dict[str, Tensor]] | None = None  # its fixed dictionary, tried one by one


def per_group(strength: Tensor, dims: int = 5) -> Tensor:
    """Strength (G,) shaped to multiply (G, B, C, H, W)."""
    return strength.view(-1, *([1] * (dims - 1)))


def on_mid_grey(apply: Callable[[Params, Tensor, Tensor], Tensor], params: Params, shape: Shape,
                strength: float) -> Tensor:
    """A picture of a transformation: what it makes of a mid-grey image, (C, H, W)."""
    device = next(iter(params.values())).device
    grey = torch.full((1, *shape), 0.5, device=device)
    return apply(params, grey, torch.tensor([strength], device=device))[0, 0]


def on_chart(apply: Callable[[Params, Tensor, Tensor], Tensor], params: Params, shape: Shape,
             strength: float) -> Tensor:
    """What a change of colours makes of a chart: hue from left to right, light from top to bottom (grey: only that)."""
    channels, height, width = shape
    light = torch.linspace(1, 0, height).view(1, -1, 1).expand(channels, height, width)
    phase = torch.arange(channels).view(-1, 1, 1) / channels
    hue = 0.5 + 0.5 * torch.cos(2 * torch.pi * (torch.linspace(0, 1, width).view(1, 1, -1) - phase))
    chart = (0.35 * light + 0.65 * light * hue if channels > 1 else light).to(next(iter(params.values())).device)
    return apply(params, chart[None], torch.tensor([strength], device=chart.device))[0, 0]


def vary_field(clean: Tensor, changed: Tensor, generator: torch.Generator, *, partial: float = 0.4,
               noise: float = 0.03) -> Tensor:
    """Neighbours of a full-image pattern: for a share of the images only in soft regions, for half with noise."""
    count, _, height, width = clean.shape
    region = torch.rand(count, 1, 4, 4, generator=generator)
    region = torch.nn.functional.interpolate(region, size=(height, width), mode="bicubic", align_corners=False)
    in_part = torch.rand(count, 1, 1, 1, generator=generator) < partial
    weight = torch.where(in_part, ((region - 0.35) * 4).clamp(0, 1), torch.ones_like(region))
    noisy = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).float()
    grain = noise * noisy * torch.randn(clean.shape, generator=generator)
    return (clean + (changed - clean) * weight.to(clean.device) + grain.to(clean.device)).clamp(0, 1)
