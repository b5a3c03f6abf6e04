"""What a weights file holds before it meets a network, and how its untrusted names are shown to people."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepsanitizer.errors import CannotJudgeError

DAMAGED = "Download or copy the file again, and compare its size or hash with the source."


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file's tensors as stored, by key in the file and in file order, and what surrounds them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file
    wrapper: tuple[str, ...] = ()  # path of keys to the state dict, in a torch file
    notes: tuple[str, ...] = ()


def quote(name: object) -> str:
    """A name from a file in quotes, shortened, on one line, with control characters escaped."""
    text = str(name)
    return repr(text if len(text) <= 100 else text[:97] + "...")


def listed(names: Iterable[object], limit: int = 10) -> str:
    """Quoted names for a message, at most `limit` of them and how many more there are."""
    rest = iter(names)
    shown = ", ".join(quote(name) for name in itertools.islice(rest, limit))
    more = sum(1 for _ in rest)
    return f"{shown} and {more} more" if more else shown


def reason(error: BaseException) -> str:
    """An exception in one short line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    shown = "".join(c if c.isprintable() else "?" for c in first[:200])
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is floating-point, else as it is. May share memory."""
    return tensor.float() if tensor.is_floating_point() else tensor


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape, dtype and set of values."""
    if a.dtype != b.dtype:
        return False
    if a.dtype.itemsize == 1 and a.is_floating_point():  # torch cannot compare float8
        a, b = a.float(), b.float()
    return torch.equal(a, b)


def check_tensors(tensors: Mapping[str, object], name: str) -> dict[str, Tensor]:
    """The mapping, known to hold only ordinary dense tensors with finite values.

    Raises CannotJudgeError naming the entries that are not.
    """
    if not tensors:
        raise CannotJudgeError(f"{name} holds no tensors", "Give a file with the weights of a classifier.")
    other = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if other:
        raise CannotJudgeError(f"the state dict in {name} holds values that are not tensors: {listed(other)}",
                               "Save network.state_dict() alone.")
    plain = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    odd = [key for key, value in plain.items()
           if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized]
    if odd:
        raise CannotJudgeError(f"{name} holds sparse, quantized or empty-shell tensors: {listed(odd)}",
                               "Save the weights as ordinary dense tensors.")
    refuse_non_finite(plain, name)
    return plain


def refuse_non_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise CannotJudgeError naming the floating-point tensors with NaN or infinite values."""
    bad = [key for key, value in tensors.items()
           if value.is_floating_point() and not value.detach().float().isfinite().all()]
    if bad:
        raise CannotJudgeError(f"{name} has NaN or infinite weights in {listed(bad)}",
                               "Such a network cannot be judged: get an undamaged copy.")
