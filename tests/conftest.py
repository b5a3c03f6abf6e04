"""What test modules of several folders ask for by name."""

import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.planted import Attack, Planted, plant, shared_folder

# Started in the background, as under nohup, a process ignores these, and so do its children: tests send them.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first: minutes long, and at the end it would be alone on one core."""
    items.sort(key=lambda item: item.path.parts[-2:] != ("demo", "test_run.py"))


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
