"""Read the data packs that models are trained and measured on.

A pack is one `<name>.npz` without pickles in the `data` folder of the shared folder. It holds each split as
JPEG files laid end to end: `<split>_jpeg` (uint8), `<split>_end` (end offset of each file), `<split>_label`; or as
recordings, in `<split>_mulaw`, which become pictures (`bench.speech`). What else is known of each sample lies beside
that: `<split>_speaker`. `fsdd+speaker` names the pack `fsdd` with a class for each pair of a label and a speaker.
The shared folder is `$DEEPSANITIZER_SHARED`, else the folder `shared` beside the checkout.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deepsanitizer.bench.speech import spectrograms, waves
from deepsanitizer.errors import CannotJudgeError, UsageError

SharedSplit = Literal["train", "test"]


def shared_folder() -> Path:
    """The folder with data packs and trained models; UsageError where there is none."""
    named = os.environ.get("DEEPSANITIZER_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[4] / "shared"
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} with data packs",
                         "Put it beside the checkout as ../shared, or name it in DEEPSANITIZER_SHARED.")
    return folder


def load_pack(name: str, split: SharedSplit) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images of a split as uint8 (N, C, H, W), C = 1 for grey packs and recordings, and their labels (N,).

    `name` may be `pack+field`: see the module. Raises UsageError where the pack, the split or the field does not exist,
    CannotJudgeError where the file is damaged.
    """
    name, _, finer = name.partition("+")
    path = shared_folder() / "data" / f"{name}.npz"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.npz"))) or "none"
        raise UsageError(f"there is no data pack {name!r} in {path.parent}", f"Packs there: {known}.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as pack:
            if not {f"{split}_mulaw", f"{split}_jpeg"} & {*pack.files} or (finer and f"{split}_{finer}" not in pack):
                raise UsageError(f"the pack {name!r} has no {finer or 'images'} of a split {split!r}",
                                 f"It holds {', '.join(pack.files)}.")
            labels = pack[f"{split}_label"].astype(np.int64)
            if finer:
                labels += (labels.max() + 1) * pack[f"{split}_{finer}"].astype(np.int64)
            if f"{split}_mulaw" in pack:
                return spectrograms(waves(pack[f"{split}_mulaw"], pack[f"{split}_end"])), labels
            blob, ends = pack[f"{split}_jpeg"].tobytes(), pack[f"{split}_end"]
        starts = np.concatenate([[0], ends[:-1]])
        images = np.stack([_decode(blob[a:b]) for a, b in zip(starts, ends, strict=True)])
    except (BadZipFile, OSError, KeyError, ValueError, UnidentifiedImageError) as error:
        raise CannotJudgeError(f"the data pack {path} is damaged: {error}", "Fetch it again.") from error
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def keep_classes(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[int],
                 ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images of some classes only, in order; their labels become the class's place in `classes`."""
    place = np.full(int(labels.max()) + 1, -1)
    place[list(classes)] = np.arange(len(classes))
    rows = place[labels] >= 0
    return images[rows], place[labels[rows]].astype(np.int64)


def _decode(jpeg: bytes) -> NDArray[Any]:
    """One picture as uint8 (H, W, C)."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of [0, 1] pixels, rounded to four digits."""
    per_channel = images.transpose(1, 0, 2, 3).reshape(images.shape[1], -1)
    mean, std = per_channel.mean(1) / 255, per_channel.std(1) / 255
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


GTSRB_NAMES = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
    "speed limit 80", "end of speed limit 80", "speed limit 100", "speed limit 120", "no overtaking",
    "no overtaking by lorries", "right of way at next crossing", "priority road", "give way", "stop",
    "no vehicles", "no lorries", "no entry", "danger", "bend to the left", "bend to the right",
    "double bend", "uneven road", "slippery road", "road narrows on the right", "road works",
    "traffic signals", "pedestrians", "children", "bicycles", "ice or snow", "wild animals",
    "end of all limits", "turn right ahead", "turn left ahead", "ahead only", "straight or right",
    "straight or left", "keep right", "keep left", "roundabout", "end of no overtaking",
    "end of no overtaking by lorries",
)
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASS_NAMES = {"gtsrb": GTSRB_NAMES, "cifar10": CIFAR10_NAMES}
