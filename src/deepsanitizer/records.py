"""What a report is made of: plain frozen values without tensors. `report.json` is a `ScanReport`, encoded.

`deepsanitizer.types` re-exports all of it. A change here changes the published schema (docs/report-schema.json).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

VerdictName = Literal["clean", "suspicious", "backdoored", "inconclusive"]
Kind = Literal["all2one", "specific", "all2all"]
Outcome = Literal["unchanged", "accepted", "rolled_back", "unsupported"]
Effort = Literal["fast", "standard", "thorough"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """One accusation, strongest first in a report."""

    kind: Kind
    source: int | None
    target: int | None
    family: str
    score: float
    where: str = ""  # place in plain words, "in the upper left corner"; "" where everywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalResult:
    """What one signal says. `per_target` is its statistic for each class (None: not evaluated)."""

    name: str
    applicable: bool
    stage: Literal["screen", "full"] = "full"  # the screen is what the calibrated verdict rests on
    family: str = ""  # of the transformations searched
    window: int = 0  # for patches: the side of the square in pixels
    reason: str = ""  # why it is not applicable, or a remark
    kind: Kind = "all2one"  # the kind of backdoor this statistic speaks about
    per_target: list[float | None] = field(default_factory=list)
    source: int | None = None  # of a source-specific statistic
    target: int | None = None  # the class with the highest statistic
    margin: float | None = None  # its statistic
    runner_up: float | None = None  # the next class's
    z: float | None = None  # (margin - median) / MAD over classes
    # Higher is worse; 1 is where this signal alone would accuse; None: it never does. Of a screen: those that name the
    # same target add up.
    score: float | None = None
    statistic: float | None = None  # what is compared with clean networks; higher is worse
    p_value: float | None = None  # that a clean network has a statistic as high, from the calibration; None: unknown
    clean: list[float] = field(default_factory=list)  # the statistic's median, 90 and 98 % quantile over clean networks
    success: float | None = None  # share of dummies of other classes sent to the target
    strength: float | None = None  # of the transformation searched
    matrix: list[list[float | None]] | None = None  # source x goal margins, own-goal searches
    passes: float = 0.0
    threshold: float | None = None  # on the scale of `per_target`, where the verdict has one there


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Share of fresh dummies on which old and new model agree; per class of the old model's answer."""

    overall: float
    per_class: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """How much a repair changed one parameter tensor: norm of the difference over the old norm."""

    name: str
    relative_change: float
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchComparison:
    """One independent search, run with the same fresh seed on the old and on the new weights."""

    family: str
    target: int | None
    margin_before: float
    success_before: float
    margin_after: float
    success_after: float
    others_after: float  # the strongest other class's margin after, or the least margin that counts
    tolerated: float = 0.0  # by so much the target may lead the others: see `verify.prove`
    old_success_after: float = 0.0  # what the pattern found on the old weights still does on the new ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG for the report. `role` groups pictures: pattern, dummy, triggered, difference."""

    role: Literal["pattern", "dummy", "triggered", "difference"]
    caption: str
    png_base64: str
    group: str = ""  # pictures of one trigger share a group


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is said of the model itself. Strings from the checkpoint are untrusted: escape them."""

    path: str | None
    format: str
    architecture: str
    parameters: int
    input_shape: list[int]
    num_classes: int
    class_names: list[str] | None
    batch_norm: bool
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """The result of a scan; `report.json` is this, encoded."""

    schema: str = "deepsanitizer-report/1"
    model: ModelFacts
    verdict: VerdictName
    calibrated: bool
    score: float
    threshold: float
    p_value: float | None = None  # share of clean networks with a score as high, where a calibration covers the model
    explanation: str
    suspects: list[Suspect]
    signals: list[SignalResult]
    inspection_layer: str
    versions: dict[str, str]
    config: dict[str, Any]
    seed: int
    device: str
    seconds: dict[str, float]  # per stage, and "total"
    passes: dict[str, float]  # per stage, and "total"
    input_sha256: str | None
    limits: list[str]  # what the evidence does not show, in plain words
    reproduce: str  # the command line that gives this report again
    pictures: list[Picture]


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizeReport(ScanReport):
    """A scan report and what was done about it."""

    method: str
    outcome: Outcome
    accepted: bool
    reason: str  # why accepted, rolled back, unchanged or unsupported, in plain words
    agreement: Agreement | None
    comparisons: list[SearchComparison]
    changes: list[LayerChange]
    steps: list[str]  # what was done, in order
    loss_step0: float | None  # of the paper's fine-tuning: taken literally it is close to 0
    output: str | None
    output_sha256: str | None
