"""Probes: transformations of the kinds that triggers are, drawn in advance and searched by nobody.

Why: a search finds for every class the best that it answers to, and on small networks what is natural is as strong as
what was planted. A backdoor answers to what is like its trigger, too: to hard-edged patches, strong warps, tints near
enough. Natural classes seldom do. All classes are read from the same forward passes.
Limits: what is like no probe; where a class is a colour, as on signs, tints reach it on clean networks, too.
Reference: none known; measured in docs/research/log.md, 56.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.search.places import corners
from deepsanitizer.triggers.family import Shape


@dataclass(frozen=True, slots=True)
class Probes:
    """Transformations of one family (`triggers.FAMILIES`), all at one strength."""

    family: str
    params: dict[str, Tensor]
    strength: float


def stamps(shape: Shape, generator: torch.Generator) -> Probes:
    """White and both chequered patches of 5 pixels of 32 at every place, 3 pixels apart. None in black: black spots are
    what is on signs.
    """
    side = min(shape[1:])
    window, stride = max(2, round(side * 5 / 32)), max(1, round(side * 3 / 32))
    line = torch.arange(window)
    chequered = ((line[:, None] + line) % 2).float()
    kinds = torch.stack([torch.ones(window, window), chequered, 1 - chequered])
    places = corners(shape[1:], window, stride)
    picture = (8.0 * (2 * kinds - 1))[:, None].expand(-1, shape[0], -1, -1)  # of a sigmoid
    return Probes("place", {"picture": picture.repeat(len(places), 1, 1, 1),
                            "corner": places.repeat_interleave(len(kinds), 0)}, 1.0)


def warps(shape: Shape, generator: torch.Generator, *, count: int = 60) -> Probes:
    """Random flows, larger than those that are searched."""
    return Probes("warp", {"flow": torch.randn(count, 2, 5, 5, generator=generator)}, 2.5)


def tints(shape: Shape, generator: torch.Generator) -> Probes:
    """Three contrasts (1, 0.7 and 0.5), with each channel brighter, darker or as it is; of other than three channels
    all alike.
    """
    channels, bound = shape[0], 0.25
    signs = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=3))) if channels == 3 else (
        torch.tensor([[-1.0], [0.0], [1.0]]).expand(-1, channels))
    contrasts = torch.tensor([1.0, 0.7, 0.5])
    diagonal = torch.atanh(((contrasts - 1) / (2 * bound)).clamp(-0.999, 0.999))
    matrix = diagonal.view(-1, 1, 1) * torch.eye(channels)
    offset = torch.atanh(0.14 / bound * signs)[..., None, None]
    groups = len(signs) * len(contrasts)
    return Probes("filter", {"matrix": matrix.repeat_interleave(len(signs), 0), "offset": offset.repeat(3, 1, 1, 1),
                             "field": torch.zeros(groups, 1, 3, 3)}, bound)


PROBES: Mapping[str, Callable[[Shape, torch.Generator], Probes]] = {"stamps": stamps, "random warps": warps,
                                                                    "tints": tints}
