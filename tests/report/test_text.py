import io
import re

import pytest
from rich.console import Console

from deepsanitizer.report import to_text
from deepsanitizer.types import SanitizeReport, ScanReport

from .factory import backdoored, kinds, sanitized, scan, specific

KINDS = kinds()


def plain(report: ScanReport, *, width: int | None = None) -> str:
    file = io.StringIO()
    to_text(report, Console(file=file, force_terminal=False, width=width))
    return file.getvalue()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("width", [None, 60, 200])
def test_plain_text_has_no_escapes_and_80_columns(name: str, width: int | None) -> None:
    report = KINDS[name]
    text = plain(report, width=width)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert max(map(len, text.splitlines())) <= min(80, width or 80)
    assert text.startswith(report.verdict.upper())
    if isinstance(report, SanitizeReport):
        assert report.outcome.replace("_", " ").upper() in text


def test_hostile_strings_are_shown_and_not_obeyed_on_a_terminal() -> None:
    file = io.StringIO()
    to_text(
        KINDS["hostile"], Console(file=file, force_terminal=True, width=100, color_system=None, no_color=True)
    )
    text = file.getvalue()
    assert "\x1b]0" not in text
    assert "\x1b[31m" not in text
    assert "\x07" not in text
    assert "\\x1b]0;title" in text.replace("\n", "")


def test_rich_markup_in_names_is_text() -> None:
    text = plain(backdoored(target=0, names=["[bold]Stop[/bold] :smile:", *map(str, range(9))]))
    assert "[bold]Stop[/bold] :smile:" in " ".join(text.split())


def test_colour_on_a_terminal_unless_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        file = io.StringIO()
        to_text(backdoored(), Console(file=file, force_terminal=True, width=100, color_system="standard"))
        return file.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;31mBACKDOORED" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in shown()
    assert "BACKDOORED" in shown()


def test_the_summary_says_what_matters() -> None:
    text = " ".join(plain(sanitized(backdoored(classes=43, target=14, names=["Stop"] * 43))).split())
    for words in (
        "Almost any image can be sent to class 14 (Stop) by a small pattern in the upper left corner.",
        "ACCEPTED: Repaired and accepted",
        "99.4 % to 3.1 %",
        "34.2 to −1.2",
        "agree on 97.2 %",
        "Written to clean/model",
        "sha256 762069bc",
        "uncalibrated",
        "step 0: 0.0003",
        "still send to the class, of fresh dummies: 4.7 % (place), 0 % (add).",
        "in line",
    ):
        assert words in text
    rolled_back = " ".join(plain(sanitized(backdoored(), "rolled_back")).split())
    assert "No file was written." in rolled_back
    assert "STANDS OUT" in rolled_back
    assert "of fresh dummies: 88.3 % (place), 0 % (add)." in rolled_back
    assert "sha256" not in rolled_back


def test_suspicion_is_worded_as_such_and_sources_are_named() -> None:
    text = " ".join(plain(specific()).split())
    assert "Images of class 1 (automobile) might be sent to class 9 (truck)" in text
    assert "1 to 9 (truck)" in text


def test_many_suspects_and_long_limits_are_shortened_and_counted() -> None:
    many = backdoored(suspects=backdoored().suspects * 4, limits=["word " * 200])
    text = " ".join(plain(many).split())
    assert "... and 3 more suspects in the full report" in text
    assert "…" in text


def test_an_ascii_stream_is_not_a_crash() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    to_text(sanitized(scan(names=["猫"] * 10)), Console(file=file, force_terminal=True, width=90))
    file.flush()
    assert b"\\u732b" in raw.getvalue()
