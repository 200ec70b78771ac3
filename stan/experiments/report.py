"""What an experiment writes: report.md, results.json, rows.csv and charts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stan.config import value_text
from stan.device import choose
from stan.evaluation.provenance import code, describe, device_name, versions
from stan.evaluation.results import csv_text, plain
from stan.experiments.frame import Report, Row, Table
from stan.experiments.plot import write_chart
from stan.experiments.run import Plan
from stan.files import write_text


def write_report(plan: Plan, rows: list[Row], report: Report) -> list[Path]:
    """Write the results of an experiment into its folder; gives the files."""
    folder = plan.folder
    charts = {
        name: chart.title
        for name, chart in report.charts.items()
        if write_chart(folder / f"{name}.png", chart)
    }
    columns = list(dict.fromkeys(name for row in rows for name in row))
    written = {
        "report.md": _markdown(plan, rows, report, charts),
        "results.json": json.dumps(_record(plan, rows, report), indent=1) + "\n",
        "rows.csv": csv_text([columns, *([row.get(name) for name in columns] for row in rows)]),
    }
    for name, text in written.items():
        write_text(folder / name, text)
    return [folder / name for name in (*written, *(f"{name}.png" for name in charts))]


def _markdown(plan: Plan, rows: list[Row], report: Report, charts: dict[str, str]) -> str:
    parts = [f"# {plan.config.title}", plan.config.question]
    parts += ["## What came out", *[f"- {text}" for text in report.conclusions]]
    for table in report.tables:
        parts += [f"## {table.heading}", table_text(table)]
    if charts:
        parts += ["## Pictures", *[f"![{title}]({name}.png)" for name, title in charts.items()]]
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts += [
        "## What was run",
        f"`{plan.command}`",
        f"{len(rows)} rows, `rows.csv`. STAN {describe(code())}; {made}; {device_name(choose('cpu'))}.",
        *report.notes,
        "\n".join(["```yaml", *(f"{k}: {value_text(v)}" for k, v in plan.settings.items()), "```"]),
    ]
    text = "\n\n".join(part for part in parts if part)
    return text.replace("\n\n- ", "\n- ").replace("What came out\n- ", "What came out\n\n- ") + "\n"


def table_text(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _record(plan: Plan, rows: list[Row], report: Report) -> dict[str, Any]:
    return plain(
        {
            "format": 1,
            "experiment": plan.name,
            "title": plan.config.title,
            "question": plan.config.question,
            "command": plan.command,
            "settings": plan.settings,
            "code": code(),
            "versions": versions(),
            "conclusions": report.conclusions,
            "notes": report.notes,
            "tables": [vars(table) for table in report.tables],
            "rows": rows,
        },
        digits=17,
    )
