"""The outcome of an evaluation: rows, means, and the tables for programs that hold them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stan.evaluation import provenance
from stan.evaluation.parts import Parts
from stan.metrics import METRICS, Metric
from stan.metrics.table import in_files

_COLUMNS = ("method", "sequence", "sigma", "frames", "height", "width")


@dataclass
class Results:
    """What an evaluation found.

    Attributes:
        settings: everything that can move a figure; see `Plan.settings`.
        methods: for each method its `name`, `kind`, what the user wrote (`checkpoint`) and its own account.
        sequences: a row for each method, sequence and noise level: `method`, `sequence`, `sigma`, `frames`, each
            metric that applies by its name, figures of each frame (`psnr_frames`, ...), hashes of the clean and
            the noisy video, and how it was computed.
        means: a row for each method and noise level: `method`, `sigma`, each metric over all sequences, and the
            number of `sequences` and `frames`.
        notes: what a reader of the figures should know, one line each.
        pieces: where each row's record lies, by (method, sequence, sigma).
        parts: the folder of finished pieces, with the report's pictures.
    """

    settings: dict[str, Any]
    methods: list[dict[str, Any]]
    sequences: list[dict[str, Any]]
    means: list[dict[str, Any]] = field(init=False)
    notes: list[str]
    pieces: dict[tuple[str, str, float], Path]
    parts: Parts

    def __post_init__(self) -> None:
        self.means = means(self.sequences)

    @property
    def checkpoint(self) -> Any:
        """What was evaluated, as the user wrote it: one word, or a list."""
        words = [method["checkpoint"] for method in self.methods]
        return words[0] if len(words) == 1 else words

    @property
    def title(self) -> str:
        """The protocol's name, marked when something is not as it says."""
        name = str(self.settings["protocol"])
        return f"{name} (modified)" if self.settings["departures"] else name

    @property
    def sigmas(self) -> list[float]:
        """The noise levels, in order."""
        return list(dict.fromkeys(row["sigma"] for row in self.means))

    @property
    def input(self) -> str:
        """What the methods got is called: "noisy input", "blurred input"."""
        return str(self.settings["input"])

    @property
    def names(self) -> list[str]:
        """The sequences, in order."""
        return list(dict.fromkeys(row["sequence"] for row in self.sequences))

    def mean(self, method: str | None, sigma: float) -> dict[str, Any]:
        """The row of means of a method (None: any, for figures of the noisy input) at a noise level."""
        return next(row for row in self.means if row["sigma"] == sigma and method in (None, row["method"]))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that JSON can hold: figures that are not finite become None."""
        return plain(
            {
                "format": 1,
                "protocol": self.settings["protocol"],
                "modified": bool(self.settings["departures"]),
                "seed": self.settings["seed"],
                "checkpoint": self.checkpoint,
                "notes": self.notes,
                "settings": self.settings,
                "methods": self.methods,
                "means": self.means,
                "sequences": self.sequences,
            }
        )

    def metrics(self, *shown: str) -> list[Metric]:
        """The metrics that there are figures of: those that are `shown` so, or all in the order of the files."""
        chosen = [m for m in METRICS.values() if m.shown in shown] if shown else in_files()
        return [metric for metric in chosen if any(metric.name in row for row in self.means)]

    def to_csv(self) -> str:
        """A row for each method, sequence and noise level, each with what it was made by."""
        code = provenance.describe(self.settings["code"])
        hashes = {method["name"]: method.get("sha256", "") for method in self.methods}
        columns = [*_COLUMNS, *(metric.name for metric in self.metrics())]
        lines: list[list[Any]] = [[*columns, "protocol", "seed", "noise", "checkpoint_sha256", "code"]]
        for row in self.sequences:
            made_by = self.settings["seed"], self.settings["noise"]["kind"], hashes[row["method"]], code
            lines.append([*(row.get(name) for name in columns), self.title, *made_by])
        return csv_text(lines)


def means(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each metric over the sequences, for each noise level and method, in the order of the rows."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["sigma"], row["method"]), []).append(row)
    levels = list(dict.fromkeys(sigma for sigma, _ in groups))
    result = []
    for (sigma, method), group in sorted(groups.items(), key=lambda item: levels.index(item[0][0])):
        found: dict[str, Any] = {"method": method, "sigma": sigma}
        for metric in in_files():
            if all(metric.name in row for row in group):
                found[metric.name] = metric.over([row[metric.name] for row in group])
        found["sequences"] = len(group)
        found["frames"] = sum(row["frames"] for row in group)
        result.append(found)
    return result


def count(number: int, word: str) -> str:
    """A number of things: ``1,234 frames``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Lines as CSV: floats with six digits, lists and tables as JSON, None as nothing."""

    def cell(value: Any) -> Any:
        if isinstance(value, float):
            return f"{value:.6g}"
        return json.dumps(value) if isinstance(value, (list, dict)) else value

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cell, line) for line in lines)
    return text.getvalue()


def plain(value: Any, digits: int = 9) -> Any:
    """Plain data with floats of at most so many digits (17 are all), and None for those that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
