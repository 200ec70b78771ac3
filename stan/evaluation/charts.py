"""Line charts as inline SVG: they scale, follow the page's light or dark colours, and can be read by pointing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stan.evaluation.page import render

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
    """An SVG element with axes, grid lines and one line a series, as markup; empty if there is nothing to draw.

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

    readings = {  # what the page shows when a place of the chart is pointed at
        "label": x_label,
        "x": [f"{x:g}" for x in xs],
        "at": [round(px(x), 1) for x in xs],
        "lines": [{"name": s.name, "style": s.style, "y": _readings(s, xs)} for s in drawn],
    }
    return render(
        "chart.svg",
        width=WIDTH, height=HEIGHT, left=_LEFT, right=WIDTH - _RIGHT, top=_TOP, bottom=HEIGHT - _BOTTOM,
        title=title, x_label=x_label, y_label=y_label, marks=marks, readings=readings,
        x_ticks=[(px(tick), _number(tick)) for tick in x_ticks],
        y_ticks=[(py(tick), _number(tick)) for tick in y_ticks],
        lines=[(line.style, [(px(x), py(y)) for x, y in line.finite]) for line in drawn],
    )  # fmt: skip


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose low and high."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _readings(series: Series, xs: Sequence[float]) -> list[str]:
    values = dict(series.finite)
    return [f"{values[x]:.2f}" if x in values else "" for x in xs]


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
