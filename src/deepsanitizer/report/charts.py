"""Inline SVG by hand. Rows are a table with a drawing in the middle column, so text never scales or overlaps.

Everything drawn comes back as Markup; every string that comes in is escaped by Markup.format. Colours are CSS
classes, so light, dark and print are the page's business.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deepsanitizer.report.words import number, steady

Show = Callable[[float | None], str]

MOST_ROWS = 20
MOST_CELLS = 20  # rows and columns of a heat map


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: a label, its value (None: not evaluated), and whether it stands out."""

    label: str
    value: float | None
    strong: bool = False


def bars(rows: Sequence[Row], *, threshold: float | None = None, show: Show | None = None,
         span: tuple[float, float] | None = None, most: int = MOST_ROWS, lowest_first: bool = False,
         what: str = "classes") -> Markup:
    """A horizontal bar for each row, with a dashed threshold line.

    More than `most` rows: only the highest (or lowest) are shown, in that order, and those that stand out;
    a note says so.
    """
    known = [row for row in rows if _known(row.value)]
    if not known:
        return Markup('<p class="note">Nothing was evaluated.</p>')
    note = Markup("")
    shown = list(rows)
    if len(rows) > most:
        ordered = sorted(known, key=lambda row: row.value or 0.0, reverse=not lowest_first)
        shown = ordered[:most] + [row for row in ordered[most:] if row.strong][:most]
        note = Markup('<p class="note">The {} {} of {} {} are shown{}.</p>').format(
            min(most, len(known)), "lowest" if lowest_first else "highest", f"{len(rows):,}", what,
            ", and those accused" if len(shown) > most else "")
    values = [row.value for row in shown if row.value is not None and math.isfinite(row.value)]
    low, high = span or (min(0.0, *values, threshold or 0.0), max(0.0, *values, threshold or 0.0))
    scale = _Scale(low, high)
    show = show or steady(high - low)
    head = _threshold_label(scale, threshold, show) if threshold is not None else Markup("")
    body = Markup("").join(_bar(row, scale, threshold, show) for row in shown)
    return Markup('<table class="bars">{}<tbody>{}</tbody></table>{}').format(head, body, note)


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float

    def at(self, value: float) -> str:
        """A position in percent of the width, a little inside both ends."""
        width = (self.high - self.low) or 1.0
        return f"{1 + 98 * min(1.0, max(0.0, (value - self.low) / width)):.2f}%"

    def length(self, first: float, second: float) -> str:
        width = (self.high - self.low) or 1.0
        return f"{98 * min(1.0, abs(second - first) / width):.2f}%"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _bar(row: Row, scale: _Scale, threshold: float | None, show: Show) -> Markup:
    drawing = _upright("axis", scale.at(0.0))
    if row.value is not None and math.isfinite(row.value):
        start = scale.at(min(0.0, row.value))
        drawing += Markup('<rect class="{}" x="{}" y="5" width="{}" height="12" rx="2"/>').format(
            "bar strong" if row.strong else "bar", start, scale.length(0.0, row.value))
    if threshold is not None:
        drawing += _upright("limit", scale.at(threshold))
    text = show(row.value)
    return Markup('<tr{}><th scope="row" title="{}"><bdi dir="ltr">{}</bdi></th><td class="plot">'
                  '<svg width="100%" height="22" role="img"><title>{}: {}</title>{}</svg></td>'
                  '<td class="num">{}</td></tr>').format(
        Markup(' class="strong"') if row.strong else "", row.label, row.label, row.label, text, drawing, text)


def _threshold_label(scale: _Scale, threshold: float, show: Show) -> Markup:
    place = scale.at(threshold)
    anchor = "end" if float(place.rstrip("%")) > 55 else "start"
    return Markup('<thead><tr><td></td><td class="plot"><svg width="100%" height="20" aria-hidden="true">'
                  '<text class="limit" x="{0}" y="13" dx="{1}" text-anchor="{2}">threshold {3}</text>'
                  '{4}</svg></td><td></td></tr></thead>').format(
        place, "-5" if anchor == "end" else "5", anchor, show(threshold), _upright("limit", place))


def _upright(kind: str, place: str) -> Markup:
    """A line from top to bottom."""
    return Markup('<line class="{0}" x1="{1}" x2="{1}" y1="0" y2="100%"/>').format(kind, place)


