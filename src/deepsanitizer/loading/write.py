"""Write weights in the place of others, drop-in: the same keys, shapes, dtypes and what surrounds them."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from deepsanitizer.errors import UsageError, WorkError
from deepsanitizer.loading.atomic import check_writable, write_file, write_folder
from deepsanitizer.loading.folder import CONFIG, WEIGHTS
from deepsanitizer.loading.formats import FORMATS, FormatName
from deepsanitizer.loading.sniff import Sniffed, read_once, sniff
from deepsanitizer.loading.weights import Weights, float32, listed, same
from deepsanitizer.types import Checkpoint

OutputFormat = Literal["folder", "safetensors", "torch"]
_COUNTER = "num_batches_tracked"


def save(state: Mapping[str, Tensor], like: Checkpoint, output: str | Path) -> str:
    """Write new weights in the form of a checkpoint, whole or not at all. Returns the weights file's SHA-256.

    `state` is by network key, on any device. Tensors go back to the dtype they were stored in; those that did
    not change keep their stored bytes. The output's suffix decides the format. The same format keeps
    everything else (metadata, wrappers, other entries, shared memory); another one gets a flat state dict
    under the file's keys.
    Raises UsageError as `check_output` does, WorkError where the disk is full, the input has changed since it
    was loaded, or the weights do not fit.
    """
    check_output(like, output)
    source = _source(like)
    stored = FORMATS[source.format].read(source.data, like.weights.name)
    tensors = _in_stored_form(state, like, stored)
    return _put(_encoded(tensors, stored, source, _format_of(output)), like, output)


def copy_unchanged(like: Checkpoint, output: str | Path) -> str:
    """Write a byte-identical copy of a checkpoint's weights (and config). Returns the weights file's SHA-256.

    Where the output's suffix asks for another format, the tensors as stored are written in that format
    instead.
    Raises as `save` does.
    """
    check_output(like, output)
    source = _source(like)
    if _weights_format(_format_of(output)) == source.format:
        return _put(source.data, like, output)
    stored = FORMATS[source.format].read(source.data, like.weights.name)
    return _put(_encoded(stored.tensors, stored, source, _format_of(output)), like, output)


def read_back(like: Checkpoint, output: str | Path) -> dict[str, Tensor]:
    """What a written checkpoint holds, by network key: rounded to the stored dtype, then float32.

    Has the keys of `like.keys` alone: load it with strict=False where batch-norm counters or shared tensors
    were not in the input either.
    """
    path = Path(output) / WEIGHTS if _format_of(output) == "folder" else Path(output)
    found = sniff(path)
    tensors = FORMATS[found.format].read(found.data, path.name).tensors
    lost = [key for key in like.keys.values() if key not in tensors]
    if lost:
        raise WorkError(f"{path} lacks {listed(lost)}",
                        "It was changed after it was written: write it again.")
    return {key: float32(tensors[file_key]) for key, file_key in like.keys.items()}


def check_output(like: Checkpoint, output: str | Path) -> None:
    """Raise UsageError where nothing can or should be written to `output`. Call it before the work."""
    path, kind = Path(output), _format_of(output)
    if not path.name:
        raise UsageError(f"the output {str(output)!r} has no name", "Give --output a file or folder name.")
    if kind == "folder" and like.format != "folder":
        raise UsageError(f"the output {output} is a folder, but the input is a file",
                         f"Give a file name that ends in {_suffixes()}.")
    for taken in (like.path, like.weights, *([like.path / CONFIG] if like.format == "folder" else [])):
        if _is_same(path, taken):
            raise UsageError(f"the output {output} is the input",
                             "Choose another --output: inputs are not changed.")
    if like.format == "folder" and path.resolve().is_relative_to(like.path.resolve()):
        raise UsageError(f"the output {output} is inside the input folder", "Choose another --output.")
    if not os.path.isdir(path.parent):
        raise UsageError(f"there is no folder {path.parent} to write to",
                         "Create it, or choose another --output.")
    if os.path.lexists(path):
        _check_existing(path, kind)
    check_writable(path.parent, path)


def _check_existing(path: Path, kind: OutputFormat) -> None:
    if kind == "folder":
        if not os.path.isdir(path):
            raise UsageError(f"the output {path} is a file, where a folder is to be written",
                             f"Give a new folder name, or a file name that ends in {_suffixes()}.")
        try:
            full = next(path.iterdir(), None) is not None
        except OSError as error:
            raise UsageError(f"the output folder {path} cannot be read ({error.strerror})",
                             "Choose another --output.") from error
        if full:
            raise UsageError(f"the output folder {path} is not empty", "Choose a new or an empty folder.")
    elif not os.path.isfile(path):
        raise UsageError(f"the output {path} is not a regular file", "Choose another --output.")
    elif not os.access(path, os.W_OK):
        raise UsageError(f"the output {path} exists and is write-protected", "Choose another --output.")


def _format_of(output: str | Path) -> OutputFormat:
    """The format that an output's name asks for."""
    path = Path(output)
    if str(output).endswith(("/", os.sep)) or os.path.isdir(path) or not path.suffix:
        return "folder"
    for name, file_format in FORMATS.items():
        if path.suffix.lower() in file_format.suffixes:
            return name
    raise UsageError(f"the output's suffix {path.suffix!r} is not one that can be written",
                     f"End it in {_suffixes()}, or give a folder for a model folder.")


