"""The steps in order: split, curate, search, judge, repair, prove, accept or roll back, write.

`scan` and `sanitize` are the public functions. The caller's model is never touched: all work is on a private copy.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from deepsanitizer import facts, loading
from deepsanitizer.errors import CannotJudgeError, UsageError, WorkError
from deepsanitizer.examination import Case, Clock, Examined, accused, examine, examine_shortly, open_case
from deepsanitizer.ground import Ground, Repaired, prepare
from deepsanitizer.removal import remove
from deepsanitizer.repair import METHODS
from deepsanitizer.types import (
    Effort,
    InputSpec,
    Loaded,
    Outcome,
    Progress,
    SanitizeReport,
    ScanReport,
    Suspect,
    Trigger,
    silent,
)

T = TypeVar("T")


def scan(model: Loaded | nn.Module, *, spec: InputSpec | None = None, layer: str = "auto", device: str = "auto",
         seed: int = 0, effort: Effort = "standard", screen: bool = False, progress: Progress = silent,
         timeout: float | None = None) -> ScanReport:
    """Say whether a classifier carries a backdoor, with the evidence, from the weights alone.

    `model` is what `load` returned, or any nn.Module with its `spec`. `timeout` is in seconds. A network like those of
    the calibration is judged by short searches, compared with clean networks, of which about 2 % would be accused; full
    searches follow where something stands out (docs/method.md). `screen` leaves these out.
    Raises DeepSanitizerError where the model cannot be judged.
    """
    return scan_with_evidence(model, spec=spec, layer=layer, device=device, seed=seed, effort=effort,
                              screen=screen, progress=progress, timeout=timeout)[0]


def scan_with_evidence(model: Loaded | nn.Module, *, spec: InputSpec | None = None, layer: str = "auto",
                       device: str = "auto", seed: int = 0, effort: Effort = "standard", screen: bool = False,
                       progress: Progress = silent,
                       timeout: float | None = None) -> tuple[ScanReport, tuple[Trigger, ...]]:
    """As `scan`, with the recovered triggers of the suspects, strongest first."""
    if screen and effort != "standard":
        raise UsageError(f"a short scan has one effort, not {effort!r}", "Leave --effort out, or --screen.")
    case = open_case(model, spec, layer, device, seed, effort, progress, timeout)
    if screen:
        case.config["screen"] = True
    examined = examine_shortly(case) if screen else examine(case, to_repair=False)
    triggers = facts.triggers_of(examined.verdict.suspects, examined.evidence)
    report = ScanReport(**_scan_fields(case, examined, triggers, "scan"))  # type: ignore[arg-type]
    return report, triggers


def sanitize(model: Loaded | nn.Module, *, spec: InputSpec | None = None, output: str | Path | None = None,
             method: str = "auto", effort: Effort = "standard", from_report: ScanReport | None = None,
             target: int | None = None, force: bool = False, layer: str = "auto", device: str = "auto",
             seed: int = 0, progress: Progress = silent,
             timeout: float | None = None) -> tuple[nn.Module, SanitizeReport]:
    """Scan a classifier, remove what was found, prove it, and return the repaired network with the report.

    Accepted: the network has new weights and `output` (if given) is written. Unchanged: the model was found clean and
    `output` is a byte-identical copy, or it is suspicious only and nothing is written. Anything else: the network has
    the old weights, nothing is written.
    `from_report` takes the accusations of an earlier scan of the same file; `target` names the class to repair;
    `force` repairs what was found clean.
    """
    network, report, _ = sanitize_with_candidate(
        model, spec=spec, output=output, method=method, effort=effort, from_report=from_report, target=target,
        force=force, layer=layer, device=device, seed=seed, progress=progress, timeout=timeout)
    return network, report


def sanitize_with_candidate(
        model: Loaded | nn.Module, *, spec: InputSpec | None = None, output: str | Path | None = None,
        method: str = "auto", effort: Effort = "standard", from_report: ScanReport | None = None,
        target: int | None = None, force: bool = False, layer: str = "auto", device: str = "auto", seed: int = 0,
        progress: Progress = silent,
        timeout: float | None = None) -> tuple[nn.Module, SanitizeReport, dict[str, Tensor] | None]:
    """As `sanitize`, with the last candidate's weights by network key, also where it was rolled back."""
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", f"Choose one of {', '.join(METHODS)}.")
    if output is not None:
        if not isinstance(model, Loaded) or model.checkpoint is None:
            raise UsageError("an output needs a model that was loaded from a file", "Use deepsanitizer.load.")
        loading.check_output(model.checkpoint, output)
    case = open_case(model, spec, layer, device, seed, effort, progress, timeout)
    if target is not None and not 0 <= target < case.loaded.spec.num_classes:
        raise UsageError(f"there is no class {target}", f"Choose 0 to {case.loaded.spec.num_classes - 1}.")
    # What a report accuses is repaired from its suspects; only what nobody accused needs full evidence.
    named = from_report is not None and bool(from_report.suspects)
    examined = examine(case, from_report, full=target is not None or (force and not named))
    return finish(case, examined, method=method, output=output, target=target, force=force)


