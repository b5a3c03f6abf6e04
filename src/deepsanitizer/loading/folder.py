"""A model folder: `config.json` says how to build the network and feed it, `model.safetensors` has weights.

No other file of the folder is read.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.loading.sniff import Sniffed, read_once, sniff
from deepsanitizer.loading.weights import listed, quote, reason

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


class Config(msgspec.Struct, frozen=True):
    """The content of `config.json`. Mean and std are per channel, in units of [0, 1] pixels."""

    architecture: str  # "module:callable"
    kwargs: dict[str, Any]
    input_shape: tuple[int, int, int]  # channels, height, width
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None


def read_config(folder: Path) -> tuple[Config, tuple[str, ...]]:
    """The folder's config, and notes on it. Raises CannotJudgeError naming the field that is wrong."""
    path = folder / CONFIG
    if not os.path.isfile(path):
        raise CannotJudgeError(f"the folder {folder} has no {CONFIG}",
                               "Give the weights file itself with --arch and the other options.")
    data = read_once(path)
    try:
        config = msgspec.json.decode(data, type=Config)
        names = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CannotJudgeError(f"{path} is not a valid model description ({reason(error)})",
                               f"It needs {', '.join(Config.__struct_fields__[:-1])}.") from error
    unread = [name for name in names if name not in Config.__struct_fields__]
    return config, ((f"Fields of {CONFIG} that mean nothing here: {listed(unread)}.",) if unread else ())


def sniff_weights(folder: Path) -> Sniffed:
    """The folder's weights file. Raises CannotJudgeError where it is missing or is not safetensors."""
    path = folder / WEIGHTS
    if not os.path.isfile(path):
        raise CannotJudgeError(f"the folder {folder} has no {WEIGHTS}", "Download or copy the folder again.")
    found = sniff(path)
    if found.format != "safetensors":
        raise CannotJudgeError(f"{path} is a {found.format} file, not what its name {quote(WEIGHTS)} says",
                               "A model folder holds safetensors: get the folder from its source again.")
    return found
