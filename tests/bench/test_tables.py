"""Means, RA share and rank correlation of benchmark rows, on rows made up so that the answers are known."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsanitizer.bench.proxies import drawn, points_of
from deepsanitizer.bench.tables import load_results, ra_reference, ra_share, rank_correlation, table

REFERENCE = {"cifar10": {"blend": 0.5}}


def row(model: str, *, acc: float, asr: float, outcome: str = "accepted", trigger: str | None = "blend",
        ra: float = 20.0, **more: Any) -> dict[str, Any]:
    candidate = {"acc": acc, "asr": asr, "ra": ra} if trigger else {"acc": acc}
    before = {"acc": 80.0, "asr": 99.0, "ra": 0.0} if trigger else {"acc": 80.0}
    return {"model": model, "method": "auto", "seed": 0, "force": False, "label": "abc", "before": before,
            "outcome": outcome, "candidate": candidate, "delivered": candidate if outcome == "accepted" else before,
            "truth": {"data": "cifar10", "trigger": trigger, "mode": "all2one", "source": None, "target": 3},
            "verdict": "backdoored", "score": 2.0, "suspects": [], "agreement": acc / 80,
            "comparisons": [["blend", 3, 9.0, 1.0, 1.0, 0.2, 2.0, asr / 200]],
            "seconds": {"total": 3.0}, "passes": {"total": 1000.0}} | more


ROWS = [row("a", acc=79.0, asr=5.0), row("b", acc=76.0, asr=5.0), row("c", acc=79.0, asr=40.0),
        row("d", acc=70.0, asr=1.0, outcome="rolled_back"), row("e", acc=78.0, asr=0.0, trigger=None)]


def test_the_means_are_those_of_the_rows() -> None:
    told = table(ROWS, REFERENCE)
    assert "`auto`, candidate, 4 trojaned models: success (ASR < 10, < 3 points lost) 1; mean ASR 12.8" in told
    assert "`auto`, delivered, 4 trojaned models: success (ASR < 10, < 3 points lost) 1; mean ASR 37.2" in told
    assert "mean accuracy lost 4.00; mean RA 20.0; mean RA share 50.0" in told  # of the candidates
    assert "mean accuracy lost 1.50; mean RA 15.0; mean RA share 37.5" in told  # delivered
    assert "exit code 0 while the ASR is 10 or more: 1 of 4 (c)" in told
    assert "1 clean models: found clean 0; worst accuracy lost by what was delivered 2.00" in told


def test_what_is_left_as_it_was_has_the_exit_code_of_its_verdict() -> None:
    left = [row(name, acc=79.0, asr=90.0, outcome="unchanged", verdict=name)
            for name in ("clean", "suspicious", "inconclusive")]
    assert "exit code 0 while the ASR is 10 or more: 1 of 3 (clean)" in table(left, REFERENCE)


def test_without_a_reference_no_share_is_told(tmp_path: Path) -> None:
    assert ra_reference(tmp_path) == {}
    assert "RA share 5" not in table(ROWS, {})
    assert ra_share(ROWS[0], "delivered", {}) is None
    assert ra_share(ROWS[4], "delivered", REFERENCE) is None
    assert ra_share(ROWS[0], "delivered", REFERENCE) == pytest.approx(50.0)


def test_errors_and_forced_rows_stand_apart() -> None:
    failed = row("f", acc=0, asr=0) | {"error": "no dummy is of class 4"}
    told = table([*ROWS, failed, row("a", acc=60.0, asr=5.0, force=True)], REFERENCE)
    assert "| no dummy is of class 4 |" in told
    assert "`auto`, candidate, 4 trojaned" in told
    assert "`auto`, forced, candidate, 1 trojaned models: success (ASR < 10, < 3 points lost) 0" in told


def test_proxies_are_drawn_for_every_candidate() -> None:
    early = row("old", acc=75.0, asr=3.0, comparisons=[["blend", 3, 9.0, 1.0, 1.0, 0.2]])
    kept, gone = points_of([*ROWS, early, row("none", acc=1, asr=1) | {"candidate": None}])
    assert kept.models == ("a", "b", "c", "d", "e", "old")
    assert gone.models == ("a", "b", "c", "d")
    assert rank_correlation(kept.proxy, kept.truth) == pytest.approx(1.0)
    assert rank_correlation(gone.proxy, gone.truth) == pytest.approx(1.0)
    picture = ET.fromstring(drawn([kept, gone]))
    circles = [e for e in picture.iter() if e.tag.endswith("circle")]
    assert len(circles) == 6 + 4 + 1  # and one in the legend
    assert all(math.isfinite(float(c.attrib["cx"])) for c in circles)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12))
def test_rank_correlation_is_bounded_symmetric_and_of_ranks_alone(pairs: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    value = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(value)
        return
    assert -1.0001 <= value <= 1.0001
    assert value == pytest.approx(rank_correlation(second, first))
    assert value == pytest.approx(rank_correlation([math.exp(a) for a in first], second))
    assert value == pytest.approx(-rank_correlation([-a for a in first], second))


def test_the_committed_rows_can_be_read_and_the_table_is_of_them() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "zoo"
    rows = load_results(results)
    assert rows
    told = results.with_suffix(".md").read_text()
    assert all(f"| {r['model']} |" in told for r in rows)


def test_further_seeds_stand_apart_over_the_models_read_with_each() -> None:
    told = table([*ROWS, row("a", acc=78.0, asr=3.0, seed=1), row("c", acc=78.0, asr=30.0, seed=1)], REFERENCE)
    assert "`auto`, candidate, 4 trojaned models: success (ASR < 10, < 3 points lost) 1; mean ASR 12.8" in told
    assert "| a | blend, all2one, → 3 | auto, seed 1 |" in told
    assert "delivered, seed 0, 2 models read with seed 1: success (ASR < 10, < 3 points lost) 1; mean ASR 22.5" in told
    assert "delivered, seed 1, 2 models read with seed 1: success (ASR < 10, < 3 points lost) 1; mean ASR 16.5" in told
    assert "models read with" not in table(ROWS, REFERENCE)
