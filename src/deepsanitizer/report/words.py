"""The plain words of a report, shared by text and HTML, and how numbers and untrusted strings are shown."""

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deepsanitizer.types import (
    ModelFacts,
    Outcome,
    SanitizeReport,
    SearchComparison,
    Suspect,
    VerdictName,
)


@dataclass(frozen=True, slots=True)
class Headline:
    """A result in big letters, what it means, and the tone that colour and icon follow."""

    title: str
    meaning: str
    tone: str  # good, warn, bad, unknown


VERDICTS: Mapping[VerdictName, Headline] = {
    "clean": Headline("No backdoor found", "The searches found no small change of the image that this model "
                      "obeys as a backdoored one would. That is not proof that there is none.", "good"),
    "suspicious": Headline("This model looks suspicious", "Something unusual was found, but not enough to "
                           "call it a backdoor. Do not trust the model before someone has looked at it.",
                           "warn"),
    "backdoored": Headline("This model has a backdoor", "A small change of the image makes the model answer "
                           "as somebody else may have planned. Do not use it as it is.", "bad"),
    "inconclusive": Headline("No verdict", "The evidence does not allow a judgement. Unknown is not clean: "
                             "treat the model as unchecked.", "unknown"),
}

OUTCOMES: Mapping[Outcome, Headline] = {
    "accepted": Headline("Repaired and accepted", "The new weights passed the checks below.", "good"),
    "rolled_back": Headline("Rolled back", "A repair was tried and did not pass the checks. Nothing was "
                            "written.", "bad"),
    "unchanged": Headline("Left unchanged", "No weight was changed.",
                          "good"),
    "unsupported": Headline("Not repaired", "No remedy applies to this model. Nothing was written.", "warn"),
}

_HOW: Mapping[str, str] = {
    "patch": "a small pattern",
    "place": "a small pattern",
    "places": "a small pattern",
    "mask": "a small pattern",
    "add": "a faint pattern added to the picture",
    "blend": "a second picture blended in faintly",
    "filter": "a change of its colours, as a photo filter makes",
    "grating": "a faint grating over the whole image",
    "quantise": "fewer levels of its colours, as a poor screen shows",
    "square": "a small plain square",
    "tone": "a change of its tones, as a photo editor's curves make",
    "warp": "a slight bending of the picture",
    "unknown": "a trigger that no search recovered (weights or margins lean towards that class)",
}

CALIBRATED = ("calibrated", "Of the clean networks of the calibration 2 % exceed the threshold of the short searches, "
              "and 0.2 % each that of the ten searches that follow them and accuse alone. How often a "
              "network unlike those is accused is not known.")
UNCALIBRATED = ("uncalibrated", "The threshold was not set on a large collection of models like this one that "
                "are known to be clean. How often a clean model would be accused, or a backdoored one missed, "
                "is not known.")


def suspect_words(suspect: Suspect, *, possibly: bool) -> tuple[str, dict[str, str | int]]:
    """An accusation as a sentence to be formatted, and its arguments.

    `source` and `target` are class numbers: replace them by names. The sentence itself is trusted, its
    arguments are not, so that HTML can escape them.
    """
    how = _HOW.get(suspect.family) or f"a change of the kind {suspect.family!r}"
    fields: dict[str, str | int] = {"how": how}
    where = ""
    if suspect.where:
        fields["where"], where = suspect.where, " {where}"
    for name, value in (("source", suspect.source), ("target", suspect.target)):
        if value is not None:
            fields[name] = value
    can = "might be" if possibly else "can be"
    goal = "class {target}" if suspect.target is not None else "one class"
    if suspect.kind == "all2all":
        return (f"Almost any image {can} sent to another class by {{how}}{where}: each class has its own "
                "goal.", fields)
    if suspect.kind == "specific":
        who = "Images of class {source}" if suspect.source is not None else "Images of one class"
        return f"{who} {can} sent to {goal} by {{how}}{where}. Other classes hardly react.", fields
    return f"Almost any image {can} sent to {goal} by {{how}}{where}.", fields


def class_name(model: ModelFacts, index: int, *, longest: int = 48) -> str:
    """A class for people: its number, with its name (shortened, made visible) where one is known."""
    names = model.class_names
    if names is None or not 0 <= index < len(names):
        return str(index)
    return f"{index} ({shorten(visible(names[index]), longest)})"


def comparison_in_line(comparison: SearchComparison) -> bool:
    """Whether the target's margin after the repair stays within what other classes reach and what is tolerated."""
    return comparison.margin_after <= margin_limit(comparison)


def margin_limit(comparison: SearchComparison) -> float:
    """The largest margin that does not stand out: what other classes reach, and what is tolerated."""
    return comparison.others_after + comparison.tolerated


def written_words(report: SanitizeReport) -> str:
    """Where the result went, or that there is none."""
    if report.output is None or report.outcome in ("rolled_back", "unsupported"):
        return "No file was written."
    return f"{'Copied unchanged' if report.outcome == 'unchanged' else 'Written'} to {report.output}"


def visible(text: str) -> str:
    """Untrusted text with control characters, terminal escapes and direction overrides shown, not obeyed."""
    return "".join(_show(char) if unicodedata.category(char) in _HIDDEN and char != "\u200d" else char
                   for char in text)


_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _show(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def shorten(text: str, longest: int) -> str:
    """The text, or its beginning with an ellipsis, at most `longest` characters."""
    return text if len(text) <= longest else text[:longest - 1].rstrip() + "…"


def number(value: float | None) -> str:
    """A number to three digits or so, with a true minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    text = f"{size:,.0f}" if size >= 100 else f"{size:.1f}" if size >= 1 else f"{size:.2g}"
    if size < 1e-4 or size >= 1e7:
        text = f"{size:.1e}"
    return ("−" if value < 0 else "") + text


def percent(share: float | None) -> str:
    """A share 0 to 1 as percent with one decimal. Never rounds to 100 or 0 what is not."""
    if share is None or not math.isfinite(share):
        return "–"
    text = f"{100 * share:.1f}"
    if text == "100.0":
        text = "100" if share >= 1 else "> 99.9"
    if text == "0.0":
        text = "< 0.1" if share > 0 else "0"
    return f"{text} %"


def steady(span: float) -> Callable[[float | None], str]:
    """`number` with the same decimals for a whole column, as many as values over such a span need."""
    decimals = 0 if span >= 300 else 1 if span >= 3 else 2 if span >= 0.3 else 4

    def show(value: float | None) -> str:
        if value is None or not math.isfinite(value) or abs(value) >= 1e7:
            return number(value)
        text = f"{abs(value):,.{decimals}f}"
        return f"−{text}" if value < 0 and float(text.replace(",", "")) else text

    return show


def seconds(value: float) -> str:
    """A duration."""
    if value >= 100:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"