def dumbbell(before: float, after: float, others: float, *, span: tuple[float, float]) -> Markup:
    """A margin before (ring) and after (dot) a repair, and the strongest other class (dashed)."""
    scale = _Scale(*span)
    return Markup('<svg class="dumbbell" width="100%" height="22" role="img">'
                  '<title>before {}, after {}, other classes {}</title>{z}'
                  '<line class="link" x1="{b}" x2="{a}" y1="11" y2="11"/>'
                  '<line class="limit" x1="{o}" x2="{o}" y1="2" y2="20"/>'
                  '<circle class="before" cx="{b}" cy="11" r="5"/>'
                  '<circle class="after" cx="{a}" cy="11" r="5"/></svg>').format(
        number(before), number(after), number(others), z=_upright("axis", scale.at(0.0)), b=scale.at(before),
        a=scale.at(after), o=scale.at(others))


def heat_map(matrix: Sequence[Sequence[float | None]], name: Callable[[int], str]) -> Markup:
    """Source classes down, goal classes across; darker is a larger margin, no tint is at most 0.

    With many classes: the sources and goals of the strongest cells, at most MOST_CELLS of each.
    """
    sources, goals = _strongest(matrix)
    known = [value for line in matrix for value in line if value is not None and math.isfinite(value)]
    top = max(known, default=0.0)
    show = steady(max(map(abs, known), default=0.0))
    cell = 36 if max(len(sources), len(goals)) <= 12 else 26
    left, head = 46, 40
    parts = [Markup('<text class="axis-name" x="{}" y="12">goal class →</text>').format(left),
             Markup('<text class="axis-name" x="12" y="{0}" transform="rotate(90 12 {0})">'
                    'source class →</text>').format(head)]
    for column, goal in enumerate(goals):
        parts.append(_tick(left + cell * (column + 0.5), head - 6, "middle", goal, name))
    for line, source in enumerate(sources):
        parts.append(_tick(left - 6, head + cell * (line + 0.5) + 4, "end", source, name))
        for column, goal in enumerate(goals):
            parts.append(_cell(matrix[source][goal], source, goal, top, name, show,
                               x=left + cell * column, y=head + cell * line, size=cell))
    width, height = left + cell * len(goals) + 1, head + cell * len(sources) + 1
    note = Markup("")
    if len(matrix) > len(sources):
        note = Markup('<p class="note">The sources and goals of the strongest cells are shown, {} of {} '
                      'classes.</p>').format(len(sources), f"{len(matrix):,}")
    return Markup('<div class="scroll">'
                  '<svg class="heat" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img">'
                  '<title>Source by goal margins</title>{}</svg></div>{}').format(
        Markup("").join(parts), note, w=width, h=height)


def _strongest(matrix: Sequence[Sequence[float | None]]) -> tuple[list[int], list[int]]:
    """All rows and columns, or those of the strongest cells."""
    everything = list(range(len(matrix)))
    if len(matrix) <= MOST_CELLS:
        return everything, list(range(max((len(line) for line in matrix), default=0)))
    cells = sorted(((value, source, goal)
                    for source, line in enumerate(matrix) for goal, value in enumerate(line)
                    if value is not None and math.isfinite(value)), reverse=True)
    sources: list[int] = []
    goals: list[int] = []
    for _, source, goal in cells:
        if source not in sources and len(sources) < MOST_CELLS:
            sources.append(source)
        if goal not in goals and len(goals) < MOST_CELLS:
            goals.append(goal)
        if len(sources) == len(goals) == MOST_CELLS:
            break
    return sorted(sources), sorted(goals)


def _tick(x: float, y: float, anchor: str, index: int, name: Callable[[int], str]) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}<title>{}</title></text>').format(
        x, y, anchor, index, name(index))


def _cell(value: float | None, source: int, goal: int, top: float, name: Callable[[int], str],
          show: Show, *, x: int, y: int, size: int) -> Markup:
    known = value is not None and math.isfinite(value)
    shade = max(0.0, value) / top if known and value is not None and top > 0 else 0.0
    parts = Markup('<rect class="cell" x="{0}" y="{1}" width="{2}" height="{2}"/>'
                   '<rect class="heat-fill" x="{0}" y="{1}" width="{2}" height="{2}" fill-opacity="{3:.2f}">'
                   '<title>{4} to {5}: {6}</title></rect>').format(
        x, y, size - 2, shade, name(source), name(goal), show(value))
    if size >= 36 and known and value is not None:
        parts += Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            "in dark" if shade > 0.55 else "in", x + size / 2 - 1, y + size / 2 + 3, show(value))
    return parts
