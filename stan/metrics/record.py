"""What there is to know about a metric, in one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]
"""(clean, output), both (t, 3, H, W) float, to one or more figures for each frame: the first axis counts."""


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of nothing, and infinite if a value is."""
    listed = list(values)
    if not listed or any(map(math.isnan, listed)):
        return math.nan
    return math.fsum(listed) / len(listed) if all(map(math.isfinite, listed)) else math.inf


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation. Measuring, tables, files and the documentation follow from it.

    Attributes:
        name: column of results.csv and key of results.json.
        heading: of a column that people read.
        definition: what it is, for the report and docs/evaluation.md; Markdown without links.
        format: how a person reads a value: a format specification, or a function of it.
        unit: of the values; none for most.
        better: which of two values is the better one; None where there is no telling.
        function: measures a piece of a video. One function may serve several metrics: it is then called once.
            None: the evaluation itself supplies the value.
        per: what the function is called for: "frame": any even number of frames from an even one on; "step":
            the same, with the frame before them, for changes from frame to frame; "clip": the whole video.
        reduce: the figure of a video from the function's values, concatenated; None is their mean.
        of: "output": the denoised video is measured; "noisy": its input, once for all methods; "run": the work.
        shown: where it stands, besides the files: "always" (in charts and the smallest tables too), in "tables",
            in "full" tables of everything, or in the "files" alone.
        frames: whether results.json keeps the values of every frame, as NAME_frames.
        smallest: smaller sides of a frame, in pixels, give no value.
        over: makes the figure of several sequences out of theirs.
    """

    name: str
    heading: str
    definition: str
    format: str | Callable[[float], str]
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    function: Function | None = None
    per: Literal["frame", "step", "clip"] = "frame"
    reduce: Callable[[Tensor], float] | None = None
    of: Literal["output", "noisy", "run"] = "output"
    shown: Literal["always", "tables", "full", "files"] = "full"
    frames: bool = False
    smallest: int = 1
    over: Callable[[Iterable[float]], float] = mean

    @property
    def title(self) -> str:
        """Heading and unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    def show(self, value: float | None) -> str:
        """A value as a person reads it; nothing where it does not apply."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
        return format(value, self.format) if isinstance(self.format, str) else self.format(value)

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of some methods' values; None where none stands out."""
        known = [v for v in values if v is not None and not math.isnan(v)]
        if self.better is None or not known:
            return None
        return max(known) if self.better == "higher" else min(known)
