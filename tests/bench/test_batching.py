"""Batching and ranking give the answers that the slow ways give; a large head stays inside its memory."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers.planted import Planted

from deepsanitizer import examination
from deepsanitizer.bench import batching
from deepsanitizer.signals import freeeagle
from deepsanitizer.types import silent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def case(planted: Callable[[str], Planted]) -> examination.Case:
    return examination.open_case(planted("patch").loaded, None, "auto", "cpu", 0, "standard", silent, None)


def test_one_batch_and_one_class_after_another_give_the_same_scores(case: examination.Case) -> None:
    told = batching.freeeagle_ways(case, steps=30)
    apart = float(told.rsplit(" ", 1)[1])
    assert apart < 1e-4
    assert re.search(r"\d times as fast", told)


def test_ranked_classes_name_the_same_target(case: examination.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batching.RANKED, "finalists", 2)  # of six classes
    told = batching.ranked_ways(case, family="patch")
    tops = [json.loads(found) for found in re.findall(r"\[[\d, ]+\]", told)]
    assert tops[0][0] == tops[1][0]
    full, ranked = map(float, re.findall(r"margin ([\d.]+) and ([\d.]+)", told)[0])
    assert ranked == pytest.approx(full, rel=0.05)


def test_a_head_of_a_thousand_classes_is_scanned_inside_four_gibibytes() -> None:
    """In a process of its own, whose peak is not that of other tests."""
    done = subprocess.run([sys.executable, "-m", "deepsanitizer.bench.batching", "--imagenet", "--steps", "2"],
                          capture_output=True, text=True, check=True, timeout=300)
    peak = float(re.findall(r"([\d.]+) GiB", done.stdout)[0])
    assert 0.5 < peak < 4.0


def test_the_scores_are_those_of_the_matrix(case: examination.Case) -> None:
    found = freeeagle.detect(case.parts, case.run, steps=30).result
    assert found.matrix is not None
    means = freeeagle.column_means(torch.tensor(found.matrix))
    assert means.tolist() == pytest.approx(found.per_target)
