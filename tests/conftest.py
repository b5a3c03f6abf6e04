"""What test modules of several folders ask for by name."""

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.planted import Attack, Planted, plant, shared_folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small batches are slower on several threads, and far slower where the processors are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Attack], Planted]:
    """The planted network of an attack; weights are shared between test processes."""
    folder = shared_folder(tmp_path_factory.getbasetemp())
    known: dict[Attack, Planted] = {}

    def get(attack: Attack) -> Planted:
        if attack not in known:
            known[attack] = plant(attack, folder)
        return known[attack]

    return get
