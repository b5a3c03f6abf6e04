"""What an attack is, and how trigger images become files."""

from typing import Protocol

import torch
from torch import Tensor


class Attack(Protocol):
    """A trigger with its parameters. The same images give the same result; the input is left as it is."""

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to the same with the trigger, in [0, 1]."""
        ...


def stamp(attack: Attack, images: Tensor, *, batch: int = 1000) -> Tensor:
    """uint8 images with the trigger, rounded to uint8 as they would be stored."""
    parts = [(attack.apply(part.float() / 255) * 255).round().to(torch.uint8)
             for part in torch.split(images, batch)]
    return torch.cat(parts) if parts else images
