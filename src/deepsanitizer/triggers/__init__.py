"""Families of universal transformations, one file each: what a backdoor's trigger can look like."""

import torch
from torch import Tensor

from deepsanitizer.errors import UsageError
from deepsanitizer.triggers import add, blend, filter, grating, patch, place, quantise, square, tone, warp
from deepsanitizer.triggers.family import Family
from deepsanitizer.triggers.storage import load_trigger, save_trigger
from deepsanitizer.types import Trigger

FAMILIES: dict[str, Family] = {
    "add": add.FAMILY,
    "blend": blend.FAMILY,
    "filter": filter.FAMILY,
    "grating": grating.FAMILY,
    "patch": patch.FAMILY,
    "place": place.FAMILY,
    "quantise": quantise.FAMILY,
    "square": square.FAMILY,
    "tone": tone.FAMILY,
    "warp": warp.FAMILY,
}

__all__ = ["FAMILIES", "Family", "apply_trigger", "load_trigger", "pattern_of", "save_trigger", "vary_trigger"]


def apply_trigger(trigger: Trigger, images: Tensor) -> Tensor:
    """Images (N, C, H, W) in [0, 1] with the trigger at its full strength."""
    if trigger.family not in FAMILIES:
        raise UsageError(f"there is no trigger family {trigger.family!r}", f"Known: {', '.join(FAMILIES)}.")
    strength = torch.tensor([trigger.strength], device=images.device)
    params = {name: value.to(images.device) for name, value in trigger.params.items()}
    return FAMILIES[trigger.family].apply(params, images, strength)[0]


def vary_trigger(trigger: Trigger, images: Tensor, generator: torch.Generator, *, weakest: float,
                 varied: bool = True) -> Tensor:
    """The trigger, or a neighbour of it, on all images at a random share of its strength in [weakest, 1].

    Neighbours have a strength for each image, the trigger itself one for the batch.
    """
    family = FAMILIES[trigger.family]
    if not varied and trigger.family != "place":
        share = weakest + (1 - weakest) * torch.rand(1, generator=generator)
        return family.apply(trigger.params, images, (trigger.strength * share).to(images.device))[0]
    shares = weakest + (1 - weakest) * torch.rand(len(images), generator=generator)
    return family.vary(trigger.params, images, (trigger.strength * shares).to(images.device), generator)


def pattern_of(trigger: Trigger, shape: tuple[int, int, int]) -> Tensor:
    """A picture of the trigger itself, (C, H, W) in [0, 1]."""
    return FAMILIES[trigger.family].pattern(trigger.params, shape, trigger.strength).clamp(0, 1)
