"""The chain from a checkpoint to a verdict, a repaired checkpoint and the report, on planted networks."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers.planted
import pytest
import safetensors.torch
import torch
from helpers.models import contents
from helpers.planted import SPEC, TARGET, Attack, Planted, accuracy, plant, shared_folder
from torch import Tensor

from deepsanitizer import examination, loading, pipeline, policy, removal, signals, types, verify
from deepsanitizer.cli.judge import outcome_code
from deepsanitizer.errors import CannotJudgeError, DeadlineReachedError, ExitCode, UsageError
from deepsanitizer.ground import prepare
from deepsanitizer.repair import closed_form, overshoot, tune
from deepsanitizer.report import from_json, to_json
from deepsanitizer.types import Loaded, Progress, SanitizeReport, ScanReport, Verdict, silent

PlantedOf = Callable[[Attack], Planted]


def write_folder(model: Planted, folder: Path, *, half: bool = False) -> Loaded:
    """The network as a model folder, loaded again."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({
        "architecture": "planted:tiny_net", "kwargs": {}, "input_shape": SPEC.shape, "num_classes": SPEC.num_classes,
        "mean": SPEC.mean, "std": SPEC.std}))
    state = {name: (value.half() if half and value.is_floating_point() else value).contiguous()
             for name, value in model.network.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt", "note": "keep me"})
    return loading.load(folder, import_from=Path(helpers.planted.__file__).parent)


def state_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(value.equal(right[name]) for name, value in left.items())


def comparable(report: ScanReport) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(to_json(report))
    return {name: value for name, value in fields.items() if name != "seconds"}


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work, for what does not depend on what is found."""
    monkeypatch.setitem(policy.EFFORTS, "fast", dataclasses.replace(policy.EFFORTS["fast"], dummies=60, fresh=40,
                                                                     rounds=1))
    monkeypatch.setattr(signals, "windows_for", lambda shape: [(5, 4)])
    monkeypatch.setattr(examination, "QUICK_FAMILIES", ("add",))


def another(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Planted:
    """The planted patch with another seed."""
    return plant("patch", shared_folder(tmp_path_factory.getbasetemp()), seed=seed)


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[
        Loaded, torch.nn.Module, SanitizeReport, Path]]:
    """A planted patch, stored in half precision, sanitized into a folder.

    The first of three networks whose repair is accepted: how one turns out depends on the processor it is trained on,
    and now and then an accusation cannot be repeated with other dummies.
    """
    for seed in (5, 0, 3):
        folder = tmp_path_factory.mktemp(f"patch-{seed}-")
        loaded = write_folder(another(tmp_path_factory, seed), folder / "model", half=True)
        before, files = state_of(loaded.network), contents(folder / "model")
        network, report = pipeline.sanitize(loaded, output=folder / "clean", device="cpu")
        assert equal(before, state_of(loaded.network))
        assert contents(folder / "model") == files
        if report.accepted:
            break
    yield loaded, network, report, folder
    shutil.rmtree(folder)


def test_the_planted_patch_is_found_and_removed(repaired: Any) -> None:
    loaded, network, report, _ = repaired
    assert report.verdict == "backdoored"
    assert report.score > report.threshold
    assert (report.suspects[0].kind, report.suspects[0].target) == ("all2one", TARGET)
    assert "lower right" in report.suspects[0].where
    assert report.outcome == "accepted"
    assert report.accepted
    assert outcome_code(report) == ExitCode.CLEAN
    acc, asr = accuracy(network, "patch")
    assert asr < 20
    assert acc > accuracy(loaded.network)[0] - 5


def test_a_true_repair_is_accepted(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = another(tmp_path_factory, 1)
    _, report = pipeline.sanitize(model.network, spec=SPEC, effort="fast", device="cpu")
    assert report.accepted


def test_the_report_says_what_was_done(repaired: Any) -> None:
    loaded, _, report, folder = repaired
    assert report.method == "auto"
    assert report.reason.endswith(".")
    assert report.steps
    assert report.comparisons
    assert all(c.margin_after < c.margin_before for c in report.comparisons)
    assert report.agreement is not None
    assert 0.8 <= report.agreement.overall <= 1
    assert len(report.agreement.per_class) == SPEC.num_classes
    names = dict(loaded.network.named_parameters()) | dict(loaded.network.named_buffers())
    assert report.changes
    assert all(change.name in names and change.relative_change > 0 for change in report.changes)
    assert report.output == str(folder / "clean")
    assert report.input_sha256 == loaded.checkpoint.sha256
    assert report.input_sha256 != report.output_sha256
    assert report.loss_step0 is None
    assert report.pictures
    assert {picture.role for picture in report.pictures} == {"pattern", "dummy", "triggered", "difference"}
    assert report.seed == 0
    assert report.model.batch_norm
    assert report.model.parameters == sum(p.numel() for p in loaded.network.parameters())
    assert report.reproduce.startswith(f"deepsanitizer sanitize {folder / 'model'} --output {folder / 'clean'}")


def test_passes_and_seconds_are_told_by_stage(repaired: Any) -> None:
    report = repaired[2]
    assert set(report.passes) == set(report.seconds)
    for table in (report.passes, report.seconds):
        assert table["total"] == pytest.approx(sum(v for k, v in table.items() if k != "total"), abs=0.06)
    for stage in ("dummies", "search", "fresh dummies", "repair", "verify"):
        assert report.passes[stage] > 0
    count = policy.EFFORTS["standard"].dummies
    assert report.passes["dummies"] % count == pytest.approx(count / 3, abs=0.01)  # whole steps, and the last look


def test_the_written_file_is_what_was_verified_and_drop_in(repaired: Any) -> None:
    loaded, network, report, folder = repaired
    before = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    after = safetensors.torch.load_file(folder / "clean" / "model.safetensors")
    assert set(after) == set(before)
    assert all(after[k].dtype == v.dtype and after[k].shape == v.shape for k, v in before.items())
    assert any(not after[k].equal(v) for k, v in before.items())
    read = loading.load(folder / "clean", import_from=Path(helpers.planted.__file__).parent)
    assert read.checkpoint is not None
    assert read.checkpoint.sha256 == report.output_sha256
    assert read.checkpoint.metadata == loaded.checkpoint.metadata
    assert equal(state_of(read.network), state_of(network))  # rounding included: the file is half precision
    assert (folder / "clean" / "config.json").read_bytes() == (folder / "model" / "config.json").read_bytes()


def test_the_report_survives_json(repaired: Any) -> None:
    text = to_json(repaired[2])
    read = from_json(text)
    assert isinstance(read, SanitizeReport)
    assert to_json(read) == text
    assert comparable(read) == comparable(repaired[2])


def test_an_earlier_report_takes_the_place_of_the_search(repaired: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _, report, _ = repaired
    monkeypatch.setattr(examination, "collect", None)  # would fail if it were called
    earlier = from_json(to_json(report))
    network, again = pipeline.sanitize(loaded, from_report=earlier, device="cpu")
    assert (again.verdict, again.score, again.explanation) == (report.verdict, report.score, report.explanation)
    assert again.accepted
    assert "search" not in again.seconds
    assert accuracy(network, "patch")[1] < 20


def test_a_report_about_another_file_is_refused(repaired: Any, planted: PlantedOf, tmp_path: Path) -> None:
    other = write_folder(planted("none"), tmp_path / "other")
    with pytest.raises(UsageError, match="about another file"):
        pipeline.sanitize(other, from_report=repaired[2], output=tmp_path / "out", effort="fast", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_clean_network_is_found_clean_and_copied_byte_for_byte(planted: PlantedOf, tmp_path: Path) -> None:
    loaded = write_folder(planted("none"), tmp_path / "model")
    network, report = pipeline.sanitize(loaded, output=tmp_path / "out", effort="fast", device="cpu")
    assert report.verdict == "clean"
    assert report.outcome == "unchanged"
    assert not report.accepted
    assert outcome_code(report) == ExitCode.CLEAN
    assert contents(tmp_path / "out") == contents(tmp_path / "model")
    assert report.output_sha256 == report.input_sha256
    assert report.changes == []
    assert equal(state_of(network), state_of(loaded.network))
    assert network is not loaded.network


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("options", [{"force": True}, {"target": 3}])
def test_what_was_found_clean_is_repaired_when_asked(options: dict[str, Any], planted: PlantedOf,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted("none")
    monkeypatch.setattr(examination, "judge", lambda *_: Verdict("clean", 0.1, 1.0, False, (), "Made up: so little "
                                                                 "work may raise a false alarm."))
    network, report = pipeline.sanitize(model.network, spec=SPEC, effort="fast", device="cpu", **options)
    assert report.outcome in ("accepted", "rolled_back")
    assert report.accepted == (report.outcome == "accepted")
    assert report.steps
    assert equal(state_of(network), state_of(model.network)) != report.accepted
    assert report.config["force"] == options.get("force", False)
    why = "it was forced" if "force" in options else "a target was named"
    assert report.reason.startswith(f"Nothing suspicious was found; a repair was tried because {why}. ")
    if "target" in options:
        assert {comparison.target for comparison in report.comparisons} == {3}
    assert outcome_code(report) == (ExitCode.CLEAN if report.accepted else ExitCode.FOUND)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("force", [False, True])
def test_what_is_only_suspicious_is_repaired_when_forced_alone(force: bool, planted: PlantedOf, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    suspect = types.Suspect(kind="all2one", source=None, target=3, family="add", score=0.9)
    monkeypatch.setattr(examination, "judge", lambda *_: Verdict("suspicious", 0.9, 1.0, False, (suspect,), "Made up."))
    loaded = write_folder(planted("none"), tmp_path / "model")
    network, report = pipeline.sanitize(loaded, output=tmp_path / "out", effort="fast", device="cpu", force=force)
    if force:
        assert report.steps
        return
    assert report.outcome == "unchanged"
    assert "suspicious only" in report.reason
    assert "--target" in report.reason
    assert (report.output, report.steps, report.changes) == (None, [], [])
    assert outcome_code(report) == ExitCode.FOUND
    assert not (tmp_path / "out").exists()
    assert equal(state_of(network), state_of(loaded.network))


@pytest.mark.usefixtures("cheap")
def test_a_repair_that_is_not_proven_is_rolled_back(planted: PlantedOf, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = write_folder(planted("patch"), tmp_path / "model")
    monkeypatch.setattr("deepsanitizer.ground.prove", partial(verify.prove, least_sure=1.01))
    network, report, candidate = pipeline.sanitize_with_candidate(
        loaded, output=tmp_path / "out", target=TARGET, effort="fast", device="cpu")
    assert report.outcome == "rolled_back"
    assert not report.accepted
    assert outcome_code(report) == ExitCode.FOUND
    assert report.output is None
    assert report.output_sha256 is None
    assert not (tmp_path / "out").exists()
    assert equal(state_of(network), state_of(loaded.network))
    assert candidate is not None
    assert not equal(candidate, state_of(loaded.network))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("joins", [True, False])
def test_a_failed_proof_is_told_and_the_repair_begun_anew(joins: bool, planted: PlantedOf, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """What a proof found still there is in the steps. No remedy is fed dummies of the goal: they carry the trigger."""
    fed: list[Tensor] = []

    def watch(does: Callable[..., object]) -> Callable[..., object]:
        def spy(old: object, dummies: types.Dummies, *rest: object, **options: object) -> object:
            fed.append(dummies.labels)
            return does(old, dummies, *rest, **options)
        return spy

    monkeypatch.setattr(closed_form, "ladder", watch(closed_form.ladder))
    monkeypatch.setattr(closed_form, "repair", watch(closed_form.repair))
    monkeypatch.setattr(tune, "repair", watch(tune.repair))

    def prove(*arguments: Any, **options: Any) -> verify.Proof:
        proof = verify.prove(*arguments, **options)
        found = proof.attacks[0].found.triggers if joins else ()
        return dataclasses.replace(proof, accepted=False, repeated=True, left=proof.comparisons, to_unlearn=found)

    monkeypatch.setattr("deepsanitizer.ground.prove", prove)
    loaded = write_folder(planted("patch"), tmp_path / "model")
    _, report, _ = pipeline.sanitize_with_candidate(loaded, target=TARGET, effort="fast", device="cpu")
    assert report.outcome == "rolled_back"
    assert any("not gone yet (" in step and "anew, on" in step and "relearned" in step and "old patterns" in step
               for step in report.steps)
    assert len(fed) >= 2
    assert all(len(labels) and not (labels == TARGET).any() for labels in fed)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("suspected", "weights"), [
    (False, ["16"] * 4), (True, ["16", "4", "1", "0.25", "0.25", "0.0625", "0.015625"])])
def test_a_forced_repair_stops_at_the_heaviest_weight(suspected: bool, weights: list[str], planted: PlantedOf,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Natural patterns go on working: a lighter weight would cost a clean network accuracy for nothing."""
    case = examination.open_case(planted("none").loaded, None, "auto", "cpu", 0, "fast", silent, None)
    examined = examination.examine(case, full=True)
    ground = prepare(case.parts, examined.dummies, examined.results,
                             examination.accused(examined, TARGET, True), case.plan,
                             case.run, case.clock.stage, stored_as=None)
    monkeypatch.setattr(removal, "success", lambda *arguments, **options: 0.9)
    monkeypatch.setattr(removal, "kept_agreement", lambda *arguments, **options: (1.0, 1.0))
    failed = verify.Proof(types.Agreement(overall=1.0, per_class=[]), (), False, "not yet", (), (), (), True)
    monkeypatch.setattr("deepsanitizer.ground.prove", lambda *arguments, **options: failed)
    made: list[str] = []
    factors: set[float] = set()
    ladder, further = closed_form.ladder, overshoot.repair

    def watched(*arguments: Any, **options: Any) -> Any:
        made.extend(f"{keep:g}" for keep in options["keeps"])
        return ladder(*arguments, **options)

    def overshot(*arguments: Any, beyond: float) -> Any:
        factors.add(beyond)
        return further(*arguments, beyond=beyond)

    monkeypatch.setattr(closed_form, "ladder", watched)
    monkeypatch.setattr(overshoot, "repair", overshot)
    removal.remove(dataclasses.replace(ground, suspected=suspected), "auto", rounds=3)
    assert made == weights
    assert factors == (set(removal.BEYOND) if suspected else {1.0})


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("step", ["prepare", "remove"])
@pytest.mark.parametrize("attack", ["none", "patch"])
def test_what_no_remedy_applies_to_is_unsupported(step: str, attack: Attack, planted: PlantedOf, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise CannotJudgeError("no dummy is of class 4", "Take more dummies.")

    loaded = write_folder(planted(attack), tmp_path / "model")
    monkeypatch.setattr(pipeline, step, refuse)
    network, report, candidate = pipeline.sanitize_with_candidate(
        loaded, output=tmp_path / "out", target=TARGET, force=True, effort="fast", device="cpu")
    assert report.outcome == "unsupported"
    assert not report.accepted
    assert report.reason.endswith("no dummy is of class 4. Take more dummies.")
    assert outcome_code(report) == ExitCode.NO_VERDICT
    assert candidate is None
    assert (report.output, report.output_sha256, report.agreement, report.comparisons) == (None, None, None, [])
    assert not (tmp_path / "out").exists()
    assert equal(state_of(network), state_of(loaded.network))
    assert from_json(to_json(report)) == report


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("ends_at", ["curating dummies", "searching patches by place", "relearning layers"])
def test_nothing_is_written_when_time_is_up(ends_at: str, planted: PlantedOf, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = write_folder(planted("patch"), tmp_path / "model")
    before = contents(tmp_path)
    now = 0.0  # a clock of our own: how fast the machine is must not matter

    def tick(stage: str, done: int, total: int) -> None:
        nonlocal now
        now = 100.0 if stage.startswith(ends_at) else now

    for module in (types, examination):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(DeadlineReachedError, match=f"(?s){ends_at}.*--timeout"):
        pipeline.sanitize(loaded, output=tmp_path / "out", effort="fast", device="cpu", target=TARGET,
                          timeout=10, progress=tick)
    assert contents(tmp_path) == before
    if ends_at != "relearning layers":  # which a scan does not reach
        now = 0.0
        with pytest.raises(DeadlineReachedError):
            pipeline.scan(loaded, effort="fast", device="cpu", timeout=10, progress=tick)


@pytest.mark.usefixtures("cheap")
def test_the_same_seed_gives_the_same_report_and_weights(planted: PlantedOf) -> None:
    model = planted("patch")
    progress: list[tuple[str, int, int]] = []

    def note(stage: str, done: int, total: int) -> None:
        progress.append((stage, done, total))

    def run(seed: int, told: Progress = silent) -> tuple[torch.nn.Module, SanitizeReport]:
        return pipeline.sanitize(model.network, spec=SPEC, effort="fast", device="cpu", target=TARGET, seed=seed,
                                 progress=told)

    network, first = run(5, note)
    again, second = run(5)
    _, other = run(6)
    assert comparable(first) == comparable(second)
    assert equal(state_of(network), state_of(again))
    assert comparable(first)["signals"] != comparable(other)["signals"]
    assert all(0 <= done < total for _, done, total in progress)
    assert len({stage for stage, _, _ in progress}) >= 4


@pytest.mark.usefixtures("cheap")
def test_shifts_of_features_are_a_method_of_their_own(planted: PlantedOf) -> None:
    _, report, candidate = pipeline.sanitize_with_candidate(planted("patch").network, spec=SPEC, method="shift",
                                                            target=TARGET, layer="5", effort="fast", device="cpu")
    assert report.method == "shift"
    assert "shifts of its features, searched 3 times" in " ".join(report.steps)
    assert report.comparisons
    assert candidate is not None


@pytest.mark.usefixtures("cheap")
def test_the_published_method_tells_its_loss_at_step_0(planted: PlantedOf) -> None:
    model = planted("patch")
    before = state_of(model.network)
    _, report, candidate = pipeline.sanitize_with_candidate(model.network, spec=SPEC, method="paper", target=TARGET,
                                                            layer="5", effort="fast", device="cpu")
    assert report.method == "paper"
    assert report.inspection_layer == "5"
    assert report.loss_step0 is not None
    assert 0 <= report.loss_step0 < 0.1
    assert candidate is not None
    changed = {name for name, value in candidate.items() if not value.equal(before[name])}
    assert changed
    assert changed == {change.name for change in report.changes}
    assert not changed & {name for name in before if name.split(".")[0] in "01234"}  # the extractor
    assert equal(before, state_of(model.network))


@pytest.mark.usefixtures("cheap")
def test_a_scan_recovers_triggers_for_its_suspects(planted: PlantedOf) -> None:
    model = planted("patch")
    before = state_of(model.network)
    report, triggers = pipeline.scan_with_evidence(model.network, spec=SPEC, effort="fast", device="cpu")
    assert len(triggers) == len(report.suspects)
    for trigger, accused in zip(triggers, report.suspects, strict=True):
        assert (trigger.target, trigger.source, trigger.family) == (accused.target, accused.source, accused.family)
    assert report.model.format == "module"
    assert report.input_sha256 is None
    assert report.reproduce.startswith("# called from Python")
    assert to_json(from_json(to_json(report))) == to_json(report)
    assert equal(before, state_of(model.network))


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "magic"}, "no method 'magic'.*closed_form"), ({"effort": "huge"}, "no effort 'huge'.*standard"),
    ({"target": 6}, "no class 6.*0 to 5"), ({"target": -1}, "no class -1"), ({"device": "abacus"}, "no device"),
    ({"layer": "5x"}, "no layer '5x'"), ({"spec": None}, "needs its input described"),
    ({"output": "out.pt"}, "loaded from a file"),
])
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], message: str, planted: PlantedOf) -> None:
    given: dict[str, Any] = {"spec": SPEC, "effort": "fast", "device": "cpu"} | options
    with pytest.raises(UsageError, match=message):
        pipeline.sanitize(planted("none").network, **given)