def finish(case: Case, examined: Examined, *, method: str, output: str | Path | None = None, target: int | None = None,
           force: bool = False, ground: Ground | None = None,
           ) -> tuple[nn.Module, SanitizeReport, dict[str, Tensor] | None]:
    """Repair what an examination found, prove it and deliver: the second half of `sanitize`.

    `ground` is what `prepare` gave for the same suspects, to compare methods without preparing again.
    """
    case.config.update(method=method, force=force, target=target)
    suspects = accused(examined, target, force)
    repaired, refused = None, ""
    try:
        if suspects:
            ground = ground or prepare(case.parts, examined.dummies, examined.results, suspects, case.plan, case.run,
                                       case.clock.stage, stored_as=case.loaded.checkpoint)
            repaired = remove(ground, method, rounds=case.plan.rounds)
    except CannotJudgeError as error:  # no dummy to which what was found applies
        refused = str(error)
    return deliver(case, examined, suspects, repaired, method, output, refused=refused)


def deliver(case: Case, examined: Examined, suspects: Sequence[Suspect], repaired: Repaired | None, method: str,
            output: str | Path | None, *, refused: str = "",
            ) -> tuple[nn.Module, SanitizeReport, dict[str, Tensor] | None]:
    """Write what is to be written, and say what happened; `refused` is why no remedy could be applied."""
    network, checkpoint = copy.deepcopy(case.loaded.network), case.loaded.checkpoint
    written = digest = state = proof = None
    outcome: Outcome
    if repaired is not None:
        proof = repaired.proof
        state = {name: value.detach().cpu() for name, value in repaired.classifier.network.state_dict().items()}
        outcome, reason = ("accepted" if proof.accepted else "rolled_back"), proof.reason
        if proof.accepted:
            network.load_state_dict(state)
            if output is not None and checkpoint is not None:
                digest = _write(case.clock, lambda: loading.save(state, checkpoint, output))
                _check_written(loading.read_back(checkpoint, output), state)
                written = str(output)
    elif refused:
        outcome, reason = "unsupported", refused
    elif examined.verdict.name == "suspicious":
        outcome, reason = "unchanged", ("It is suspicious only: no signal accuses. Nothing was changed and nothing was "
                                        "written; name the class with --target, or use --force, to repair it.")
    elif examined.verdict.name == "clean":
        outcome, reason = "unchanged", "Nothing suspicious was found, so nothing was changed."
        if output is not None and checkpoint is not None:
            digest = _write(case.clock, lambda: loading.copy_unchanged(checkpoint, output))
            written = str(output)
    else:
        outcome, reason = "unsupported", "The evidence names no goal that a remedy could be applied to."
    if suspects and examined.verdict.name == "clean":
        asked = "it was forced" if case.config["force"] else "a target was named"
        reason = f"Nothing suspicious was found; a repair was tried because {asked}. {reason}"
    triggers = facts.triggers_of(examined.verdict.suspects or suspects, examined.evidence)
    report = SanitizeReport(
        **_scan_fields(case, examined, triggers, "sanitize", output),  # type: ignore[arg-type]
        method=method, outcome=outcome, accepted=outcome == "accepted", reason=reason,
        agreement=None if proof is None else proof.agreement,
        comparisons=[] if proof is None else list(proof.comparisons),
        changes=[] if state is None else facts.changes(case.classifier.network.state_dict(), state),
        steps=[] if repaired is None else list(repaired.steps),
        loss_step0=None if repaired is None else repaired.loss_step0, output=written, output_sha256=digest)
    return network, report, state


def _write(clock: Clock, action: Callable[[], T]) -> T:
    with clock.stage("write"):
        return action()


def _check_written(stored: dict[str, Tensor], proven: dict[str, Tensor]) -> None:
    """What is verified is the saved file: it must hold exactly the weights that were proven."""
    for name, value in stored.items():
        if not value.equal(proven[name].to(value.dtype)):
            raise WorkError(f"the written file differs from the verified weights in {name}",
                            "Do not use the output; this is a bug, please report it.")


def _scan_fields(case: Case, examined: Examined, triggers: Sequence[Trigger], command: str,
                 output: str | Path | None = None) -> dict[str, object]:
    seconds, passes = case.clock.totals()
    verdict = examined.verdict
    return {
        "model": facts.model_facts(case.loaded, case.classifier), "verdict": verdict.name,
        "calibrated": verdict.calibrated, "score": verdict.score, "threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "explanation": verdict.explanation, "suspects": facts.located(verdict.suspects, triggers, examined.dummies),
        "signals": list(examined.results),
        "inspection_layer": case.parts.layer, "versions": facts.versions(), "config": dict(case.config),
        "seed": case.run.seed, "device": facts.device_name(case.run.compute), "seconds": seconds, "passes": passes,
        "input_sha256": None if case.loaded.checkpoint is None else case.loaded.checkpoint.sha256,
        "limits": facts.limits(examined.dummies, verdict),
        "reproduce": facts.command_line(command, case.loaded, case.config, case.run.seed, output),
        "pictures": facts.pictures(triggers, examined.dummies, case.loaded.spec),
    }
