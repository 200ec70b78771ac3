"""The files of an evaluation: tables for programs and people, and the page to look at."""

from __future__ import annotations

import json
from pathlib import Path

from stan.evaluation.markdown import markdown
from stan.evaluation.report import html
from stan.evaluation.results import Results
from stan.files import write_text


def write_results(results: Results, folder: Path) -> None:
    """Write results.csv, results.json, report.md and report.html, each whole or not at all."""
    write_text(folder / "results.csv", results.to_csv())
    write_text(folder / "results.json", json.dumps(results.to_dict(), indent=1, allow_nan=False) + "\n")
    write_text(folder / "report.md", markdown(results))
    write_text(folder / "report.html", html(results))