def _suffixes() -> str:
    return ", ".join(suffix for file_format in FORMATS.values() for suffix in file_format.suffixes)


def _weights_format(kind: OutputFormat) -> FormatName:
    return "safetensors" if kind == "folder" else kind


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.resolve() == other.resolve() or path.samefile(other)
    except OSError:  # one of them does not exist
        return False


def _source(like: Checkpoint) -> Sniffed:
    """The input's bytes again; refused where they are not those that were examined."""
    source = sniff(like.weights)
    if source.sha256 != like.sha256:
        raise WorkError(f"{like.weights} has changed since it was loaded",
                        "Run again on the file as it is now.")
    return source


def _in_stored_form(state: Mapping[str, Tensor], like: Checkpoint, stored: Weights) -> dict[str, Tensor]:
    lost = [key for key in like.keys if key not in state]
    # what the file has no place for must be a batch-norm counter, or share its values with what the file has
    kept = {key: state[key].detach().cpu() for key in like.keys if key in state}
    extra = [key for key in state if key not in kept and not key.endswith(_COUNTER)
             and not any(same(state[key].detach().cpu(), other) for other in kept.values())]
    if lost or extra:
        raise WorkError(f"the new weights have other names than the file: {listed(lost + extra)}",
                        "Give the state dict of the network that was loaded.")
    return {file_key: _cast(file_key, kept[key], stored.tensors[file_key])
            for key, file_key in like.keys.items()}


def _cast(key: str, new: Tensor, old: Tensor) -> Tensor:
    if new.shape != old.shape:
        raise WorkError(f"the new {key!r} has shape {list(new.shape)}, not {list(old.shape)}",
                        "Give the state dict of the network that was loaded.")
    if same(float32(old), new):
        return old  # keeps what float32 cannot hold of a float64
    result = new.to(old.dtype)
    if result.is_floating_point() and not result.float().isfinite().all():
        raise WorkError(f"the new {key!r} is not finite in {old.dtype}, the dtype of the file",
                        "Convert the input to a wider dtype first.")
    return result


def _encoded(tensors: Mapping[str, Tensor], stored: Weights, source: Sniffed, kind: OutputFormat) -> bytes:
    target = _weights_format(kind)
    if target == source.format:
        return FORMATS[target].rewrite(source.data, tensors)
    return FORMATS[target].encode(tensors, stored.metadata)


def _put(data: bytes, like: Checkpoint, output: str | Path) -> str:
    path = Path(output)
    if _format_of(output) == "folder":
        write_folder(path, {CONFIG: read_once(like.path / CONFIG), WEIGHTS: data})
    else:
        write_file(path, data)
    return hashlib.sha256(data).hexdigest()
