"""The reports of an evaluation, for people: a self-contained HTML page, and Markdown; and all files of its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan.errors import DataError
from stan.evaluation.charts import Series, line_chart
from stan.evaluation.facts import facts, lead
from stan.evaluation.gallery import Gallery
from stan.evaluation.page import render
from stan.evaluation.published import SIGMAS, comparable
from stan.evaluation.results import Results, count
from stan.evaluation.tables import all_figures, by_level, by_sequence, of_sequence, style
from stan.files import write_text
from stan.metrics import METRICS, Metric


def write_results(results: Results, folder: Path, others: Mapping[str, str]) -> None:
    """Write results.csv, results.json, report.md, report.html and `others` by name, each whole or not at all."""
    files = {
        **others,
        "results.csv": results.to_csv(),
        "results.json": json.dumps(results.to_dict(), indent=1, allow_nan=False) + "\n",
        "report.md": markdown(results),
        "report.html": html(results),
    }
    for name, text in files.items():
        try:
            write_text(folder / name, text)
        except IsADirectoryError:
            raise DataError(f"{folder / name} is a folder where a result goes: remove it") from None


def markdown(results: Results) -> str:
    """Tables and every setting, for a repository or a terminal."""
    return render("report.md", **_common(results))


def html(results: Results) -> str:
    """The page: tables, charts, pictures, settings. It asks for nothing from anywhere, and a policy forbids it to."""
    labels = [method["name"] for method in results.methods if method["name"] != "noisy"]
    error = "error of {}" if len(labels) > 1 else "error"
    return render(
        "report.html",
        **_common(results),
        gallery=Gallery(results),
        shown=f"{results.sigmas[len(results.sigmas) // 2]:g}",  # the middle level, of which there are pictures
        charts=[_over_sigma(results, metric) for metric in results.metrics("always")],
        videos=[
            ("noisy", results.input.partition(" ")[0]),
            *((f"m|{label}", label) for label in labels),
            ("clean", "clean"),
        ],
        errors=[(f"e|{label}", error.format(label)) for label in labels],
        sequences=[_sequence(results, name) for name in results.names],
    )


def _common(results: Results) -> dict[str, Any]:
    """What both reports show."""
    return {
        "results": results,
        "lead": lead(results),
        "means": by_level(results),
        "figures": all_figures(results, "always", "tables", "full"),
        "levels": [(f"{sigma:g}", by_sequence(results, sigma)) for sigma in results.sigmas],
        "facts": facts(results),
        "definitions": results.metrics("always", "tables", "full"),
    }


def _over_sigma(results: Results, metric: Metric) -> tuple[str, list[Series], str]:
    """The chart of a metric over the noise level, with published curves where they may be compared."""

    def series(name: str, kind: str, method: str | None, key: str) -> Series:
        rows = [(sigma, results.mean(method, sigma).get(key)) for sigma in results.sigmas]
        return Series(name, kind, [(sigma, value) for sigma, value in rows if value is not None])

    drawn = [series(m["name"], style(i), m["name"], metric.name) for i, m in enumerate(results.methods)]
    noisy = [
        series(results.input, "noisy", None, name) for name in [f"{metric.name}_noisy"] if name in METRICS
    ]
    published = [
        Series(f"{method.name} (published)", "published", list(zip(SIGMAS, values)))
        for method, values in (comparable(results.settings) if metric.name == "psnr" else [])
    ]
    label = metric.title
    chart = line_chart(
        [*published, *noisy, *drawn], x_label="sigma", y_label=label, marks=True, title=f"{label} over sigma"
    )
    return label, [*drawn, *noisy, *published[:1]], chart


def _sequence(results: Results, name: str) -> dict[str, Any]:
    """One sequence: at each noise level PSNR over frames and its figures."""
    rows = {(row["sigma"], row["method"]): row for row in results.sequences if row["sequence"] == name}
    first = next(iter(rows.values()))
    levels = []
    for sigma in results.sigmas:
        series = [
            Series(m["name"], style(i), list(enumerate(rows[sigma, m["name"]]["psnr_frames"])))
            for i, m in enumerate(results.methods)
        ]
        title = f"PSNR of {name} over frames"
        chart = line_chart(series, x_label="frame", y_label="PSNR, dB", marks=False, title=title)
        levels.append((f"{sigma:g}", series, chart, of_sequence(results, name, sigma)))
    size = f"{count(first['frames'], 'frame')}, {first['width']}×{first['height']}"
    return {"name": name, "size": size, "levels": levels}
