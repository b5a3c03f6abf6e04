"""Options that several commands share, parsed into two frozen values."""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deepsanitizer._version import __version__
from deepsanitizer.cli.console import say
from deepsanitizer.cli.guard import State
from deepsanitizer.errors import UsageError

if TYPE_CHECKING:
    from deepsanitizer.types import Loaded

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Common:
    """How to run: the options that every command takes."""

    layer: str
    device: str
    seed: int
    threads: int | None
    timeout: float | None  # seconds
    quiet: bool
    verbose: bool

    def note(self, text: str) -> None:
        """A remark on stderr, unless -q."""
        if not self.quiet:
            say(f"note: {text}")

    def apply_threads(self) -> None:
        """Limit torch to --threads."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)


@dataclass(frozen=True, slots=True)
class Source:
    """Which model: PATH and how to build its network."""

    path: Path
    import_from: Path | None
    arch: str | None
    arch_kwargs: Mapping[str, Any] | None
    input_shape: tuple[int, ...] | None
    num_classes: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def load(self, common: Common) -> "Loaded":
        """Load the model, and say what loading noticed."""
        from deepsanitizer.loading import load

        common.apply_threads()
        options = {name: value for name, value in asdict(self).items() if name != "path"}
        loaded = load(self.path, **options)
        for remark in loaded.notes:
            common.note(remark)
        return loaded


class Numbers(click.ParamType[Any]):
    """A comma list of numbers, as in 3,32,32."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the list, or refuse the option by name."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)):
            what = "whole numbers, as in 3,32,32" if self.kind is int else "numbers, as in 0.5,0.5,0.5"
            self.fail(f"{value!r} is not a comma list of {what}", param, ctx)
        return numbers


class JsonObject(click.ParamType[Any]):
    """A JSON object, as in '{"width": 24}'."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the object, or refuse the option by name."""
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON ({error})", param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is not a JSON object, as in '{{\"width\": 24}}'", param, ctx)
        return parsed


def file_path(**restrictions: bool) -> click.Path:
    """A path option's type; whether the file is there is for the command to say."""
    return click.Path(path_type=Path, **restrictions)


_COMMON = (
    click.option("--layer", default="auto", show_default=True, metavar="NAME|auto",
                 help="Inspection layer, as `layers` lists them."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                 help="Where to compute."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
                 help="Same seed, same result."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N",
                 help="Processor threads.  [default: torch's own choice]"),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S",
                 help="Seconds after which to stop, keeping the best verified result, else nothing."),
    click.option("-q", "--quiet", is_flag=True, help="No progress, no notes: only the result and errors."),
    click.option("-v", "--verbose", is_flag=True, help="More notes; the traceback of an error."),
    click.version_option(__version__, prog_name="deepsanitizer"),
)

_SOURCE = (
    click.argument("path", type=file_path()),
    click.option("--import-from", type=file_path(), metavar="DIR",
                 help="Folder with the code of the network. That code is run: name it only if you trust it."),
    click.option("--arch", metavar="MODULE:CALLABLE", help="What builds the network of a bare weights file."),
    click.option("--arch-kwargs", type=JsonObject(), metavar="JSON", help="Keyword arguments for --arch."),
    click.option("--input-shape", type=Numbers(int), metavar="C,H,W",
                 help="Channels, height, width, as in 3,32,32."),
    click.option("--num-classes", type=click.IntRange(min=1), metavar="N", help="Number of classes."),
    click.option("--mean", type=Numbers(float), metavar="M,...",
                 help="Mean of each channel, for pixels in [0, 1].  [default: as the model folder says]"),
    click.option("--std", type=Numbers(float), metavar="S,...",
                 help="Standard deviation of each channel. A network fed 0..255 has mean 0, std 0.00392157."),
)


def common_options(*, unused: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Give a command the common options as its first argument, a `Common`.

    Options in `unused` are accepted, so that scripts can pass the same to every command, but kept out of
    --help, and said to have no effect when given.
    """
    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            context = click.get_current_context()
            common = Common(**{name: values.pop(name) for name in Common.__dataclass_fields__})
            state = context.find_object(State)
            if state is not None:
                state.verbose = common.verbose
            for name in unused:
                if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
                    common.note(f"--{name} has no effect on {context.info_name}")
            return command(common, **values)

        wrapped = _decorated(wrapper, _COMMON)
        for parameter in wrapped.__click_params__:  # type: ignore[attr-defined]
            parameter.hidden = getattr(parameter, "hidden", False) or parameter.name in unused
        return wrapped

    return decorate


def model_options(command: Command) -> Command:
    """Give a command PATH and the loading options as the argument `source`, a `Source`."""
    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        source = Source(**{name: values.pop(name) for name in Source.__dataclass_fields__})
        return command(source=source, **values)

    return _decorated(wrapper, _SOURCE)


def _decorated(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def check_writable(path: Path | None, option: str, *, keep: tuple[Path, ...] = ()) -> None:
    """Refuse, before any work, a file that could not be written, or that would overwrite one of `keep`."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder", "Name a file.")
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {folder}", "Make it first.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{option} {path} is not writable", "Choose another place.")
    for other in keep:
        if path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other)):
            raise UsageError(f"{option} {path} would overwrite another file of this command",
                             "Choose another name.")


def check_folder(path: Path | None, option: str) -> None:
    """Refuse, before any work, a folder that cannot be made or written into."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise UsageError(f"{option} {path} is not a folder", "Name a folder.")
    nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"{option} {path} is not writable", "Choose another place.")
