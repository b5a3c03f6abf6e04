"""The registry of weights-file formats. A further format is one file and one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from deepsanitizer.loading import safetensors_file, torch_file
from deepsanitizer.loading.weights import Weights

FormatName = Literal["safetensors", "torch"]


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A file format: how to recognise it by content, read it, and write it again or anew."""

    suffixes: tuple[str, ...]  # that choose it for an output
    looks_like: Callable[[bytes], bool]
    read: Callable[[bytes, str], Weights]  # a file's bytes, and its name for messages
    rewrite: Callable[[bytes, Mapping[str, Tensor]], bytes]  # the same file with other values
    encode: Callable[[Mapping[str, Tensor], Mapping[str, str]], bytes]  # a new file: tensors, metadata


# Asked in this order: a safetensors file can begin with the two bytes of a pickle, its header length.
FORMATS: dict[FormatName, FileFormat] = {
    "safetensors": FileFormat((".safetensors",), safetensors_file.looks_like, safetensors_file.read,
                              safetensors_file.rewrite, safetensors_file.encode),
    "torch": FileFormat((".pt", ".pth"), torch_file.looks_like, torch_file.read, torch_file.rewrite,
                        torch_file.encode),
}
