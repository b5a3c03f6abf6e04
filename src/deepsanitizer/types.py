"""The frozen values that flow through the program, and the protocols of its replaceable parts.

The threat model is kept here: a signal, a remedy or a search receives `Classifier`s, `Split`s, `Dummies`,
evidence and a `Run`. No type in this file can carry real images, labels or a true trigger.

Units: images are float32 (N, C, H, W) with pixels in [0, 1] (a network fed 0..255 has std 1/255); margins are
logit differences; shares and agreements are 0 to 1; ACC, ASR and RA (only in `evaluate` and `bench`) are percent.
"""

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from deepsanitizer.errors import CannotJudgeError, DeadlineReachedError, UsageError
from deepsanitizer.records import (
    Agreement,
    Effort,
    Kind,
    LayerChange,
    ModelFacts,
    Outcome,
    Picture,
    SanitizeReport,
    ScanReport,
    SearchComparison,
    SignalResult,
    Suspect,
    VerdictName,
)

__all__ = [
    "Agreement",
    "Checkpoint",
    "Compute",
    "Dummies",
    "Effort",
    "Evidence",
    "FeatureDummies",
    "InputSpec",
    "Kind",
    "LayerChange",
    "Loaded",
    "ModelFacts",
    "Outcome",
    "PassMeter",
    "Picture",
    "Progress",
    "Run",
    "SanitizeReport",
    "ScanReport",
    "SearchComparison",
    "SignalResult",
    "Suspect",
    "Trigger",
    "Verdict",
    "VerdictName",
    "silent",
]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a network wants its images: shape (C, H, W), and mean and std per channel in units of [0, 1] pixels."""

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(size < 1 for size in self.shape):
            raise UsageError(f"the input shape {self.shape} is not (channels, height, width)",
                             "Give it as in --input-shape 3,32,32.")
        if self.num_classes < 2:
            raise CannotJudgeError(f"the model has {self.num_classes} class",
                                   "A backdoor needs a class to send images to: nothing can be judged.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                raise UsageError(f"{name} has {len(values)} values for {self.shape[0]} input channels",
                                 "Give one number for each channel.")
        if any(not value > 0 for value in self.std):
            raise UsageError("a standard deviation in std is not above zero", "Check --std or config.json.")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UsageError(f"class_names has {len(self.class_names)} names for {self.num_classes} classes",
                             "Give one name for each class, or leave class_names out.")

    def class_label(self, index: int) -> str:
        """The name of a class for people: its number, with its name where one is known."""
        return f"{index} ({self.class_names[index]})" if self.class_names else str(index)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where weights came from, and all that is needed to write others in their place, drop-in."""

    path: Path
    format: Literal["folder", "safetensors", "torch"]
    sha256: str  # of the weights file
    weights: Path  # the weights file itself (inside the folder, for a folder)
    keys: Mapping[str, str]  # network key -> key in the file, in file order
    dtypes: Mapping[str, torch.dtype]  # by key in the file
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file
    wrapper: tuple[str, ...] = ()  # path of keys to the state dict inside a .pt, e.g. ("model", "state_dict")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network in eval mode with float32 weights, how to feed it, and where it came from."""

    network: nn.Module
    spec: InputSpec
    checkpoint: Checkpoint | None
    notes: tuple[str, ...] = ()  # what loading did that a user should know, one sentence each


@dataclass(frozen=True, slots=True)
class Compute:
    """The one place that decides device and precision. bfloat16 only where the processor has it."""

    device: torch.device
    bfloat16: bool


class Progress(Protocol):
    """Called now and then: a stage's name, steps done and steps in all."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of it."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""


class PassMeter:
    """Counts cost so that it holds on any machine.

    One pass is the multiply-adds of one image forward and backward through the whole network; forward alone
    counts a third.
    """

    def __init__(self) -> None:
        self.passes = 0.0

    def add(self, images: int, *, backward: bool, share: float = 1.0) -> None:
        """Count a batch; share is the part of the network's multiply-adds that it went through."""
        self.passes += images * share * (1.0 if backward else 1 / 3)


