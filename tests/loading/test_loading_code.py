"""Importing the architecture: only where the user says so, only from there, and leaving no trace."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.loading import import_callable, load
from deepsanitizer.loading.importing import build
from loading.models import SOURCE, network, problem, state_of, write_folder


def test_without_permission_nothing_is_imported(tmp_path: Path, code: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "nets.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + SOURCE)
    folder = write_folder(tmp_path / "m", state_of(network()))
    monkeypatch.chdir(code)
    message = problem(UsageError, lambda: load(folder))
    assert "runs code" in message
    assert "--import-from" in message
    assert not (tmp_path / "ran").exists()
    load(folder, import_from=code)
    assert (tmp_path / "ran").exists()


def test_no_trace_is_left(code: Path) -> None:
    path, modules, random = list(sys.path), dict(sys.modules), torch.random.get_rng_state()
    build("nets:Net", {}, code)
    assert sys.path == path
    assert {name for name, module in sys.modules.items() if modules.get(name) is not module} == set()
    assert set(modules) <= set(sys.modules)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [file.name for file in code.iterdir()] == ["nets.py"]  # no __pycache__


def test_modules_beside_it_and_packages(code: Path) -> None:
    (code / "helper.py").write_text("WIDTH = 6\n")
    package = code / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from package.blocks import act\n")
    (package / "blocks.py").write_text("from torch import nn\ndef act():\n    return nn.ELU()\n")
    (package / "inner" / "nets.py").write_text(  # inner is a namespace package
        "from torch import nn\nfrom helper import WIDTH\nfrom ..blocks import act\n"
        "class Outer:\n    @staticmethod\n    def make():\n        from package import act as same\n"
        "        assert same is act\n        return nn.Sequential(nn.Linear(WIDTH, 2), act())\n")
    net = build("package.inner.nets:Outer.make", {}, code)
    assert [type(layer).__name__ for layer in net.children()] == ["Linear", "ELU"]
    assert not {"helper", "package", "package.blocks", "package.inner"} & set(sys.modules)


def test_two_folders_with_the_same_module_names(tmp_path: Path) -> None:
    for width in (2, 3):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "helper.py").write_text(f"WIDTH = {width}\n")
        (folder / "nets.py").write_text("from torch import nn\nfrom helper import WIDTH\n"
                                        "def net():\n    return nn.Linear(WIDTH, 2)\n")
        assert build("nets:net", {}, folder).in_features == width


def test_modules_of_the_caller_stay(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = type(sys)("nets")
    monkeypatch.setitem(sys.modules, "nets", mine)
    assert type(build("nets:Net", {}, code)).__name__ == "Net"
    assert sys.modules["nets"] is mine


def test_a_module_named_as_one_of_the_standard_library(code: Path) -> None:
    import colorsys

    (code / "colorsys.py").write_text(SOURCE)
    assert type(build("colorsys:Net", {}, code)).__name__ == "Net"
    assert sys.modules["colorsys"] is colorsys


def test_an_installed_package_stays_imported(monkeypatch: pytest.MonkeyPatch, code: Path) -> None:
    monkeypatch.syspath_prepend(code)
    build("nets:Net", {}, code)
    assert sys.modules.pop("nets").__file__ == str(code / "nets.py")
    site = Path(torch.__file__).parents[1]
    before = sys.modules["torch"]
    assert import_callable("torch.nn:Linear", site) is torch.nn.Linear
    assert sys.modules["torch"] is before


def test_what_the_code_prints_is_no_result(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code / "nets.py").write_text("print('imported')\n" + SOURCE)
    build("nets:Net", {}, code)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "imported" in captured.err


@pytest.mark.parametrize("name", [
    "../nets:Net", "/etc/nets:Net", "..nets:Net", "nets", "nets:", ":Net", "nets:Net()", "nets:a b",
    "a/b:Net",
    "a\\b:Net", "nets:Net\n", "nets:Net:x", "", "os.:system", "nets:\x1b[31m"])
def test_names_that_are_not_names(code: Path, name: str) -> None:
    assert "module:callable" in problem(UsageError, lambda: build(name, {}, code))


@pytest.mark.parametrize("name", [
    "other:Net", "os:system", "nets.inner:Net", "package.x:Net", "torch.nn:Linear"])
def test_modules_that_the_folder_does_not_have(code: Path, name: str) -> None:
    assert "has no module" in problem(UsageError, lambda: build(name, {}, code))


def test_a_link_out_of_the_folder(tmp_path: Path, code: Path) -> None:
    (tmp_path / "outside.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (code / "inside.py").symlink_to(tmp_path / "outside.py")
    assert "leads out of" in problem(UsageError, lambda: build("inside:Net", {}, code))
    assert not (tmp_path / "ran").exists()


def test_folder_or_callable_missing(tmp_path: Path, code: Path) -> None:
    assert "not a folder" in problem(UsageError, lambda: build("nets:Net", {}, tmp_path / "no"))
    message = problem(UsageError, lambda: build("nets:Nat", {}, code))
    assert "'Net', 'Tied'" in message
    assert "cannot be called" in problem(UsageError, lambda: build("nets:CONSTANT", {}, code))


@pytest.mark.parametrize(("source", "words"), [
    ("import no_such_package_here", "no_such_package_here"), ("def f(:", "SyntaxError"),
    ("1 / 0", "ZeroDivisionError"), ("import sys\nsys.exit(5)", "SystemExit"),
    ("raise RuntimeError('a\\x1b[31m\\nb')", "RuntimeError")])
def test_code_that_fails(code: Path, source: str, words: str) -> None:
    (code / "broken.py").write_text(source)
    assert words in problem(CannotJudgeError, lambda: build("broken:f", {}, code))
    assert "broken" not in sys.modules
    assert str(code) not in sys.path


def test_arguments_and_results_that_are_wrong(code: Path) -> None:
    assert "unexpected keyword" in problem(CannotJudgeError, lambda: build("nets:Net", {"depth": 3}, code))
    assert "gives a int" in problem(CannotJudgeError, lambda: build("nets:number", {}, code))


def test_ctrl_c_passes_through(code: Path) -> None:
    (code / "slow.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        build("slow:f", {}, code)
    assert str(code) not in sys.path


def test_import_callable_outlives_its_import(code: Path) -> None:
    (code / "trigger.py").write_text("import helper\ndef invert(images):\n    return helper.one - images\n")
    (code / "helper.py").write_text("one = 1.0\n")
    assert import_callable("trigger:invert", code)(torch.zeros(2)).tolist() == [1.0, 1.0]
    assert "--import-from" in problem(UsageError, lambda: import_callable("trigger:invert", None))


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, deepsanitizer, deepsanitizer.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
