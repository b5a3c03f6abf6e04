"""Asking for help must be quick: nothing that it imports pulls in torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "safetensors", "msgspec", "jinja2", "PIL")
REPORT = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
HELP = """
import sys
from deepsanitizer.cli import main_code
code = main_code(sys.argv[1:])
assert code == 0, code
print([name for name in {heavy} if name in sys.modules])
"""


def _last_line(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", *arguments], capture_output=True, text=True,
                          check=True)
    return done.stdout.splitlines()[-1]


def test_importing_the_package() -> None:
    touch = "import deepsanitizer; deepsanitizer.__version__; dir(deepsanitizer); "
    assert _last_line("-c", touch + REPORT) == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["scan", "--help"], ["sanitize", "--help"],
                                       ["evaluate", "--help"], ["layers", "--help"], ["demo", "--help"],
                                       ["doctor", "--help"]], ids=" ".join)
def test_help(arguments: list[str]) -> None:
    assert _last_line("-c", HELP.format(heavy=HEAVY), *arguments) == "[]"


def test_the_module_runs() -> None:
    assert _last_line("-m", "deepsanitizer", "--version").startswith("deepsanitizer, version ")
