import os
from pathlib import Path

import pytest
import torch

from loading.models import SOURCE


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder to import from, with `nets.py`."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "nets.py").write_text(SOURCE)
    return folder


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of trained models beside the checkout."""
    shared = Path(os.environ.get("DEEPSANITIZER_SHARED", Path(__file__).parents[2].parent / "shared"))
    if not (shared / "zoo" / "networks.py").is_file():
        pytest.skip(f"there is no folder of trained models at {shared / 'zoo'}")
    return shared / "zoo"
