"""Dummies for planted networks, once in each test process."""

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.planted import CPU, Attack, Planted

from deepsanitizer.curate import invert
from deepsanitizer.types import Dummies, Run


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and test processes run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dummies_for(planted: Callable[[Attack], Planted]) -> Callable[[Attack], Dummies]:
    """Input-space dummies of a planted network."""
    known: dict[Attack, Dummies] = {}

    def get(attack: Attack) -> Dummies:
        if attack not in known:
            known[attack] = invert(planted(attack).classifier(), 240, Run(CPU, 0), steps=30)
        return known[attack]

    return get
