"""The outcome of an evaluation: rows, means, and the files that hold them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from stan.evaluation import provenance
from stan.evaluation.measure import mean
from stan.evaluation.parts import Parts

FIGURES = (
    "psnr",
    "psnr_rounded",
    "ssim",
    "strred",
    "strred_unit",
    "flicker",
    "psnr_noisy",
    "ssim_noisy",
    "strred_noisy",
    "flicker_noisy",
    "seconds_per_frame",
    "memory_mib",
)
"""What is averaged over sequences (memory: the largest)."""
_COLUMNS = ("method", "sequence", "sigma", "frames", "height", "width", *FIGURES)


@dataclass
class Results:
    """What an evaluation found.

    Attributes:
        settings: everything that can move a figure; see `Plan.settings`.
        methods: for each method its `name`, `kind`, what the user wrote (`checkpoint`) and its own account.
        sequences: a row for each method, sequence and noise level: `method`, `sequence`, `sigma`, `frames`,
            `FIGURES`, figures of each frame (`psnr_frames`, ...), hashes of the clean and the noisy video,
            and how it was computed.
        means: a row for each method and noise level: `method`, `sigma`, the mean of each figure over
            sequences, and the number of `sequences` and `frames`.
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
    def names(self) -> list[str]:
        """The sequences, in order."""
        return list(dict.fromkeys(row["sequence"] for row in self.sequences))

    def mean(self, method: str | None, sigma: float) -> dict[str, Any]:
        """The row of means of a method (None: any, for figures of the noisy input) at a noise level."""
        return next(row for row in self.means if row["sigma"] == sigma and method in (None, row["method"]))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data that JSON can hold: figures that are not finite become None."""
        return _plain(
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

    def to_csv(self) -> str:
        """A row for each method, sequence and noise level, each with what it was made by."""
        code = provenance.describe(self.settings["code"])
        hashes = {method["name"]: method.get("sha256", "") for method in self.methods}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, "protocol", "seed", "noise", "checkpoint_sha256", "code"])
        for row in self.sequences:
            writer.writerow(
                [
                    *(_cell(row[name]) for name in _COLUMNS),
                    self.title,
                    self.settings["seed"],
                    self.settings["noise"]["kind"],
                    hashes[row["method"]],
                    code,
                ]
            )
        return text.getvalue()

    def table(self) -> Table:
        """The means, for the terminal; the best of several methods stands out."""
        number = count(self.settings["data"]["sequences"], "sequence")
        table = Table(title=f"{self.title}, {number}", title_justify="left")
        table.add_column("sigma", justify="right")
        if len(self.methods) > 1:
            table.add_column("method", overflow="fold")
        heads = {
            "psnr": "PSNR",
            "psnr_noisy": "noisy",
            "ssim": "SSIM",
            "strred": "ST-RRED",
            "flicker": "flicker",
        }
        for head in (*heads.values(), "s/frame"):
            table.add_column(head, justify="right")
        last = None
        for row in self.means:
            best = best_of(self.means, row["sigma"])
            cells = [f"{row['sigma']:g}" if row["sigma"] != last else ""]
            cells += [row["method"]] if len(self.methods) > 1 else []
            for name in (*heads, "seconds_per_frame"):
                text = show(name, row[name])
                outstanding = len(self.methods) > 1 and best.get(name) == row[name]
                cells.append(f"[bold]{text}[/bold]" if outstanding else text)
            if last is not None and row["sigma"] != last:
                table.add_section()
            last = row["sigma"]
            table.add_row(*cells)
        return table


def means(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean over sequences, for each noise level and method, in the order of the rows."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["sigma"], row["method"]), []).append(row)
    levels = list(dict.fromkeys(sigma for sigma, _ in groups))
    result = []
    for (sigma, method), group in sorted(groups.items(), key=lambda item: levels.index(item[0][0])):
        found: dict[str, Any] = {"method": method, "sigma": sigma}
        for name in FIGURES:
            values = [row[name] for row in group]
            found[name] = max(values) if name == "memory_mib" else mean(values)
        found["sequences"] = len(group)
        found["frames"] = sum(row["frames"] for row in group)
        result.append(found)
    return result


_LOWER = ("strred", "flicker")


def best_of(rows: Iterable[Mapping[str, Any]], sigma: float) -> dict[str, float]:
    """The best value of each figure among the methods at a noise level."""
    listed = [row for row in rows if row["sigma"] == sigma]
    best = {}
    for name in ("psnr", "psnr_rounded", "ssim", *_LOWER):
        values = [row[name] for row in listed if not math.isnan(row[name])]
        if values:
            best[name] = min(values) if name in _LOWER else max(values)
    return best


def show(name: str, value: float) -> str:
    """A figure as a person reads it, with the digits that mean something."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if name.startswith("psnr"):
        return f"{value:.2f}"
    if name.startswith("ssim"):
        return f"{value:.4f}"
    if name.startswith("strred_unit"):
        return f"{value:.4f}"
    if name.startswith("strred"):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    if name.startswith("flicker"):
        return f"{value:.2f}"
    if name == "memory_mib":
        return f"{value:.0f}"
    return f"{value:.3g}"


def count(number: int, word: str) -> str:
    """A number of things: ``1,234 frames``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """Plain data with floats of at most nine digits, and None for those that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
