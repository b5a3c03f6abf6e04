import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from loading.models import SOURCE

NOBODY = 65534


@pytest.fixture(autouse=True, scope="module")
def small_batches(one_thread: None) -> None:
    """Everything here runs on one thread."""


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user whom permissions bind, as whom the test runs: the superuser becomes one for the while."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, NOBODY, NOBODY)
        try:
            os.setresuid(NOBODY, NOBODY, 0)
        except OSError as error:  # a container with a single user
            pytest.skip(f"there is no other user to become: {error}")
        try:
            yield Path(folder)
        finally:
            os.setresuid(0, 0, 0)


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
