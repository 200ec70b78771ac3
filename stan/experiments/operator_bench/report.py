"""The benchmark's tables for the terminal and for `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from stan.experiments.machine import machine_words
from stan.experiments.operator_bench.bench import Measurement, Report, Row
from stan.experiments.operator_bench.methods import OURS, PASSES

Cell = Callable[[Row, "Measurement | None"], "list[str]"]


def print_tables(report: Report, console: Console) -> None:
    """Times of each pass, then peak extra memory, one line a method: 80 columns hold it, fewer fold it."""
    console.print(headline(report))
    for title, which, cell in _sections():
        console.print(f"{which}: {title}", style="bold")
        table = Table(box=box.SIMPLE)
        for name in ("case", "method", "measured"):
            table.add_column(name, overflow="fold")
        for row in report.rows:
            cells = [", ".join(parts) for parts in _cells(report, row, which, cell)]
            for n, (method, text) in enumerate(zip(_methods(report), cells)):
                case = f"{row.case.name} {row.case.size}" if n == 0 else row.case.settings() if n == 1 else ""
                table.add_row(case, method, text)
            table.add_section()
        console.print(table)
    for line in against_leanest(report):
        console.print(line)
    for line in disagreements(report):
        console.print(line, style="bold red")


def headline(report: Report) -> str:
    """Device, versions, date, ceilings: what every figure of the run hangs on."""
    return (
        f"{machine_words(report.machine)}; measured ceilings {report.ceilings.flops / 1e9:.0f} GFLOP/s float32, "
        f"{report.ceilings.bandwidth / 1e9:.0f} GB/s copy; load {report.machine['load']:.1f}"
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


def against_leanest(report: Report) -> list[str]:
    """For each row, how the first method compares with the quickest and the smallest that are not ours."""
    lines = []
    for row in report.rows:
        parts = []
        for which in PASSES:
            first, *others = [m for m in row.measurements if m.which == which]
            for what, unit in (("milliseconds", "time"), ("extra_bytes", "memory")):
                mine = getattr(first, what)
                rest = [(getattr(m, what), m.method) for m in others if m.method not in OURS]
                if mine and any(value for value, _ in rest):
                    value, name = min(pair for pair in rest if pair[0])
                    parts.append(f"{which} {unit} x{_short(value / mine)} ({_title(name)})")
        if parts:
            lines.append(f"{row.case.name}: the leanest other way takes {', '.join(parts)}")
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
    lines += [f"- {line}" for line in against_leanest(report)]
    return "\n".join(lines)


def _sections() -> list[tuple[str, str, Cell]]:
    """The tables: title, pass, and what fills a cell."""
    kinds = (
        ("median time (times the first method's)", _time),
        ("peak memory beyond inputs and results", _memory),
    )
    return [(title, which, cell) for title, cell in kinds for which in PASSES]


def _methods(report: Report) -> list[str]:
    return [_title(method) for method in report.settings.methods]


def _title(method: str) -> str:
    """What a method is called in the tables; of a file the name is enough."""
    return Path(method).stem if method.endswith(".py") else method


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
