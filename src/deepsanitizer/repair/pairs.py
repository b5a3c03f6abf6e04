"""Pairs (x, T(x)) of dummies and transformed dummies, from a bank of recovered triggers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.triggers import vary_trigger
from deepsanitizer.types import Dummies, Trigger


@dataclass(frozen=True, slots=True)
class Pairs:
    """Dummies (N, C, H, W), the same transformed, the goal that each transformation has for them (N,)."""

    plain: Tensor
    changed: Tensor
    goals: Tensor


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small shifts of the batch, random horizontal flips of each image."""
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    flip = (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5).to(images.device)
    shifted = torch.roll(images, (down, right), (2, 3))
    return torch.where(flip, shifted.flip(3), shifted)


def make_pairs(dummies: Dummies, bank: Sequence[Trigger], generator: torch.Generator, *, count: int,
               weakest: float = 0.5, chunk: int = 50, augmented: bool = True,
               varied: bool = True) -> Pairs:
    """`count` pairs, the bank's triggers in random turn, each on `chunk` dummies of classes to which it applies.

    Half of the dummies are shifted and flipped where `augmented` and `movable`; triggers are replaced by neighbours of
    themselves where `varied`, always at random strengths from `weakest` up. Raises CannotJudgeError where no
    dummy is of a class that a trigger applies to.
    """
    assert bank
    labels, plain, changed, goals = dummies.labels, [], [], []
    made = turn = 0
    order = torch.randperm(len(bank), generator=generator).tolist()
    while made < count:
        trigger = bank[order[turn % len(bank)]]
        goal = trigger.goals_of(labels)
        usable = (goal >= 0).nonzero()[:, 0]
        turn += 1
        if not len(usable):
            if turn >= len(bank) and not made:
                break  # no dummy of a source class at all
            continue
        size = min(chunk, count - made)
        chosen = usable[torch.randint(len(usable), (size,), generator=generator).to(usable.device)]
        images = dummies.images[chosen]
        if augmented and dummies.movable and turn % 2:
            images = augment(images, generator)
        plain.append(images)
        changed.append(vary_trigger(trigger, images, generator, weakest=weakest, varied=varied))
        goals.append(goal[chosen])
        made += size
    if not plain:
        raise CannotJudgeError("no dummy is of a class that the accused transformation applies to",
                               "The network answers nothing else: name another class with --target.")
    return Pairs(torch.cat(plain), torch.cat(changed), torch.cat(goals))
