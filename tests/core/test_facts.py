"""What a report says besides the evidence: commands, limits, changes, pictures, rounding."""

import shlex
from pathlib import Path

import pytest
import torch
from helpers.planted import CPU, SPEC
from torch import Tensor, nn

from deepsanitizer import facts
from deepsanitizer.classifier import Classifier, classifier_of
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Checkpoint, Dummies, Evidence, Loaded, SignalResult, Suspect, Trigger, Verdict

KEYS = {"1.weight": "net.weight", "1.bias": "net.bias"}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(432, SPEC.num_classes)).eval()


def loaded(path: str = "models/net.pt") -> Loaded:
    checkpoint = Checkpoint(Path(path), "torch", "ab" * 32, Path(path), KEYS, {
        "net.weight": torch.float16, "net.bias": torch.float32})
    return Loaded(network(), SPEC, checkpoint, ("a note",))


def dummies() -> Dummies:
    images = torch.rand(12, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    logits = torch.eye(SPEC.num_classes)[torch.arange(12) % SPEC.num_classes]
    return Dummies(images, logits, "inversion (no batch-norm)")


def trigger(family: str = "add", *, target: int | None = 1, source: int | None = None,
            goals: tuple[int, ...] | None = None) -> Trigger:
    params = FAMILIES[family].init(1, SPEC.shape, torch.Generator().manual_seed(0))
    return Trigger(family, params, FAMILIES[family].strength, target, source, 5.0, goals)


@pytest.mark.parametrize(("path", "told_as"), [
    ("models/net.pt", "models/net.pt"), ("my models/net's $(rm).pt", "my models/net's $(rm).pt"),
    ("-net.pt", "./-net.pt"), ("--force", "./--force")])
def test_the_command_is_one_that_a_shell_and_the_program_read_back(path: str, told_as: str) -> None:
    config = {"method": "tune", "effort": "fast", "layer": "auto", "target": 3, "timeout": None, "force": True}
    told = facts.command_line("sanitize", loaded(path), config, 7, "out dir/net.pt")
    words = shlex.split(told, comments=True)
    assert words[:2] == ["deepsanitizer", "sanitize"]
    assert words[2] == told_as
    for option, value in (("--output", "out dir/net.pt"), ("--method", "tune"), ("--effort", "fast"),
                          ("--layer", "auto"), ("--target", "3"), ("--seed", "7")):
        assert words[words.index(option) + 1] == value
    assert "--force" in words
    assert "--timeout" not in words


def test_an_output_is_not_taken_for_an_option() -> None:
    words = shlex.split(facts.command_line("sanitize", loaded(), {}, 0, Path("-out.pt")), comments=True)
    assert words[3:5] == ["--output", "./-out.pt"]


def test_a_model_from_python_has_no_command() -> None:
    told = facts.command_line("scan", Loaded(network(), SPEC, None), {}, 3, None)
    assert told.startswith("#")
    assert "seed=3" in told


def test_the_facts_of_a_model() -> None:
    said = facts.model_facts(loaded(), classifier_of(network(), SPEC, CPU))
    assert (said.path, said.format, said.architecture) == ("models/net.pt", "torch", "Sequential")
    assert said.parameters == 433 * SPEC.num_classes
    assert said.input_shape == list(SPEC.shape)
    assert not said.batch_norm
    assert said.notes == ["a note"]


def test_the_limits_say_what_is_weak() -> None:
    verdict = Verdict("clean", 0.1, 1.0, False, (), "")
    told = " ".join(facts.limits(dummies(), verdict))
    assert "uncalibrated" in told
    assert "no batch-norm" in told
    told = " ".join(facts.limits(Dummies(dummies().images, dummies().logits, "batch-norm matching"), Verdict(
        "clean", 0.1, 1.0, True, (), "")))
    assert "uncalibrated" not in told
    assert "no batch-norm" not in told


def test_changes_are_relative_and_largest_first() -> None:
    old = {"a": torch.full((4,), 2.0), "b": torch.full((2,), 1.0), "same": torch.ones(3), "count": torch.tensor(3)}
    new = {"a": torch.full((4,), 2.2), "b": torch.full((2,), 1.5), "same": torch.ones(3), "count": torch.tensor(9)}
    told = facts.changes(old, new)
    assert [(change.name, change.parameters) for change in told] == [("b", 2), ("a", 4)]
    assert [change.relative_change for change in told] == pytest.approx([0.5, 0.1])


def test_weights_are_rounded_as_they_are_stored() -> None:
    classifier = Classifier(network(), SPEC, CPU)
    before: dict[str, Tensor] = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    facts.round_like(classifier, None)
    assert all(value.equal(before[name]) for name, value in classifier.network.state_dict().items())
    facts.round_like(classifier, loaded().checkpoint)
    after = classifier.network.state_dict()
    assert after["1.weight"].equal(before["1.weight"].half().float())
    assert not after["1.weight"].equal(before["1.weight"])
    assert after["1.bias"].equal(before["1.bias"])


def test_each_suspect_has_its_strongest_trigger() -> None:
    def evidence(score: float, target: int, family: str = "add") -> Evidence:
        return Evidence(SignalResult(name=family, applicable=True, target=target, score=score),
                        (trigger(family, target=target), trigger(family, target=(target + 1) % 6)))

    suspects = [Suspect(kind="all2one", source=None, target=target, family="add", score=1.0) for target in (4, 1, 5)]
    found = facts.triggers_of(suspects, [evidence(1.0, 1), evidence(3.0, 1, "blend"), evidence(2.0, 4),
                                         Evidence(SignalResult(name="x", applicable=True, target=5, score=9.0))])
    assert [(t.target, t.family) for t in found] == [(4, "add"), (1, "blend")]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_a_trigger(family: str) -> None:
    made = facts.pictures([trigger(family)], dummies(), SPEC, examples=2)
    assert [picture.role for picture in made] == ["pattern", *["dummy", "triggered", "difference"] * 2]
    assert len({picture.group for picture in made}) == 1
    assert "class 1" in made[0].group
    assert all(picture.png_base64 for picture in made)


def test_pictures_of_triggers_that_apply_to_few_or_none() -> None:
    (alone,) = facts.pictures([trigger(target=2, source=2)], dummies(), SPEC)
    assert alone.role == "pattern"
    made = facts.pictures([trigger(target=None, goals=(1, 2, 3, 4, 5, 0))] * 5, dummies(), SPEC, examples=1, most=2)
    assert [picture.role for picture in made] == ["pattern", "dummy", "triggered", "difference"] * 2
    assert "goal of its own" in made[0].group


def test_suspects_are_told_where_their_patch_is() -> None:
    suspects = [Suspect(kind="all2one", source=None, target=1, family=family, score=1.0)
                for family in ("place", "add", "warp")]
    told = facts.located(suspects, [trigger("place"), trigger("add")], dummies())
    assert [suspect.where for suspect in told] == ["in the upper left corner", "", ""]


def test_no_limit_is_cut_short_in_a_terminal() -> None:
    """The text report shows at most 300 characters of a limit, for a report may come from elsewhere."""
    images = torch.zeros(4, 3, 8, 8)
    for how in ("no batch-norm", "inversion"):
        some = Dummies(images, torch.eye(4), how)
        told = facts.limits(some, Verdict("clean", 0.1, 1.0, False, (), ""))
        assert max(len(limit) for limit in told) <= 300
