"""Patches anywhere: a free picture under a soft mask of bounded area.

What it covers: patches and scattered pixels whose place is not known.
Strength: the area of the mask as a share of the image. Limits: small patches are missed by the free mask; the
search by place (`place`) finds those.
"""

import torch
from torch import Tensor

from deepsanitizer.triggers.family import Family, Params, Shape


def init(groups: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """A mask open a little everywhere, a grey picture."""
    return {"mask": 0.1 * torch.randn(groups, 1, *shape[1:], generator=generator) - 2,
            "picture": 0.1 * torch.randn(groups, *shape, generator=generator)}


def soft_mask(params: Params, strength: Tensor) -> Tensor:
    """(G, 1, H, W), its mean at most the strength."""
    mask = torch.sigmoid(params["mask"])
    return mask * (strength.view(-1, 1, 1, 1) / mask.mean((1, 2, 3), keepdim=True)).clamp(max=1)


def apply(params: Params, images: Tensor, strength: Tensor) -> Tensor:
    """(G, B, C, H, W)."""
    mask = soft_mask(params, strength)[:, None]
    return images[None] * (1 - mask) + mask * torch.sigmoid(2 * params["picture"])[:, None]


def vary(params: Params, images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The patch softer or hardened, for half of the images mixed with a plain colour."""
    count, channels = images.shape[:2]
    mask = soft_mask(params, strength.max().view(1))

    def uniform(size: int = 1) -> Tensor:
        return torch.rand(count, size, 1, 1, generator=generator).to(images.device)

    hard = (mask > 0.3 * mask.max()).float()
    mask = torch.where(uniform() < 0.5, hard, mask)
    plain = torch.where(uniform() < 0.5, (uniform(channels) > 0.5).float(), (uniform() > 0.5).float())
    share = torch.where(uniform() < 0.5, uniform(), torch.zeros(1, device=images.device))
    picture = (1 - share) * torch.sigmoid(2 * params["picture"]) + share * plain
    return images * (1 - mask) + mask * picture


def pattern(params: Params, shape: Shape, strength: float) -> Tensor:
    """The picture where the mask is open, on white."""
    mask = soft_mask(params, torch.tensor([strength], device=params["mask"].device))[0]
    shown = (mask / mask.max().clamp_min(1e-6)).clamp(0, 1)
    return 1 - shown + shown * torch.sigmoid(2 * params["picture"][0])


FAMILY = Family("patch", 25 / 1024, 0.3, 0.06, init, apply, vary, pattern)
