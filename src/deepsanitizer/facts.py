"""What a report says besides the evidence: the model, versions, limits, pictures, the command to repeat it."""

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepsanitizer._version import __version__
from deepsanitizer.classifier import Classifier
from deepsanitizer.curate.inversion import batch_norms
from deepsanitizer.errors import UsageError
from deepsanitizer.pictures import difference_picture, place_in_words, to_picture
from deepsanitizer.triggers import apply_trigger, pattern_of
from deepsanitizer.types import (
    Checkpoint,
    Compute,
    Dummies,
    Evidence,
    InputSpec,
    LayerChange,
    Loaded,
    ModelFacts,
    Picture,
    ScanReport,
    Suspect,
    Trigger,
    Verdict,
)


def model_facts(loaded: Loaded, classifier: Classifier) -> ModelFacts:
    """What is said of the model itself."""
    spec, checkpoint = loaded.spec, loaded.checkpoint
    return ModelFacts(
        path=None if checkpoint is None else str(checkpoint.path),
        format="module" if checkpoint is None else checkpoint.format, architecture=type(loaded.network).__name__,
        parameters=sum(p.numel() for p in loaded.network.parameters()), input_shape=list(spec.shape),
        num_classes=spec.num_classes, class_names=None if spec.class_names is None else list(spec.class_names),
        batch_norm=bool(batch_norms(classifier.network)), notes=list(loaded.notes))


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"deepsanitizer": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def device_name(compute: Compute) -> str:
    """Device and precision in words."""
    return f"{compute.device.type}, {'bfloat16 mixed' if compute.bfloat16 else 'float32'}"


def limits(dummies: Dummies, verdict: Verdict) -> list[str]:
    """What the evidence does not show, in plain words."""
    told = ["All evidence comes from the weights alone. No image of real data was used, so neither accuracy nor "
            "attack success on real data is measured here: measure them with your own data (deepsanitizer evaluate).",
            "Only universal changes of the image of the families searched (additive, blended, gratings, patches, "
            "colour filters, warps; in full searches tones and quantised colours, too) are found.",
            "A trigger outside them, or one that its author hid from such searches, can be missed: clean means that "
            "nothing was found, not that nothing is there."]
    if not verdict.calibrated:
        told.append("The verdict is uncalibrated: its threshold does not come with a measured rate of false alarms.")
    if "no batch-norm" in dummies.how:
        told.append("The network stores no batch-norm statistics, so the dummies resemble its data less, and the "
                    "evidence is weaker.")
    return told


def command_line(command: str, loaded: Loaded, config: Mapping[str, object], seed: int,
                 output: str | Path | None) -> str:
    """The command that gives a report again; a comment where the model came from Python."""
    if loaded.checkpoint is None:
        return f"# called from Python: deepsanitizer.{command}(model, spec=..., seed={seed})"
    words = ["deepsanitizer", command, _as_argument(loaded.checkpoint.path)]
    if output is not None:
        words += ["--output", _as_argument(output)]
    for name in ("method", "effort", "layer", "device", "target", "timeout"):
        if config.get(name) is not None:
            words += [f"--{name}", str(config[name])]
    if config.get("screen"):
        words.append("--screen")
    if config.get("force"):
        words.append("--force")
    told = " ".join(shlex.quote(word) for word in [*words, "--seed", str(seed)])
    return f"{told}   # with the same --import-from or --arch options"


def _as_argument(path: str | Path) -> str:
    """A path that is not taken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def triggers_of(suspects: Sequence[Suspect], evidence: Sequence[Evidence]) -> tuple[Trigger, ...]:
    """The strongest recovered trigger of each suspect."""
    found = []
    for suspect in suspects:
        key = (suspect.kind, suspect.source, suspect.target)
        mine = [e for e in evidence if e.triggers and (e.result.kind, e.result.source, e.result.target) == key]
        if mine:
            found.append(max(mine, key=lambda e: e.result.score or 0.0).triggers[0])
    return tuple(found)


def pictures(triggers: Sequence[Trigger], dummies: Dummies, spec: InputSpec, *, examples: int = 4,
             most: int = 3) -> list[Picture]:
    """For each trigger its pattern, and dummies to which it applies without it, with it, and the difference."""
    made: list[Picture] = []
    for trigger in triggers[:most]:
        goal = "each class to a goal of its own" if trigger.target is None else (
            f"class {spec.class_label(trigger.target)}")
        usable = (trigger.goals_of(dummies.labels) >= 0).nonzero()[:examples, 0]
        before = dummies.images[usable]
        after = apply_trigger(trigger, before)
        where = place_in_words(before, after) if len(before) else ""
        group = f"{goal}, {trigger.family}" + (f", {where}" if where else "")
        made.append(to_picture(pattern_of(trigger, spec.shape), role="pattern", group=group,
                               caption=f"recovered {trigger.family} pattern, strength {trigger.strength:.3g}"))
        for label, plain, changed in zip(dummies.labels[usable].tolist(), before, after, strict=True):
            made += [to_picture(plain, role="dummy", group=group, caption=f"dummy of class {spec.class_label(label)}"),
                     to_picture(changed, role="triggered", group=group, caption="with the pattern"),
                     difference_picture(plain, changed, group=group)]
    return made


def located(suspects: Sequence[Suspect], triggers: Sequence[Trigger], dummies: Dummies) -> list[Suspect]:
    """The suspects with words for where in the image their trigger sits; "" where it is everywhere."""
    told = []
    for suspect in suspects:
        match = next((t for t in triggers if (t.source, t.target, t.family)
                      == (suspect.source, suspect.target, suspect.family)), None)
        if match is not None:
            some = dummies.images[:16]
            suspect = replace(suspect, where=place_in_words(some, apply_trigger(match, some)))
        told.append(suspect)
    return told


def changes(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> list[LayerChange]:
    """How much each tensor changed, largest first; unchanged ones are left out."""
    found = []
    for name, before in old.items():
        if not before.is_floating_point():
            continue
        before = before.detach().cpu()
        size = (new[name].float() - before).norm().item() / max(before.norm().item(), 1e-12)
        if size > 0:
            found.append(LayerChange(name=name, relative_change=size, parameters=before.numel()))
    return sorted(found, key=lambda change: -change.relative_change)


@torch.no_grad()
def round_like(candidate: Classifier, checkpoint: Checkpoint | None) -> None:
    """Round weights to the stored precision, in place: what is verified is what will be in the file."""
    if checkpoint is None:
        return
    for name, value in candidate.network.state_dict().items():
        key = checkpoint.keys.get(name)
        if key is not None and value.is_floating_point():
            value.copy_(value.to(checkpoint.dtypes[key]).to(value.dtype))


def verdict_of(report: ScanReport, loaded: Loaded) -> Verdict:
    """The verdict of an earlier report on the same file.

    Raises UsageError where the report is about other weights.
    """
    digest = None if loaded.checkpoint is None else loaded.checkpoint.sha256
    if report.input_sha256 != digest:
        raise UsageError("the report given with --from-report is about another file", "Scan this file first.")
    return Verdict(report.verdict, report.score, report.threshold, report.calibrated, tuple(report.suspects),
                   report.explanation)