@dataclass(frozen=True, slots=True)
class Run:
    """What every long step receives: where to compute, the seed, whom to tell, when to stop, what it cost."""

    compute: Compute
    seed: int = 0
    progress: Progress = silent
    deadline: float | None = None  # of time.monotonic()
    meter: PassMeter = field(default_factory=PassMeter)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator for one purpose: the same seed and purpose give the same numbers anywhere."""
        digest = hashlib.sha256(f"{self.seed}:{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def step(self, stage: str, done: int, total: int) -> None:
        """Report progress, and stop where the deadline has passed."""
        self.progress(stage, done, total)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlineReachedError(f"the time limit was reached during {stage}",
                                       "Give more time with --timeout, or a smaller --effort.")


@dataclass(frozen=True, slots=True)
class Dummies:
    """Curated input-space stand-ins for data: images (N, C, H, W) in [0, 1], the model's own logits (N, K)."""

    images: Tensor
    logits: Tensor
    how: str  # the curation method, for the report
    matched: bool = True  # to stored batch-norm statistics; without them dummies say less
    movable: bool = True  # a dummy moved by two pixels, or mirrored, keeps its class

    @property
    def labels(self) -> Tensor:
        """The class the model gives each dummy, (N,)."""
        return self.logits.argmax(1)

    @property
    def plain_margin(self) -> float:
        """Median margin of the predicted class on untouched dummies: the unit of all margins, at least 1."""
        top = self.logits.topk(2, 1).values
        return max(1.0, (top[:, 0] - top[:, 1]).median().item())

    def without(self, classes: Collection[int]) -> "Dummies":
        """Those that the model gives other classes; all of them where fewer than two classes, or than half of them,
        would be left.
        """
        dropped = torch.tensor(sorted(classes), device=self.images.device, dtype=torch.long)
        left = ~torch.isin(self.labels, dropped)
        if len(self.labels[left].unique()) < max(2, self.logits.shape[1] / 2):
            return self
        return replace(self, images=self.images[left], logits=self.logits[left])

    def joined(self, more: "Dummies") -> "Dummies":
        """These and more of the same kind."""
        return replace(self, images=torch.cat([self.images, more.images]),
                       logits=torch.cat([self.logits, more.logits]))

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class FeatureDummies:
    """The paper's dummies: features (N, *feature_shape) at the inspection layer, the class each was made for."""

    features: Tensor
    labels: Tensor
    confidence: Tensor  # softmax of the label's class, (N,)


@dataclass(frozen=True, slots=True)
class Trigger:
    """A recovered universal transformation: a family's parameters (leading dimension 1) at a strength."""

    family: str
    params: Mapping[str, Tensor]
    strength: float
    target: int | None  # None: every source class has its own goal, in `goals`
    source: int | None  # None: works from every class
    margin: float  # mean margin of the target over the best other class, on dummies
    goals: tuple[int, ...] | None = None  # for all-to-all: the goal of each source class

    def goals_of(self, labels: Tensor) -> Tensor:
        """Where the trigger should send images of these classes, (N,) to (N,); -1 where it does not apply."""
        if self.goals is not None:
            goals = torch.tensor(self.goals, device=labels.device)[labels]
        else:
            goals = torch.full_like(labels, -1 if self.target is None else self.target)
            if self.source is not None:
                goals = torch.where(labels == self.source, goals, -1)
        return torch.where(goals == labels, -1, goals)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A signal's result together with the transformations it recovered, strongest first."""

    result: SignalResult
    triggers: tuple[Trigger, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence amounts to. The score is compared with the threshold; higher is worse."""

    name: VerdictName
    score: float
    threshold: float
    calibrated: bool
    suspects: tuple[Suspect, ...]
    explanation: str
    p_value: float | None = None  # share of clean networks with a score as high, where calibrated
