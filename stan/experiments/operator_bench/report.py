"""The benchmark's tables for the terminal and for `docs/benchmarks.md`, and its JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from stan.experiments.operator_bench.bench import Measurement, Report, Row
from stan.experiments.operator_bench.methods import PASSES
from stan.files import write_text

Cell = Callable[[Row, "Measurement | None"], "list[str]"]


def save_json(report: Report, path: Path) -> None:
    """Write the whole report; a file under the final name is always complete."""
    write_text(path, json.dumps(report.as_dict(), indent=1) + "\n")


def print_tables(report: Report, console: Console) -> None:
    """Times of each pass, then peak extra memory, one column a method."""
    console.print(headline(report))
    for title, which, cell in _sections():
        console.print(f"{which}: {title}", style="bold")
        table = Table(show_lines=True, box=box.SIMPLE)
        table.add_column("case", min_width=11, overflow="fold")
        for method in _methods(report):
            table.add_column(method, justify="right", no_wrap=True)
        for row in report.rows:
            case = f"{row.case.name}\n{row.case.size}\n{row.case.settings()}"
            cells = ["\n".join(parts) for parts in _cells(report, row, which, cell)]
            table.add_row(case, *cells)
        console.print(table)
    for line in disagreements(report):
        console.print(line, style="bold red")


def headline(report: Report) -> str:
    """Device, versions, date, ceilings: what every figure of the run hangs on."""
    machine = report.machine
    device = machine.get("gpu", f"{machine['processor']}, {machine['threads']} threads")
    cuda = f", CUDA {machine['cuda']}" if "cuda" in machine else ""
    return (
        f"{device}; torch {machine['torch']}{cuda}, Python {machine['python']}, {machine['date']}; measured "
        f"ceilings {report.ceilings.flops / 1e9:.0f} GFLOP/s float32, "
        f"{report.ceilings.bandwidth / 1e9:.0f} GB/s copy; load {machine['load']:.1f}"
    )


def disagreements(report: Report, least: float = 0.995) -> list[str]:
    """A line for every method that does not return the same matches as ours."""
    lines = []
    for row in report.rows:
        for m in row.measurements:
            if m.same_matches is not None and m.same_matches < least:
                lines.append(
                    f"{row.case.name}: {m.method} agrees with {row.measurements[0].method} on only "
                    f"{m.same_matches:.2%} of the matches (score error {m.score_error:.1e})"
                )
    return lines


def markdown(report: Report) -> str:
    """The same tables as Markdown."""
    lines = [headline(report), ""]
    header = ["case", "size", "settings", *_methods(report)]
    for title, which, cell in _sections():
        lines += [f"**{which}: {title}**", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for row in report.rows:
            cells = [", ".join(parts) for parts in _cells(report, row, which, cell)]
            lines.append(f"| {' | '.join([row.case.name, row.case.size, row.case.settings(), *cells])} |")
        lines.append("")
    return "\n".join(lines)


def _sections() -> list[tuple[str, str, Cell]]:
    """The tables: title, pass, and what fills a cell."""
    times = [("median time (times the first column's)", which, _time) for which in PASSES]
    sizes = [("peak memory beyond inputs and results", which, _memory) for which in PASSES]
    return [*times, *sizes]


def _methods(report: Report) -> list[str]:
    """Column titles; of a file the name is enough."""
    return [Path(method).stem if method.endswith(".py") else method for method in report.settings.methods]


def _cells(report: Report, row: Row, which: str, cell: Cell) -> list[list[str]]:
    return [cell(row, row.of(method, which)) for method in report.settings.methods]


def _time(row: Row, measured: Measurement | None) -> list[str]:
    """Milliseconds; for the first method ns a query and the share of the ceiling too, else the ratio."""
    if measured is None or measured.milliseconds is None:
        return _why_not(measured)
    parts = [_short(measured.milliseconds) + " ms"]
    if measured.method == row.measurements[0].method:
        each = 1e6 * measured.milliseconds / row.case.queries
        return [*parts, f"{_short(each)} ns/query", f"{measured.ceiling_fraction or 0:.0%} of ceiling"]
    once = ["once"] if measured.problem else []
    return [*parts, f"x{_short(measured.slower or 0)}", *once]


def _memory(row: Row, measured: Measurement | None) -> list[str]:
    """MiB; for the first method the share of the stored score volume too, else the ratio."""
    if measured is None or measured.extra_bytes is None:
        return _why_not(measured)
    parts = [_short(measured.extra_bytes / 2**20) + " MiB"]
    first = row.of(row.measurements[0].method, measured.which)
    if first is measured:
        return [*parts, f"{measured.extra_bytes / row.case.volume_bytes():.1%} of volume"]
    if first is None or not first.extra_bytes:
        return parts
    return [*parts, f"x{_short(measured.extra_bytes / first.extra_bytes)}"]


def _why_not(measured: Measurement | None) -> list[str]:
    return ["-"] if measured is None else [measured.problem or "-"]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
