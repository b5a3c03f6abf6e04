"""Import an architecture or a function from a folder that the user trusts, and from nowhere else.

Importing runs code. So nothing is imported unless the user names the folder, the module comes from that
folder alone, and afterwards `sys.path` and `sys.modules` are as before.

Limits: what the module imports lazily from beside itself, after it was built, is not found.
"""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.loading.weights import listed, quote, reason

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def build(architecture: str, kwargs: Mapping[str, Any], import_from: str | Path | None) -> nn.Module:
    """Import "module:callable" from a folder and call it: the network, in float32, weights still random.

    Raises UsageError where the folder is not given or does not have the module or the callable,
    CannotJudgeError where the code fails.
    """
    with _imported(architecture, import_from) as factory:
        network = factory(**kwargs)
        if isinstance(network, nn.Module):
            return network.float().eval()
    raise CannotJudgeError(f"{quote(architecture)} gives a {type(network).__name__}, not an nn.Module",
                           "Name a module class, or a function that returns a network.")


def import_callable(name: str, import_from: str | Path | None) -> Callable[..., Any]:
    """Import "module:callable" from a folder. Raises as `build` does."""
    with _imported(name, import_from) as found:
        return found


@contextlib.contextmanager
def _imported(name: str, import_from: str | Path | None) -> Iterator[Callable[..., Any]]:
    """The callable, inside the only place where foreign code runs and its failures are put into words."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{quote(name)} is not of the form module:callable",
                         "Write it as in networks:ResNet or package.networks:ResNet.")
    if import_from is None:
        raise UsageError(f"{quote(name)} would have to be imported, which runs code",
                         "If you trust that code, name the folder it is in with --import-from DIR.")
    folder = Path(import_from).resolve()
    if not folder.is_dir():
        raise UsageError(f"--import-from {import_from} is not a folder",
                         "Name the folder that the module is in.")
    module_name, _, attribute = name.partition(":")
    files = _files(folder, module_name)
    # the code may print, but standard output is for the result; it may draw numbers, which are the caller's
    with _imports_from(folder), contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
        try:
            yield _attribute(_import(files), name, attribute)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # foreign code can fail in any way
            raise CannotJudgeError(
                f"{quote(name)} failed ({reason(error)})",
                "Check its keyword arguments, and that what it imports is installed.") from error


def _files(folder: Path, module_name: str) -> dict[str, Path]:
    """The file of the module, and the `__init__.py` (or, without one, the folder) of each package around."""
    parts = module_name.split(".")
    files: dict[str, Path] = {}
    for depth in range(1, len(parts) + 1):
        base = folder.joinpath(*parts[:depth])
        package = base / "__init__.py"
        choices = [package, base.with_name(base.name + ".py")] + ([base] if depth < len(parts) else [])
        found = next((path for path in choices if path.is_file() or (path == base and path.is_dir())), None)
        if found is None:
            raise UsageError(f"{folder} has no module {quote(module_name)}",
                             "Name the folder that it is in with --import-from.")
        if not found.resolve().is_relative_to(folder):
            raise UsageError(f"the module {quote(module_name)} leads out of {folder}",
                             "Name the folder that it really is in with --import-from.")
        files[".".join(parts[:depth])] = found
    return files


def _import(files: Mapping[str, Path]) -> ModuleType:
    module: ModuleType | None = None
    for name, path in files.items():
        if path.is_dir():
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(path)]
        else:
            inside = [str(path.parent)] if path.name == "__init__.py" else None
            found = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
            assert found is not None
            spec = found
        parent = module
        module = sys.modules.get(name)  # a package may have imported it already
        if module is None or not _is_inside(module, path.parent):
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            if spec.loader is not None:
                spec.loader.exec_module(module)
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], module)
    assert module is not None
    return module


def _attribute(module: ModuleType, full_name: str, path: str) -> Callable[..., Any]:
    value: Any = module
    for name in path.split("."):
        if not hasattr(value, name):
            classes = {key: item for key, item in vars(module).items() if isinstance(item, type)}
            near = [key for key, item in classes.items()
                    if issubclass(item, nn.Module) and item.__module__ == module.__name__]
            raise UsageError(f"there is no {quote(full_name)}",
                             f"The module has {listed(near)}." if near else "Check the name after the colon.")
        value = getattr(value, name)
    if not callable(value):
        raise UsageError(f"{quote(full_name)} cannot be called", "Name a class or a function.")
    found: Callable[..., Any] = value
    return found


@contextlib.contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported inside, under their own names, and forget them afterwards."""
    writes_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # leave the user's folder as it is
    try:
        # what is on the path already is imported as ever: forgetting an installed package would break it
        with contextlib.nullcontext() if _on_path(folder) else _isolated(folder):
            yield
    finally:
        sys.dont_write_bytecode = writes_bytecode


@contextlib.contextmanager
def _isolated(folder: Path) -> Iterator[None]:
    tops = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    tops -= {*sys.stdlib_module_names, "torch", "numpy", "deepsanitizer"}
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in tops:  # another folder's module of the same name
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if before.get(name) is not module and _is_inside(module, folder):
                del sys.modules[name]
        for name, module in before.items():
            sys.modules.setdefault(name, module)


def _on_path(folder: Path) -> bool:
    return any(Path(entry).resolve() == folder for entry in sys.path)


def _is_inside(module: ModuleType, folder: Path) -> bool:
    names = getattr(module, "__dict__", {})  # asking a module itself can run its code, or fail
    places = [names.get("__file__"), *(names.get("__path__") or ())]
    return any(isinstance(place, str) and Path(place).is_relative_to(folder) for place in places)
