"""Shared options: what they parse to, and how they refuse."""

from pathlib import Path
from typing import Any

import click
import pytest

from deepsanitizer.cli.guard import run as run_guarded
from deepsanitizer.cli.options import (
    Common,
    Source,
    check_folder,
    check_writable,
    common_options,
    model_options,
)
from deepsanitizer.errors import UsageError


def _parse(*arguments: str) -> tuple[int, list[Any]]:
    seen: list[Any] = []

    @click.group()
    def program() -> None: ...

    @program.command()
    @click.option("--own")
    @model_options
    @common_options(unused=("seed",))
    def act(common: Common, source: Source, own: str | None) -> int:
        seen.extend([common, source, own])
        return 0

    return run_guarded(program, ["act", *arguments]), seen


def test_defaults() -> None:
    code, (common, source, own) = _parse("model")
    assert code == 0
    assert common == Common("auto", "auto", 0, None, None, False, False)
    assert source == Source(Path("model"), None, None, None, None, None, None, None)
    assert own is None


def test_everything() -> None:
    code, (common, source, own) = _parse(
        "m.pt", "--layer", "features.3", "--device", "cpu", "--threads", "1", "--timeout", "2.5",
        "-q", "-v", "--import-from", "src", "--arch", "a:b", "--arch-kwargs", '{"width": 24}',
        "--input-shape", "3, 32,32", "--num-classes", "10", "--mean", "0.4,0.5,0.6", "--std", "1,1,.00392",
        "--own", "x")
    assert code == 0
    assert common == Common("features.3", "cpu", 0, 1, 2.5, True, True)
    assert source == Source(Path("m.pt"), Path("src"), "a:b", {"width": 24}, (3, 32, 32), 10, (0.4, 0.5, 0.6),
                            (1.0, 1.0, 0.00392))
    assert own == "x"


@pytest.mark.parametrize(("arguments", "word"), [
    (["--input-shape", "3,x,32"], "--input-shape"), (["--input-shape", "3,32.5,32"], "--input-shape"),
    (["--input-shape", ""], "--input-shape"), (["--mean", "0.5,nan"], "--mean"), (["--std", "inf"], "--std"),
    (["--mean", "0.5;0.5"], "--mean"), (["--num-classes", "0"], "--num-classes"),
    (["--num-classes", "ten"], "--num-classes"), (["--arch-kwargs", "{width: 24}"], "--arch-kwargs"),
    (["--arch-kwargs", "[1]"], "--arch-kwargs"), (["--device", "tpu"], "--device"),
    (["--seed", "-1"], "--seed"), (["--threads", "0"], "--threads"), (["--timeout", "0"], "--timeout"),
    (["--timeout", "soon"], "--timeout"),
    (["--sed", "1"], "--sed"), (["second"], "second"),
])
def test_refused_by_name(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, seen = _parse("model", *arguments)
    err = capsys.readouterr().err
    assert code == 4
    assert seen == []
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err


def test_unused_options_are_taken_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert _parse("model", "--seed", "3")[0] == 0
    assert "--seed has no effect on act" in capsys.readouterr().err
    assert _parse("model", "--help")[0] == 0
    assert "--seed" not in capsys.readouterr().out


def test_check_writable(tmp_path: Path) -> None:
    kept = tmp_path / "model.pt"
    kept.write_text("weights")
    (tmp_path / "link.pt").symlink_to(kept)
    check_writable(None, "--html")
    check_writable(tmp_path / "report.html", "--html", keep=(kept,))
    assert not (tmp_path / "report.html").exists()
    for path in (tmp_path, tmp_path / "none" / "x.json", kept, tmp_path / "sub" / ".." / "model.pt",
                 tmp_path / "link.pt", kept / "x.json"):
        with pytest.raises(UsageError, match="--html"):
            check_writable(path, "--html", keep=(kept,))
    assert kept.read_text() == "weights"


def test_check_folder(tmp_path: Path) -> None:
    kept = tmp_path / "file"
    kept.write_text("x")
    check_folder(None, "--export-trigger")
    check_folder(tmp_path / "a" / "b", "--export-trigger")
    assert not (tmp_path / "a").exists()
    for path in (kept, kept / "below"):
        with pytest.raises(UsageError, match="--export-trigger"):
            check_folder(path, "--export-trigger")
