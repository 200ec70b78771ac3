"""Line charts as inline SVG: they scale, follow the page's light or dark colours, and can be read by
pointing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 26, 34


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: shown in the legend and when pointed at.
        style: CSS class of the line, which gives its colour: ``s0`` ... ``s7``, ``noisy``, ``published``.
        points: (x, y) pairs; values that are not finite are left out.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, marks: bool, title: str) -> str:
    """An SVG element with axes, grid lines and one line a series; empty text if there is nothing to draw.

    Args:
        series: the lines, drawn in their order.
        x_label: name and unit under the horizontal axis.
        y_label: name and unit above the vertical axis.
        marks: draw a dot at each point.
        title: what the chart shows, for people who do not see it.
    """
    drawn = [line for line in series if line.finite]
    if not drawn:
        return ""
    xs = sorted({x for line in drawn for x, _ in line.finite})
    ys = [y for line in drawn for _, y in line.finite]
    x_low, x_high = (xs[0], xs[-1]) if len(xs) > 1 else (xs[0] - 1, xs[0] + 1)
    y_ticks = ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    x_ticks = xs if len(xs) <= 6 else [t for t in ticks(x_low, x_high) if x_low <= t <= x_high]

    def px(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}" '
        f'data-chart="{escape(json.dumps(_readings(drawn, xs, px, x_label)), quote=True)}">'
    ]
    for tick in y_ticks:
        y = py(tick)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        out.append(
            f'<text class="tick" x="{px(tick):.1f}" y="{HEIGHT - _BOTTOM + 15}" '
            f'text-anchor="middle">{_number(tick)}</text>'
        )
    out.append(
        f'<text class="label" x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 4}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    out.append(f'<text class="label" x="4" y="12">{escape(y_label)}</text>')
    for line in drawn:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line.finite)
        out.append(f'<polyline class="{line.style}" points="{path}"/>')
        if marks or len(line.finite) == 1:
            out += [
                f'<circle class="{line.style}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"/>'
                for x, y in line.finite
            ]
    out.append(f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="0" x2="0"/></svg>')
    return "".join(out)


def legend(series: Sequence[Series]) -> str:
    """The names of the lines with their colours, as HTML."""
    items = "".join(
        '<li><svg viewBox="0 0 22 8" aria-hidden="true">'
        f'<polyline class="{line.style}" points="0,4 22,4"/></svg>'
        f"{escape(line.name)}</li>"
        for line in series
        if line.finite
    )
    return f'<ul class="legend">{items}</ul>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose low and high."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _readings(series: Sequence[Series], xs: Sequence[float], px: object, x_label: str) -> dict[str, object]:
    """What the page shows when a place of the chart is pointed at."""
    assert callable(px)
    return {
        "label": x_label,
        "x": [f"{x:g}" for x in xs],
        "at": [round(px(x), 1) for x in xs],
        "lines": [
            {"name": s.name, "style": s.style, "y": [_reading(dict(s.finite).get(x)) for x in xs]}
            for s in series
        ],
    }


def _reading(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
