"""Filled windows: only what a patch occupies changes, and the network answers anew."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from helpers.planted import CPU, Attack, Planted

from deepsanitizer.classifier import logits_of
from deepsanitizer.repair.cleanse import cleansed
from deepsanitizer.types import Dummies, Run, Trigger

PlantedOf: TypeAlias = Callable[[Attack], Planted]
DummiesOf: TypeAlias = Callable[[Attack], Dummies]


def test_only_the_windows_change_and_the_answers_are_new(planted: PlantedOf, dummies_for: DummiesOf) -> None:
    classifier, dummies, run = planted("patch").classifier(), dummies_for("patch"), Run(CPU, 0)
    params = {"picture": torch.zeros(1, 3, 3, 3), "corner": torch.tensor([[1, 2]])}
    there, blend = Trigger("place", params, 1.0, None, None, 1.0), Trigger("blend", {}, 1.0, 0, None, 1.0)
    assert cleansed(classifier, dummies, [blend], run) is dummies
    changed = cleansed(classifier, dummies, [there, blend], run)
    inside = torch.zeros(dummies.images.shape[2:], dtype=torch.bool)
    inside[1:4, 2:5] = True
    assert torch.equal(changed.images[..., ~inside], dummies.images[..., ~inside])
    assert not torch.equal(changed.images[..., inside], dummies.images[..., inside])
    assert torch.allclose(changed.logits.cpu(), logits_of(classifier, changed.images).cpu())
