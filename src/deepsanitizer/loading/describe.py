"""What weights alone do not say: the architecture, and how to feed it, from config.json or from options."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.loading.folder import Config
from deepsanitizer.types import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user said about the network; None: nothing. The names are those of the options of `load`."""

    arch: str | None = None
    arch_kwargs: Mapping[str, Any] | None = None
    input_shape: Sequence[int] | None = None
    num_classes: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Description:
    """How to build the network, and how to feed it."""

    architecture: str
    kwargs: Mapping[str, Any]
    spec: InputSpec
    notes: tuple[str, ...] = ()


def describe_file(options: Options, name: str) -> Description:
    """The description of bare weights. Raises UsageError naming every option that is missing."""
    required = {"arch": options.arch, "input_shape": options.input_shape, "num_classes": options.num_classes,
                "mean": options.mean, "std": options.std}
    missing = [_flag(key) for key, value in required.items() if value is None]
    if missing:
        remedy = "Say how to build and feed the network, as in --arch networks:ResNet --input-shape 3,32,32."
        if "--mean" in missing or "--std" in missing:
            remedy += " Use --mean 0,0,0 --std 1,1,1 if the network takes pixels in [0, 1]."
        raise UsageError(f"{name} holds weights only, and {', '.join(missing)} "
                         f"{'is' if len(missing) == 1 else 'are'} not given", remedy)
    assert options.arch is not None
    return Description(options.arch, dict(options.arch_kwargs or {}), _spec(required))


def describe_folder(config: Config, options: Options) -> Description:
    """The description of a model folder. An option that was given wins over config.json, and a note says so.

    Raises CannotJudgeError where config.json contradicts itself, UsageError where an option does not fit.
    """
    values: dict[str, Any] = {
        "arch": config.architecture, "arch_kwargs": config.kwargs, "input_shape": config.input_shape,
        "num_classes": config.num_classes, "mean": config.mean, "std": config.std}
    given = options.given()
    notes = tuple(f"{_flag(key)} {_shown(value)} was used, not {_shown(values[key])} of config.json."
                  for key, value in given.items() if _shown(value) != _shown(values[key]))
    values |= given
    try:
        spec = _spec(values, config.class_names)
    except UsageError as error:
        if given:
            raise
        raise CannotJudgeError(f"config.json: {error.problem}", error.remedy) from error
    return Description(values["arch"], dict(values["arch_kwargs"]), spec, notes)


def _spec(values: Mapping[str, Any], class_names: tuple[str, ...] | None = None) -> InputSpec:
    try:
        shape, num_classes = tuple(map(int, values["input_shape"])), int(values["num_classes"])
        mean, std = tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"input_shape, num_classes, mean or std is not a number or a list of them ({error})",
                         "Give them as in --input-shape 3,32,32 --num-classes 10.") from error
    if not all(map(math.isfinite, mean + std)):
        raise UsageError("mean or std has a value that is not finite",
                         "Check --mean and --std, or config.json.")
    return InputSpec(shape, num_classes, mean, std, class_names)  # type: ignore[arg-type]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(f"{number:g}" for number in value)
    return str(value)
