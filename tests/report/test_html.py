import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from deepsanitizer.report import to_html
from deepsanitizer.types import SanitizeReport

from .factory import CIFAR, all2all, backdoored, kinds, sanitized, scan, specific

KINDS = kinds()
VOID = {"meta", "img", "br", "link", "input", "hr"}
ALLOWED = {
    "html", "head", "body", "title", "style", "meta", "main", "header", "section", "footer", "div", "p",
    "h1", "h2", "h3", "h4", "span", "strong", "code", "pre", "bdi", "br", "ol", "ul", "li", "dl", "dt",
    "dd", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "svg", "rect",
    "line", "circle", "path", "text",
}
ATTRIBUTES = {
    "lang", "dir", "charset", "http-equiv", "content", "name", "class", "aria-label", "aria-hidden", "role",
    "src", "alt", "title", "scope", "data-label", "viewbox", "width", "height", "x", "y", "x1", "x2",
    "y1", "y2", "cx", "cy", "r", "rx", "d", "dx", "fill-opacity", "text-anchor", "transform",
}


class Page(HTMLParser):
    """Elements, attributes and text, with every tag closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_one_closed_self_contained_page(name: str) -> None:
    source = to_html(KINDS[name])
    page = Page(source)
    assert {tag for tag, _ in page.seen} <= ALLOWED
    assert {key for _, attributes in page.seen for key in attributes} <= ATTRIBUTES
    for tag, attributes in page.seen:
        if tag == "img":
            prefix, _, data = (attributes["src"] or "").partition(",")
            assert prefix == "data:image/png;base64"
            assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in source
    assert len(source) < 1_000_000
    for position in re.findall(r'(?:x|x1|cx|width)="([-\d.]+)%"', source):
        assert 0 <= float(position) <= 100
    assert "nan" not in re.findall(r'="([^"]*)"', source)


@pytest.mark.parametrize("name", KINDS)
def test_the_verdict_comes_first_in_words(name: str) -> None:
    report = KINDS[name]
    page = Page(to_html(report))
    assert [tag for tag, _ in page.seen].count("h1") == 1
    assert page.text.index(f"· {report.verdict}") < page.text.index("What was found")
    if isinstance(report, SanitizeReport):
        assert page.text.index(report.outcome.replace("_", " ")) < page.text.index("What was found")


def test_hostile_names_reach_the_reader_as_text_only() -> None:
    source = to_html(KINDS["hostile"])
    page = Page(source)
    assert "<script" not in source
    assert "<img src=x" not in source
    assert "<script>alert(1)</script>" in page.text
    assert '"><img src=x onerror=alert(1)>' in page.text
    assert "{{ 7*7 }}" in page.text
    assert "({target}{0})" in page.text
    assert "ممنوع الوقوف" in page.text
    assert "\\u202egnp.exe" in page.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", source)
    assert '<bdi dir="ltr">3 (ممنوع الوقوف)</bdi>' in source  # the number stays in front
    assert "long " * 20 not in source  # very long names are shortened


def test_the_finding_its_pictures_and_the_threshold_are_shown() -> None:
    report = backdoored(classes=43, target=14, names=["Stop"] * 43)
    source = to_html(report)
    page = Page(source)
    assert (
        "Almost any image can be sent to class 14 (Stop) by a small pattern in the upper left corner."
        in page.text
    )
    assert sum(tag == "img" for tag, _ in page.seen) == len(report.pictures) == 26
    assert page.text.count("Without it") == page.text.count("With it") == 2
    assert page.text.count("threshold 5.0") == 2  # of the score, and of the one signal on its scale
    assert "This signal has no threshold on the scale of the plot." in page.text
    assert "The 20 highest of 43 classes are shown" in page.text


def test_an_accused_class_is_shown_even_when_it_is_not_among_the_highest() -> None:
    report = backdoored(classes=100, target=50)
    quiet = replace(report.signals[2], per_target=[float(-index) for index in range(100)])
    page = Page(to_html(replace(report, signals=[quiet])))
    assert "The 20 highest of 100 classes are shown, and those accused." in page.text
    assert "−50.0" in page.text


def test_what_was_changed_before_and_after_and_hashes() -> None:
    report = sanitized(backdoored(names=CIFAR))
    page = Page(to_html(report))
    for words in (
        "Repaired and accepted",
        "Written to clean/model",
        report.output_sha256 or "?",
        "99.4 %",
        "3.1 %",
        "34.2",
        "−1.2",
        "✓ in line",
        "4.7 %",
        "Old patterns: of fresh dummies",
        "97.2 %",
        "layer1.0.conv1.weight",
        "15.5 %",
        "0.0003",
        "Solved 17 layers",
        report.input_sha256 or "?",
        report.reproduce,
        "uncalibrated",
        "1 min 46 s",
        "106,400",
        *report.limits,
    ):
        assert words in page.text, words
    rolled_back = Page(to_html(sanitized(backdoored(), "rolled_back"))).text
    assert "No file was written." in rolled_back
    assert "✗ stands out" in rolled_back
    assert "88.3 %" in rolled_back
    assert "What was changed" not in Page(to_html(scan())).text


@pytest.mark.parametrize("make", [specific, all2all])
def test_source_by_goal_margins_are_a_heat_map(make: object) -> None:
    assert callable(make)
    report = make()
    page = Page(to_html(report))
    cells = [
        attributes
        for tag, attributes in page.seen
        if tag == "rect" and attributes.get("class") == "heat-fill"
    ]
    assert len(cells) == 100
    shades = [float(attributes["fill-opacity"] or "") for attributes in cells]
    assert max(shades) == 1.0
    strongest = shades.index(1.0)
    assert divmod(strongest, 10) == ((1, 9) if make is specific else (9, 0))


def test_nothing_evaluated_nothing_written_nothing_known() -> None:
    report = scan(
        signals=[],
        limits=[],
        versions={},
        config={},
        seconds={},
        passes={},
        input_sha256=None,
        model=replace(scan().model, path=None, notes=[]),
        score=float("nan"),
    )
    text = Page(to_html(report)).text
    assert "Nothing that could be judged." in Page(to_html(KINDS["inconclusive"])).text
    for words in ("No signal was computed.", "No limits were recorded.", "A model in memory", "no file"):
        assert words in text
    empty = replace(
        backdoored().signals[0], per_target=[None] * 10, target=None, margin=None, matrix=[[None] * 2] * 2
    )
    assert "Nothing was evaluated." in Page(to_html(scan(signals=[empty]))).text


def test_a_calibrated_verdict_says_so() -> None:
    assert "uncalibrated" not in Page(to_html(scan(calibrated=True, limits=[]))).text


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(char * 2 for char in digits) if len(digits) == 3 else digits
    parts = [int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_aa_asks_for(mode: str) -> None:
    style = files("deepsanitizer.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    light, dark = style.split("@media screen and (prefers-color-scheme:dark)")
    palette = dict(
        re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", light if mode == "light" else dark.split("}}")[0])
    )

    def contrast(one: str, other: str) -> float:
        high, low = sorted((_luminance(palette[one]), _luminance(palette[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for text, ground in [
        ("fg", "bg"),
        ("soft", "bg"),
        ("soft", "panel"),
        ("fg", "panel"),
        ("good", "bg"),
        ("bad", "bg"),
        ("on", "accent"),
        *[(one, f"{one}-bg") for one in ("good", "warn", "bad", "unknown")],
        *[("fg", f"{one}-bg") for one in ("good", "warn", "bad", "unknown")],
    ]:
        assert contrast(text, ground) >= 4.5, (text, ground)
    for mark in ("good", "warn", "bad", "unknown", "accent"):
        assert contrast(mark, "bg") >= 3.0, mark
