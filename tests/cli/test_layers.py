"""layers: where a model can be cut."""

import json
from pathlib import Path

import torch
from helpers.cli import Run
from helpers.models import write_folder
from torch import nn

SKIPPING = '''
import torch
from torch import nn


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.fc((x + self.second(x)).mean((2, 3)))
'''


def test_table(run: Run, model: Path, code: Path) -> None:
    answer = run("layers", model, "--import-from", code)
    assert answer.code == 0
    assert answer.err == ""
    lines = answer.out.splitlines()
    assert lines[0].split() == ["layer", "features", "parameters", "multiply-adds"]
    assert lines[1].split()[:2] == ["0", "8x6x6"]
    assert sum("auto" in line for line in lines) == 1
    assert all(line == line[:80] for line in lines)


def test_json(run: Run, model: Path, code: Path) -> None:
    answer = run("layers", model, "--import-from", code, "--format", "json")
    rows = json.loads(answer.out)
    assert [row["name"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert [row["auto"] for row in rows].count(True) == 1
    for row in rows:
        assert row["valid"]
        assert row["params_before"] + row["params_after"] == 1
        assert abs(row["madds_before"] + row["madds_after"] - 1) < 1e-9


def test_one_layer(run: Run, model: Path, code: Path) -> None:
    answer = run("layers", model, "--import-from", code, "--layer", "3", "--format", "json")
    assert [row["name"] for row in json.loads(answer.out)] == ["3"]
    answer = run("layers", model, "--import-from", code, "--layer", "33")
    assert answer.code == 4
    assert "did you mean '3'" in answer.error.lower()


def test_refused_layers_have_a_reason(run: Run, tmp_path: Path) -> None:
    (tmp_path / "skip.py").write_text(SKIPPING)
    space: dict[str, type[nn.Module]] = {}
    exec(SKIPPING, space)
    with torch.random.fork_rng():
        network = space["Skipping"]()
    model = write_folder(tmp_path / "model", network=network, architecture="skip:Skipping", kwargs={},
                         num_classes=3)
    shown = run("layers", model, "--import-from", tmp_path)
    assert "second" not in shown.out
    everything = run("layers", model, "--import-from", tmp_path, "--all")
    assert everything.code == 0
    assert "second: a connection goes around it" in everything.out
    refused = run("layers", model, "--import-from", tmp_path, "--layer", "second")
    assert refused.code == 3
    assert "second" in refused.error
