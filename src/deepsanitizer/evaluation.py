"""Measure a classifier on the user's own data: ACC, and with a trigger ASR and RA, all in percent.

Nothing that scans or repairs imports this file: the data and the trigger are the user's, and only measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, classifier_of, logits_of, resolve_compute
from deepsanitizer.errors import UsageError
from deepsanitizer.types import InputSpec, Kind, Loaded

TriggerOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """ACC, ASR and RA in percent; the latter two are None without a trigger."""

    acc: float  # clean images classified right
    asr: float | None  # triggered images sent to the attacker's goal
    ra: float | None  # triggered images still classified right
    images: int  # clean images measured
    triggered: int  # triggered images measured


def evaluate(model: Loaded | nn.Module, images: NDArray[np.uint8], labels: NDArray[Any], *,
             spec: InputSpec | None = None, trigger: TriggerOf | None = None, target: int | None = None,
             source: int | None = None, mode: Kind = "all2one", goals: Sequence[int] | None = None,
             device: str = "auto", batch: int = 500) -> Evaluation:
    """ACC on images uint8 (N, C, H, W) with labels (N,); with a trigger also ASR and RA. Computes in float32.

    `trigger` maps images in [0, 1] to triggered ones; the result is rounded to whole steps of 1/255, as in a
    stored image. It is put on the images that the attack is for: `all2one` those of other classes than
    `target`, `specific` those of class `source` only (goal `target`), `all2all` all of them: to `goals`, the goal of
    each class (-1 or itself: the class is left out), or to the next class (the last one's is 0). A bare module needs
    `spec`. Raises UsageError where data, trigger and model do not fit.
    """
    network, spec = (model.network, model.spec) if isinstance(model, Loaded) else (model, spec)
    if spec is None:
        raise UsageError("a bare module does not say how it wants its input", "Give spec=InputSpec(...).")
    check_data(images, labels)
    if images.shape[1:] != spec.shape:
        raise UsageError(f"the images are {images.shape[1:]}, the model takes {spec.shape}",
                         "Give data of the model's own input shape.")
    if labels.max() >= spec.num_classes:
        raise UsageError(f"there is a label {labels.max()}, but the model has {spec.num_classes} classes",
                         "Labels count from 0 in the model's own class order.")
    classifier = classifier_of(network, spec, resolve_compute(device))
    pixels, truth = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    with classifier.exact():
        acc = _percent(_classes(classifier, pixels, batch) == truth)
        if trigger is None:
            return Evaluation(acc=acc, asr=None, ra=None, images=len(truth), triggered=0)
        chosen, goal = _attacked(truth, spec.num_classes, target, source, mode, goals)
        parts = [_triggered(trigger, part) for part in torch.split(pixels[chosen], batch)]
        said = _classes(classifier, torch.cat(parts), batch)
    return Evaluation(acc=acc, asr=_percent(said == goal[chosen]), ra=_percent(said == truth[chosen]),
                      images=len(truth), triggered=int(chosen.sum()))


def _attacked(truth: Tensor, num_classes: int, target: int | None, source: int | None, mode: Kind,
              goals: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Which images the attack is for (N,) bool, and the class it wants each sent to (N,)."""
    if mode == "all2all":
        return _permuted(truth, num_classes, goals)
    if mode not in ("all2one", "specific"):
        raise UsageError(f"there is no mode {mode!r}", "Choose all2one, specific or all2all.")
    named = [("target", target)] if mode == "all2one" else [("target", target), ("source", source)]
    for name, value in named:
        if value is None or not 0 <= value < num_classes:
            raise UsageError(f"mode {mode} needs a {name} from 0 to {num_classes - 1}, not {value}",
                             f"Give it with --{name}.")
    if mode == "specific" and source == target:
        raise UsageError(f"source and target are both {target}", "Give two different classes.")
    assert target is not None
    chosen = truth.ne(target) if source is None or mode == "all2one" else truth.eq(source)
    if not chosen.any():
        which = f"of class {source}" if mode == "specific" else f"of classes other than {target}"
        raise UsageError(f"the data has no images {which}", "Give data on which the attack can be measured.")
    return chosen, torch.full_like(truth, target)


def _permuted(truth: Tensor, num_classes: int, goals: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The same where each class has a goal of its own."""
    if goals is None:
        goals = [(k + 1) % num_classes for k in range(num_classes)]
    if len(goals) != num_classes or not all(-1 <= goal < num_classes for goal in goals):
        raise UsageError(f"the goals {list(goals)} are not one for each of the {num_classes} classes",
                         "Give a class for each class, -1 for none.")
    goal = torch.tensor(goals)[truth]
    chosen = goal.ge(0) & goal.ne(truth)
    if not chosen.any():
        raise UsageError("the data has no images of classes that have a goal",
                         "Give data on which the attack can be measured.")
    return chosen, goal


def _triggered(trigger: TriggerOf, pixels: Tensor) -> Tensor:
    """uint8 images with the trigger, rounded to uint8 again. UsageError where it does not return images."""
    stamped = trigger(pixels.float() / 255)
    if not isinstance(stamped, Tensor) or stamped.shape != pixels.shape or not stamped.is_floating_point():
        what = tuple(stamped.shape) if isinstance(stamped, Tensor) else type(stamped).__name__
        raise UsageError(f"the trigger returns {what} for images of shape {tuple(pixels.shape)}",
                         "It must map float images (N, C, H, W) in [0, 1] to the same.")
    if not stamped.isfinite().all():
        raise UsageError("the trigger returns pixels that are not finite", "It must return images in [0, 1].")
    return (stamped.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def _classes(classifier: Classifier, pixels: Tensor, batch: int) -> Tensor:
    """The class of each uint8 image; only one batch at a time is held as float."""
    parts = torch.split(pixels, batch)
    return torch.cat([logits_of(classifier, part.float() / 255).argmax(1) for part in parts])


def _percent(hits: Tensor) -> float:
    return hits.double().mean().item() * 100


def check_data(images: NDArray[Any], labels: NDArray[Any]) -> None:
    """UsageError unless these are uint8 images (N, C, H, W) and whole labels (N,) from 0, at least one."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UsageError(f"images is {images.dtype} of shape {images.shape}",
                         "It must be uint8 of shape (N, C, H, W), pixels 0 to 255.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise UsageError(f"labels is {labels.dtype} of shape {labels.shape}",
                         "It must be whole numbers of shape (N,).")
    if len(images) != len(labels):
        raise UsageError(f"there are {len(images)} images and {len(labels)} labels",
                         "Give one label for each.")
    if images.size == 0:
        raise UsageError("there are no images in the data", "Give at least one.")
    if labels.min() < 0:
        raise UsageError(f"there is a label {labels.min()}", "Labels count from 0.")


def load_data(path: str | Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`images` uint8 (N, C, H, W) and `labels` (N,) of a .npz; nothing in the file is executed.

    Raises UsageError where the file is missing or damaged, holds pickles, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no data file {path}", "Give an .npz with the arrays images and labels.")
    try:
        with path.open("rb") as file:  # numpy leaves a damaged file open
            pack = np.load(file, allow_pickle=False)
            if not isinstance(pack, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} is not an .npz of several arrays", "Write it with numpy.savez.")
            missing = [name for name in ("images", "labels") if name not in pack.files]
            if missing:
                raise UsageError(f"{path} has no array {' or '.join(missing)}; "
                                 f"it has {', '.join(pack.files)}", "Name the arrays images and labels.")
            images, labels = pack["images"], pack["labels"]
    except (BadZipFile, OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as data: {str(error).splitlines()[0]}",
                         "Write it with numpy.savez, without pickled objects.") from error
    check_data(images, labels)
    return images, labels.astype(np.int64)
