"""Running the command line in this process, and small models to give it."""

from pathlib import Path

import pytest
from helpers.cli import Answer, Run
from helpers.models import write_code, write_folder

from deepsanitizer.cli import main_code


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        code = main_code([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """For --import-from."""
    return write_code(tmp_path / "code")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder whose network is in `code`."""
    return write_folder(tmp_path / "model")
