"""Write the table of metrics in docs/evaluation.md from the records: python scripts/metrics_page.py."""

from __future__ import annotations

from pathlib import Path

from stan.metrics.table import in_files

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"
BEGIN, END = "<!-- metrics: scripts/metrics_page.py -->\n", "<!-- end of metrics -->\n"


def filled() -> str:
    """The page with the table as it should be."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    rows = [f"| `{metric.name}` | {metric.definition} |\n" for metric in in_files()]
    return "".join([head, BEGIN, "| figure | definition |\n|---|---|\n", *rows, END, tail])


if __name__ == "__main__":
    PAGE.write_text(filled())
    print(PAGE)
