"""Fit a file's tensors to a network by name and shape, and copy them in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.loading.weights import float32, listed, quote, reason

PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_COUNTER = "num_batches_tracked"  # batch-norm's; not used in eval mode


@dataclass(frozen=True, slots=True)
class _Naming:
    """One reading of a file's keys, and what does not fit under it."""

    keys: Mapping[str, str]  # network key -> key in the file
    prefix: str
    missing: list[str]
    uncounted: list[str]  # missing batch-norm counters
    tied: list[str]  # missing, but sharing memory with one that is there
    unexpected: list[str]
    misshaped: list[str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def fit(network: nn.Module, tensors: Mapping[str, Tensor],
        name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Copy a file's tensors, as float32, into the network. Returns network key -> key in the file, and notes.

    A prefix that all keys share is taken off where the rest then fits. A missing batch-norm counter is
    harmless, and a missing tensor that shares its memory with one that is there needs no copy.
    Raises CannotJudgeError listing at most ten keys each that are missing, unexpected or of another shape.
    """
    own = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    naming = min((_compare(own, tensors, prefix) for prefix in _prefixes(tensors)),
                 key=lambda candidate: candidate.faults)
    if naming.faults:
        faults = {"missing": naming.missing, "unexpected": naming.unexpected,
                  "of another shape": naming.misshaped}
        parts = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in faults.items() if keys]
        raise CannotJudgeError(f"the weights in {name} do not fit the architecture ({'; '.join(parts)})",
                               "Check the architecture and its keyword arguments.")
    integers = [file_key for key, file_key in naming.keys.items()
                if own[key].is_floating_point() and not tensors[file_key].is_floating_point()]
    if integers:
        raise CannotJudgeError(f"floating-point weights are stored as integers in {name}: {listed(integers)}",
                               "Quantised weights cannot be judged: give the ones before quantisation.")
    try:
        network.load_state_dict({key: float32(tensors[file_key]) for key, file_key in naming.keys.items()},
                                strict=False)
    except Exception as error:  # a network may have hooks of its own here
        raise CannotJudgeError(f"the architecture does not take the weights in {name} ({reason(error)})",
                               "Check the architecture and its keyword arguments.") from error
    notes = []
    if naming.prefix:
        notes.append(f"The prefix {quote(naming.prefix)} of the names in the file was taken off.")
    if naming.uncounted:
        notes.append(f"{len(naming.uncounted)} batch-norm counters ({_COUNTER}) are not in the file; "
                     "they play no part in eval mode.")
    if naming.tied:
        notes.append(f"Not in the file, because shared with others that are: {listed(naming.tied)}.")
    return dict(naming.keys), tuple(notes)


def _prefixes(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """No prefix, then the known ones that all keys share, longer and longer."""
    prefix = ""
    while True:
        yield prefix
        longer = (prefix + more for more in PREFIXES)
        found = next((p for p in longer if tensors and all(key.startswith(p) for key in tensors)), None)
        if found is None:
            return
        prefix = found


def _compare(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> _Naming:
    named = {key.removeprefix(prefix): key for key in tensors}
    keys = {key: file_key for key, file_key in named.items() if key in own}
    absent = [key for key in own if key not in named]
    places = {_place(own[key]) for key in keys}
    tied = [key for key in absent if _place(own[key]) in places and own[key].numel()]
    uncounted = [key for key in absent if key.endswith(_COUNTER)]
    missing = [key for key in absent if key not in tied and key not in uncounted]
    unexpected = [file_key for key, file_key in named.items() if key not in own]
    misshaped = [f"{file_key} {list(tensors[file_key].shape)} for {list(own[key].shape)}"
                 for key, file_key in keys.items() if tensors[file_key].shape != own[key].shape]
    return _Naming(keys, prefix, missing, uncounted, tied, unexpected, misshaped)


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
