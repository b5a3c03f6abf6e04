"""Do the data-free proxies of a proof track the truth? A scatter of each, as SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Row = dict[str, Any]

SIZE, MARGIN = 300, 46
COLOURS = {"auto": "#0b6e99", "closed_form": "#b3541e", "clp": "#6b7280", "tune": "#7a4fa3", "paper": "#a3a33c"}


@dataclass(frozen=True, slots=True)
class Pairs:
    """One proxy and what it stands in for, by candidate, both in percent."""

    told: str
    proxy_name: str
    truth_name: str
    proxy: tuple[float, ...]
    truth: tuple[float, ...]
    methods: tuple[str, ...]
    models: tuple[str, ...]


def points_of(rows: Sequence[Row]) -> tuple[Pairs, Pairs]:
    """Agreement beside accuracy kept, for all models; success of the old patterns beside the ASR, for trojaned ones."""
    tried = [row for row in rows if row.get("candidate") and row["agreement"] is not None]
    kept = [(100 * row["agreement"], 100 + row["candidate"]["acc"] - row["before"]["acc"], row) for row in tried]
    gone = [(100 * worst, row["candidate"]["asr"], row) for row in tried
            if row["truth"]["trigger"] and (worst := _old_success(row)) is not None]
    return (_pairs("accuracy kept", "agreement on fresh dummies", "100 - points of accuracy lost", kept),
            _pairs("backdoor gone", "old patterns' success on fresh dummies", "ASR", gone))


def _old_success(row: Row) -> float | None:
    known = [comparison[7] for comparison in row["comparisons"]
             if len(comparison) > 7 and comparison[7] is not None]  # fewer: an early row
    return max(known) if known else None


def _pairs(told: str, proxy: str, truth: str, points: Sequence[tuple[float, float, Row]]) -> Pairs:
    return Pairs(told, proxy, truth, tuple(p for p, _, _ in points), tuple(t for _, t, _ in points),
                 tuple(row["method"] for _, _, row in points), tuple(row["model"] for _, _, row in points))


def drawn(plots: Sequence[Pairs]) -> str:
    """All scatters side by side, each point with its model as a tooltip, colours by method."""
    width, height = len(plots) * (SIZE + MARGIN) + 20, SIZE + 2 * MARGIN + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             f'font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>']
    for number, plot in enumerate(plots):
        parts += _scatter(plot, MARGIN + number * (SIZE + MARGIN), MARGIN / 2)
    used = sorted({method for plot in plots for method in plot.methods})
    for number, method in enumerate(used):
        x = MARGIN + number * 110
        parts.append(f'<circle cx="{x}" cy="{height - 14}" r="4" fill="{_colour(method)}"/>'
                     f'<text x="{x + 9}" y="{height - 10}">{escape(method)}</text>')
    return "".join([*parts, "</svg>\n"])


def _colour(method: str) -> str:
    return COLOURS.get(method, "#000")


def _scatter(plot: Pairs, left: float, top: float) -> Iterator[str]:
    def spread(values: Sequence[float]) -> tuple[float, float]:
        low, high = min(values, default=0.0), max(values, default=100.0)
        room = max(1.0, 0.05 * (high - low))
        return low - room, high + room

    across, up = spread(plot.proxy), spread(plot.truth)
    inner = SIZE - 30
    yield f'<rect x="{left}" y="{top}" width="{inner}" height="{inner}" fill="none" stroke="#999"/>'
    for share in (0.0, 0.5, 1.0):
        yield (f'<text x="{left + share * inner}" y="{top + inner + 15}" text-anchor="middle">'
               f'{across[0] + share * (across[1] - across[0]):.0f}</text>'
               f'<text x="{left - 5}" y="{top + (1 - share) * inner + 4}" text-anchor="end">'
               f'{up[0] + share * (up[1] - up[0]):.0f}</text>')
    yield (f'<text x="{left + inner / 2}" y="{top + inner + 32}" text-anchor="middle">{escape(plot.proxy_name)} (%)'
           f'</text><text x="{left}" y="{top - 7}">{escape(plot.truth_name)} (%)</text>')
    for proxy, truth, method, model in zip(plot.proxy, plot.truth, plot.methods, plot.models, strict=True):
        x = left + inner * (proxy - across[0]) / (across[1] - across[0])
        y = top + inner * (1 - (truth - up[0]) / (up[1] - up[0]))
        yield (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_colour(method)}" fill-opacity="0.7"><title>'
               f'{escape(model)}, {escape(method)}: {proxy:.1f}, {truth:.1f}</title></circle>')
