"""Checkpoints in and out: load a network from a file or a folder, write other weights in its place.

Nothing in a file is executed. The format is told by content, never by name. Each format is one file here, and
one line in `formats.FORMATS`; a model folder (`folder.py`) is a description beside a weights file of such a
format.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.loading.describe import Options, describe_file, describe_folder
from deepsanitizer.loading.fit import fit
from deepsanitizer.loading.folder import WEIGHTS, read_config, sniff_weights
from deepsanitizer.loading.formats import FORMATS, FormatName
from deepsanitizer.loading.importing import build, import_callable
from deepsanitizer.loading.sniff import sniff
from deepsanitizer.loading.weights import reason, refuse_non_finite
from deepsanitizer.loading.write import check_output, copy_unchanged, read_back, save
from deepsanitizer.types import Checkpoint, InputSpec, Loaded

__all__ = ["FORMATS", "check_output", "copy_unchanged", "from_module", "import_callable", "load", "read_back",
           "save"]


def load(path: str | Path, *, import_from: str | Path | None = None, arch: str | None = None,
         arch_kwargs: Mapping[str, Any] | None = None, input_shape: Sequence[int] | None = None,
         num_classes: int | None = None, mean: Sequence[float] | None = None,
         std: Sequence[float] | None = None) -> Loaded:
    """Load a classifier from a model folder, or from a bare .safetensors, .pt or .pth file.

    `import_from` is the folder that the architecture's module is imported from, which runs its code. `arch`
    ("module:callable"), `arch_kwargs`, `input_shape` (channels, height, width), `num_classes`, and `mean` and
    `std` (per channel, in units of [0, 1] pixels: a network fed 0..255 has std 1/255) describe bare weights;
    for a model folder they replace what its config.json says, and `notes` then says so.
    Raises UsageError where the file does not exist or something is not given, CannotJudgeError where the file
    is damaged, refused, or does not fit the architecture.
    """
    path = Path(path)
    options = Options(arch=arch, arch_kwargs=arch_kwargs, input_shape=input_shape, num_classes=num_classes,
                      mean=mean, std=std)
    # all that a file can be refused for comes before what the user forgot to say, and before any code is run
    if os.path.isdir(path):  # unlike Path.is_dir, answers no where a folder above is not readable
        config, config_notes = read_config(path)
        found = sniff_weights(path)
        weights_path = path / WEIGHTS
    else:
        config, config_notes = None, ()
        found = sniff(path)
        weights_path = path
    weights = FORMATS[found.format].read(found.data, weights_path.name)
    description = describe_file(options, path.name) if config is None else describe_folder(config, options)
    network = build(description.architecture, description.kwargs, import_from)
    keys, fit_notes = fit(network, weights.tensors, weights_path.name)
    checkpoint = Checkpoint(
        path=path, format=found.format if config is None else "folder", sha256=found.sha256,
        weights=weights_path, keys=keys, metadata=weights.metadata, wrapper=weights.wrapper,
        dtypes={key: tensor.dtype for key, tensor in weights.tensors.items()})
    return Loaded(network.eval(), description.spec, checkpoint,
                  (*config_notes, *description.notes, *_suffix_note(path, found.format, config is not None),
                   *weights.notes, *fit_notes))


def from_module(network: nn.Module, spec: InputSpec) -> Loaded:
    """A network built elsewhere, as a private copy in eval mode and float32. The caller's own is untouched.

    Raises CannotJudgeError where it cannot be copied or has NaN or infinite weights.
    """
    try:
        private = copy.deepcopy(network).float().eval()
    except Exception as error:  # foreign modules fail to copy in many ways
        raise CannotJudgeError(f"the network cannot be copied ({reason(error)})",
                               "Give a module that copy.deepcopy can copy.") from error
    refuse_non_finite(private.state_dict(), type(network).__name__)
    return Loaded(private, spec, None)


def _suffix_note(path: Path, found: FormatName, folder: bool) -> tuple[str, ...]:
    if folder or path.suffix.lower() in FORMATS[found].suffixes:
        return ()
    return (f"The file's content is in the {found} format, which its name does not say.",)
