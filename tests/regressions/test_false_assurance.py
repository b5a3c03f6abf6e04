"""A repair must not be accepted while the true trigger, which only the test knows, still works."""

from typing import NamedTuple

import pytest
from helpers.planted import SPEC, Attack, Planted, accuracy, plant, shared_folder

from deepsanitizer import pipeline
from deepsanitizer.types import Effort

MOST_ASR = 20.0  # percent of other classes' images


class Case(NamedTuple):
    attack: Attack
    seed: int
    effort: Effort
    half: bool = False  # weights rounded to half precision before the repair


pytestmark = pytest.mark.usefixtures("one_thread")


def planted(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    model = plant(case.attack, shared_folder(tmp_path_factory.getbasetemp()), seed=case.seed)
    if case.half:
        model.network.half().float()
    return model


@pytest.mark.parametrize("case", [
    Case("patch", 0, "fast"),
    # Once accepted at 99.8: the attack failed on the old weights too, so its failure on the new ones showed nothing.
    Case("patch", 2, "fast"),
    # Once accepted at 96: a natural suspect came first, and the old patterns of the true one were not held against it.
    Case("patch", 0, "standard", half=True),
    Case("blend", 0, "fast"),
    Case("blend", 2, "fast"),
], ids=lambda case: f"{case.attack}-{case.seed}-{case.effort}{'-half' if case.half else ''}")
def test_what_still_works_is_not_accepted(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = planted(case, tmp_path_factory)
    before = accuracy(model.network, case.attack)[1]
    assert before > 95  # there is something to be wrong about
    network, report = pipeline.sanitize(model.network, spec=SPEC, effort=case.effort, device="cpu")
    acc, asr = accuracy(network, case.attack)
    told = [(c.family, c.target, round(c.success_before, 2), round(c.old_success_after, 2)) for c in report.comparisons]
    assert report.accepted == (report.outcome == "accepted")
    assert not (report.accepted and asr > MOST_ASR), f"accepted at ASR {before:.1f} to {asr:.1f}, ACC {acc:.1f}: {told}"
    assert report.accepted or asr == before  # rolled back: the old weights, not half a repair
