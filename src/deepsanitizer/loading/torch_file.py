"""The torch format (.pt, .pth): a pickle of a state dict, in a zip archive or in torch's older plain layout.

A pickle is a program. It is first read as data with picklescan, so that what it would call can be named, and
then loaded with `torch.load(weights_only=True)`, which runs a small allowlist and nothing else. There is no
way around either.
"""

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from picklescan.scanner import SafetyLevel, ScanResult, scan_pickle_bytes, scan_pytorch
from picklescan.torch import InvalidMagicError
from torch import Tensor

from deepsanitizer.errors import CannotJudgeError, WorkError
from deepsanitizer.loading.weights import DAMAGED, Weights, check_tensors, listed, quote, reason, same

WRAPPERS = ("state_dict", "model_state_dict", "net_state_dict", "model", "net", "state_dict_ema")
_DEEPEST_WRAPPER = 3
_ZIP = b"PK\x03\x04"
_REFUSED = "It was not run. Get the weights as .safetensors, or as a .pt of network.state_dict() alone."


def looks_like(data: bytes) -> bool:
    """Whether bytes begin as a zip archive or a binary pickle does."""
    return data.startswith(_ZIP) or (data[:1] == b"\x80" and 2 <= int.from_bytes(data[1:2], "big") <= 5)


def read(data: bytes, name: str) -> Weights:
    """Scan, then load, the same bytes; find the state dict in them. `name` is for messages.

    Raises CannotJudgeError where the pickle is refused, the file is damaged, or there is no state dict in it.
    """
    if data.startswith(_ZIP):
        _check_archive(data, name)
    unknown = _refuse_dangerous(data, name)
    try:
        content = _unpickle(data)
    except Exception as error:  # torch fails in many ways on damaged files
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise WorkError(f"there is not enough memory to load {name}",
                            "Close other programs, or compare the file's size with the source.") from error
        names = _not_allowed(data, unknown)
        if isinstance(error, pickle.UnpicklingError) and names:
            raise CannotJudgeError(
                f"{name} holds a pickle with more than weights in it: it calls for {listed(names)}",
                _REFUSED) from error
        raise CannotJudgeError(f"{name} is a damaged or truncated torch file ({reason(error)})",
                               DAMAGED) from error
    state, wrapper, others = _unwrap(content, name)
    notes = []
    if wrapper:
        notes.append(f"The weights were taken from {' > '.join(map(quote, wrapper))} in the file.")
    if others:
        notes.append(f"Other weights in the file are not examined and stay as they are: {listed(others)}.")
    return Weights(check_tensors(state, name), wrapper=wrapper, notes=tuple(notes))


def rewrite(data: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """The same file with other values in the tensors of its state dict.

    Wrappers, other entries, dtypes, strides and shared storages stay, and the layout (zip or older).
    Raises WorkError where tensors that share memory in the file were given different values.
    """
    content = _unpickle(data)
    state, _, _ = _unwrap(content, "the input")
    with torch.no_grad():
        for key, tensor in tensors.items():
            if not same(state[key], tensor):
                _fill(state, key, tensor)
    torn = [key for key, tensor in tensors.items() if not same(state[key], tensor)]
    if torn:
        raise WorkError(f"tensors that share memory in the input were given different values: {listed(torn)}",
                        "Write a .safetensors file instead.")
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=data.startswith(_ZIP))
    return buffer.getvalue()


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A new file with a flat state dict. The format has no place for metadata: it is left out."""
    buffer = io.BytesIO()
    torch.save(OrderedDict((key, tensor.detach().clone()) for key, tensor in tensors.items()), buffer)
    return buffer.getvalue()


def _unpickle(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch on its own older formats
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _check_archive(data: bytes, name: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile fails in many ways on damaged files
        raise CannotJudgeError(f"{name} is a truncated or damaged zip archive ({reason(error)})",
                               DAMAGED) from error
    files = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in files:
        raise CannotJudgeError(f"{name} is a TorchScript archive, a program with its weights",
                               "Save network.state_dict() from it, and give that file.")
    if "data.pkl" not in files:
        raise CannotJudgeError(f"{name} is a zip archive, but not one that torch.save wrote",
                               "Give a .pt file written by torch.save, or a .safetensors file.")
    # torch.save does not compress: a compressed entry could unpack to any size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CannotJudgeError(f"{name} is a compressed zip archive, which torch.save does not write",
                               "Load it where you trust it and write it again with torch.save.")


def _refuse_dangerous(data: bytes, name: str) -> list[str]:
    """Refuse a pickle that names something dangerous; the names that torch may not allow either."""
    try:
        found = _scan(data)
    except Exception as error:  # evasion attempts make the scanner itself fail
        raise CannotJudgeError(f"the pickle in {name} cannot be read as data ({reason(error)})",
                               _REFUSED) from error
    dangerous = sorted({f"{item.module}.{item.name}" for item in found.globals
                        if item.safety == SafetyLevel.Dangerous})
    if dangerous:
        raise CannotJudgeError(
            f"{name} holds a pickle that would run code: it calls for {listed(dangerous)}", _REFUSED)
    return sorted({f"{item.module}.{item.name}" for item in found.globals
                   if item.safety != SafetyLevel.Innocuous or item.module.startswith("numpy")})


def _scan(data: bytes) -> ScanResult:
    try:
        return scan_pytorch(io.BytesIO(data), "input")
    except InvalidMagicError:  # a plain pickle without torch's magic number
        return scan_pickle_bytes(io.BytesIO(data), "input")


def _not_allowed(data: bytes, unknown: list[str]) -> list[str]:
    """Of the unknown names, those outside torch's allowlist (which torch can only tell for zip archives)."""
    if not data.startswith(_ZIP):
        return unknown
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:  # the message then names all that is not known to be harmless
        return unknown


def _unwrap(content: Any, name: str) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """The state dict, the keys that lead to it, and the other wrappers that were passed by."""
    wrapper: tuple[str, ...] = ()
    others: list[str] = []
    while True:
        if not isinstance(content, dict):
            raise CannotJudgeError(f"{name} holds a {type(content).__name__}, not a state dict",
                                   "Save network.state_dict().")
        inner = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not inner or len(wrapper) == _DEEPEST_WRAPPER:
            break
        others += inner[1:]
        content, wrapper = content[inner[0]], (*wrapper, inner[0])
    if not all(isinstance(key, str) for key in content):
        raise CannotJudgeError(f"the state dict in {name} has keys that are not text",
                               "Save network.state_dict().")
    if content and not any(isinstance(value, Tensor) for value in content.values()):
        raise CannotJudgeError(f"no state dict was found in {name}, which has {listed(content)}",
                               f"Save it flat, or under one of {', '.join(WRAPPERS)}.")
    return content, wrapper, others


def _fill(state: dict[str, Any], key: str, tensor: Tensor) -> None:
    try:
        state[key].copy_(tensor)
    except RuntimeError:  # an expanded tensor, whose elements share memory, takes no copy
        state[key] = tensor.clone()
