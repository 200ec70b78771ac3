"""Charts as PNG files: lines, points and levels, drawn large and shrunk, which smooths them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stan.evaluation.charts import ticks
from stan.files import replacing

WIDTH, HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 210, 56, 54
_ROW = 16  # pixels between rows of words under the axis
_FINE = 3  # drawn that many times larger
_INK, _SOFT, _GRID, _PAPER = "#20242a", "#69707a", "#e4e6ea", "#ffffff"
COLOURS = ("#0b6fc2", "#d1570c", "#1f9254", "#9440b8", "#c4224b", "#7a6a12", "#0d8f96", "#50565f")


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: in the legend.
        points: (x, y); those that are not finite are left out.
        spread: of each point, half the height of its bar; empty: none.
        joined: draw the line; else only the points.
        dashed: draw it in dashes.
        colour: number of its colour; None: the next one.
    """

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = ()
    joined: bool = True
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """A picture of some series.

    Attributes:
        title: what is shown.
        x_label: name and unit of the horizontal axis.
        y_label: the same of the vertical one.
        lines: the series.
        levels: name -> height of a horizontal line across the chart.
        x_log: a logarithmic horizontal axis; all x are above zero then.
        y_log: the same of the vertical one.
        labels: words instead of numbers under x = 0, 1, 2, ...
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: tuple[tuple[str, float], ...] = ()
    x_log: bool = False
    y_log: bool = False
    labels: tuple[str, ...] = ()


def write_chart(path: Path, chart: Chart) -> bool:
    """Write a chart as a PNG file; False, and no file, if it has no point to draw."""
    drawn = [line for line in chart.lines if _finite(line, chart)]
    if not drawn:
        return False
    canvas = _Canvas(chart, drawn)
    canvas.axes()
    for number, line in enumerate(drawn):
        colour = COLOURS[(number if line.colour is None else line.colour) % len(COLOURS)]
        canvas.line(number, line, colour)
    picture = canvas.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "PNG")
    with replacing(path) as file:
        file.write(data.getvalue())
    return True


def _finite(line: Line, chart: Chart) -> list[tuple[float, float, float]]:
    """Points with their spread that can be drawn."""
    spread = [*line.spread, *[0.0] * (len(line.points) - len(line.spread))]
    return [
        (x, y, s)
        for (x, y), s in zip(line.points, spread)
        if math.isfinite(x + y) and (x > 0 or not chart.x_log) and (y > 0 or not chart.y_log)
    ]


class _Axis:
    """Where values stand between two places of the picture, and which of them are named."""

    def __init__(self, values: list[float], log: bool, start: float, stop: float, whole: bool) -> None:
        self.log, self.start, self.stop = log, start, stop
        named = sorted(set(values))
        if log:
            low, high = math.floor(math.log10(named[0])), math.ceil(math.log10(named[-1]) + 1e-9)
            decades = [f * 10.0**p for p in range(low, high + 1) for f in (1, 2, 5)]
            self.ticks = [d for d in decades if named[0] / 2.01 < d < named[-1] * 2.01] or named
        else:
            self.ticks = ticks(named[0], named[-1])
        if whole and len(named) <= 9:  # the measured places themselves
            self.ticks = named
        self.low, self.high = min(self.ticks[0], named[0]), max(self.ticks[-1], named[-1])
        if self.low == self.high:
            self.low, self.high = (self.low / 2, self.high * 2) if log else (self.low - 1, self.high + 1)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


class _Canvas:
    def __init__(self, chart: Chart, drawn: Sequence[Line]) -> None:
        self.chart = chart
        self.image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), _PAPER)
        self.pen = ImageDraw.Draw(self.image)
        points = [point for line in drawn for point in _finite(line, chart)]
        heights = [
            y + sign * s for _, y, s in points for sign in (-1, 1) if not chart.y_log or y + sign * s > 0
        ]
        heights += [level for _, level in chart.levels]
        across = [x for x, _, _ in points]
        if chart.labels:
            across += [-0.4, len(chart.labels) - 0.6]
        joined = all(line.joined for line in drawn)
        self.x = _Axis(across, chart.x_log, _LEFT, WIDTH - _RIGHT, joined and not chart.labels)
        self.rows = self._rows()
        self.bottom = HEIGHT - _BOTTOM - _ROW * (self.rows - 1)
        self.y = _Axis(heights, chart.y_log, self.bottom, _TOP, False)
        if chart.labels:
            self.x.ticks = [float(i) for i in range(len(chart.labels))]

    def _rows(self) -> int:
        """Rows that words under the axis need, so that none touches the next of its row."""
        words = self.chart.labels
        if len(words) < 2:
            return 1
        font = ImageFont.load_default(size=12)
        widest = max(font.getlength(word) for word in words) + 8
        return min(len(words), math.ceil(widest / (self.x.place(1) - self.x.place(0))))

    def axes(self) -> None:
        """Title, grid, numbers, names of the axes, levels."""
        chart = self.chart
        self.text((_LEFT, 20), chart.title, 15, _INK, "lm")
        for value in self.y.ticks:
            y = self.y.place(value)
            self.segment((_LEFT, y), (WIDTH - _RIGHT, y), _SOFT if value == 0 else _GRID, 1)
            self.text((_LEFT - 8, y), f"{value:g}", 12, _SOFT, "rm")
        for value in self.x.ticks:
            x = self.x.place(value)
            self.segment((x, self.bottom), (x, self.bottom + 4), _SOFT, 1)
            word = chart.labels[int(value)] if chart.labels else f"{value:g}"
            row = int(value) % self.rows if chart.labels else 0
            self.text((x, self.bottom + 14 + _ROW * row), word, 12, _SOFT, "mm")
        self.segment((_LEFT, self.bottom), (WIDTH - _RIGHT, self.bottom), _SOFT, 1)
        self.text(((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 16), chart.x_label, 13, _INK, "mm")
        self.text((12, _TOP - 18), chart.y_label, 13, _INK, "lm")
        for name, level in chart.levels:
            y = self.y.place(level)
            self.dashes([(_LEFT, y), (WIDTH - _RIGHT, y)], _INK)
            self.text((WIDTH - _RIGHT + 6, y), name, 12, _INK, "lm")

    def line(self, number: int, line: Line, colour: str) -> None:
        """A series and its name in the legend."""
        places = []
        for x, y, spread in _finite(line, self.chart):
            place = (self.x.place(x), self.y.place(y))
            places.append(place)
            if spread:
                low, high = (self.y.place(y + sign * spread) for sign in (-1, 1))
                self.segment((place[0], low), (place[0], high), colour, 1.6)
                for end in (low, high):
                    self.segment((place[0] - 4, end), (place[0] + 4, end), colour, 1.6)
        if line.joined and line.dashed:
            self.dashes(places, colour)
        elif line.joined:
            for start, stop in pairwise(places):
                self.segment(start, stop, colour, 2)
        for place in places:
            self.dot(place, colour, 3.4)
        beside = self.bottom - 8 - 18 * number if self.chart.levels else _TOP + 8 + 18 * number
        sample = [(WIDTH - _RIGHT + 12.0, float(beside)), (WIDTH - _RIGHT + 30.0, float(beside))]
        if line.dashed:
            self.dashes(sample, colour, 3.5)
        elif line.joined:
            self.segment(sample[0], sample[1], colour, 2)
        self.dot((WIDTH - _RIGHT + 21, beside), colour, 3.4)
        self.text((WIDTH - _RIGHT + 36, beside), line.name, 12, _INK, "lm")

    def text(self, at: tuple[float, float], words: str, size: int, colour: str, anchor: str) -> None:
        font = ImageFont.load_default(size=size * _FINE)
        self.pen.text((at[0] * _FINE, at[1] * _FINE), words, fill=colour, font=font, anchor=anchor)

    def segment(self, a: tuple[float, float], b: tuple[float, float], colour: str, width: float) -> None:
        ends = [(x * _FINE, y * _FINE) for x, y in (a, b)]
        self.pen.line(ends, fill=colour, width=max(1, round(width * _FINE)))

    def dot(self, at: tuple[float, float], colour: str, radius: float) -> None:
        x, y, r = at[0] * _FINE, at[1] * _FINE, radius * _FINE
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def dashes(self, places: Sequence[tuple[float, float]], colour: str, dash: float = 6) -> None:
        for (ax, ay), (bx, by) in pairwise(places):
            count = max(1, int(math.hypot(bx - ax, by - ay) / dash))
            for i in range(0, count, 2):
                one, two = i / count, min((i + 1) / count, 1)
                start = ax + (bx - ax) * one, ay + (by - ay) * one
                self.segment(start, (ax + (bx - ax) * two, ay + (by - ay) * two), colour, 1.4)
