"""A picture of two score distributions with the threshold between them, as an SVG for the docs."""

import math
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, TOP = 720, 300, 20, 46


def picture(clean: Sequence[float], trojaned: Sequence[float], *, least: float = 0.1, most: float = 30.0) -> str:
    """One dot for each model, clean above and trojaned below, on a logarithmic axis of scores; 1 is the threshold."""
    def x(score: float) -> float:
        inside = min(max(score, least), most)
        return LEFT + (WIDTH - 2 * LEFT) * math.log(inside / least) / math.log(most / least)

    shapes = []
    for name, scores, row, colour in (("clean", clean, 0, "#2b6cb0"), ("trojaned", trojaned, 1, "#c53030")):
        top = TOP + row * 115
        shapes.append(f'<text x="{LEFT}" y="{top - 8}" font-weight="bold" fill="{colour}">{name}: {len(scores)} '
                      f'networks, {sum(score >= 1 for score in scores)} accused</text>')
        heights: dict[int, int] = {}
        for score in sorted(scores):
            column = round(x(score) / 7)
            heights[column] = heights.get(column, 0) + 1
            shapes.append(f'<circle cx="{7 * column}" cy="{top + 96 - 6 * min(heights[column], 15)}" r="2.8" '
                          f'fill="{colour}" fill-opacity="0.75"/>')
        shapes.append(f'<path d="M{LEFT} {top + 96.5}H{WIDTH - LEFT}" stroke="#888"/>')
    shapes.append(f'<path d="M{x(1):.1f} {TOP - 14}V{TOP + 212}" stroke="#333" stroke-dasharray="5 4"/>')
    shapes.append(f'<text x="{x(1) + 5:.1f}" y="{TOP - 18}" fill="#333">threshold: 2 % of the calibration</text>')
    for tick in (0.1, 0.3, 1, 3, 10, 30):
        shapes.append(f'<text x="{x(tick):.1f}" y="{TOP + 230}" text-anchor="middle" '
                      f'fill="#555">{tick:g}</text>')
    shapes.append(f'<text x="{WIDTH / 2}" y="{TOP + 248}" text-anchor="middle" fill="#555">score '
                  '(logarithmic; the ends hold what lies beyond)</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="13"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(shapes)}</svg>\n')
