"""The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

Reference: https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.loading.weights import DAMAGED, Weights, check_tensors, reason

_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


def looks_like(data: bytes) -> bool:
    """Whether bytes begin as a safetensors file does."""
    return data[8:9] == b"{" and _header_length(data) <= _LARGEST_HEADER


def read(data: bytes, name: str) -> Weights:
    """Parse the bytes of a file. `name` is for messages.

    Raises CannotJudgeError where the file is truncated, damaged, or holds what cannot be judged.
    """
    if 8 + _header_length(data) > len(data):
        raise CannotJudgeError(f"{name} is truncated: its header is not complete", DAMAGED)
    try:
        header = _header(data)
        needed = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"),
                     default=0)
        if 8 + _header_length(data) + needed > len(data):
            raise CannotJudgeError(f"{name} is truncated: {len(data)} bytes of "
                                   f"{8 + _header_length(data) + needed}", DAMAGED)
        by_key = safetensors.torch.load(data)
        tensors = {key: by_key[key] for key in header if key != "__metadata__"}
        metadata = {str(key): str(value) for key, value in header.get("__metadata__", {}).items()}
    except CannotJudgeError:
        raise
    except Exception as error:  # a hostile header can make any of the calls above fail in any way
        raise CannotJudgeError(f"{name} is not a valid safetensors file ({reason(error)})",
                               DAMAGED) from error
    return Weights(check_tensors(tensors, name), metadata)


def rewrite(data: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """The same file with other values in its tensors; its header stays byte for byte."""
    start = 8 + _header_length(data)
    result = bytearray(data)
    for key, entry in _header(data).items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert len(raw) == end - begin, key
            result[start + begin:start + end] = raw
    return bytes(result)


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A new file. Tensors that share memory are written out each: the format has no aliases."""
    apart = {key: tensor.detach().clone(memory_format=torch.contiguous_format)
             for key, tensor in tensors.items()}
    return bytes(safetensors.torch.save(apart, dict(metadata) or {"format": "pt"}))


def _header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _header(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8:8 + _header_length(data)])
    return header
