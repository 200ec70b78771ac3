"""The training benchmark's tables for the terminal."""

from __future__ import annotations

import statistics

from rich import box
from rich.console import Console
from rich.table import Table

from stan.experiments.machine import machine_words
from stan.experiments.training_bench.bench import Report, Row


def print_tables(report: Report, console: Console, operations: int = 0) -> None:
    """The speed of each network side by side, then the parts of each one's step and so many costliest operations."""
    console.print(headline(report), highlight=False)
    speed = Table(box=box.SIMPLE)
    speed.add_column("training", overflow="fold")
    for row in report.rows:
        speed.add_column(_title(report, row), justify="right", overflow="fold")
    for name, *cells in zip(*[_figures(row) for row in report.rows]):
        speed.add_row(name[0], *(value for _, value in [name, *cells]))
    console.print(speed)
    for row in report.rows:
        console.print(_parts(report, row))
        if operations:
            console.print(_operations(row, operations))


def headline(report: Report) -> str:
    """Device, versions, date: what every figure of the run hangs on."""
    machine, settings = report.machine, report.settings
    data = "the configuration's data" if settings.own_data else "synthetic clips"
    steps = f"{settings.steps} steps on {data}, then {settings.profiled} under the profiler"
    return f"{machine_words(machine)}, load {machine['load']:.1f}; {steps}"


def _title(report: Report, row: Row) -> str:
    return row.model if report.settings.operators == (None,) else f"{row.model} {row.operator}"


def _figures(row: Row) -> list[tuple[str, str]]:
    data, options = row.config["data"], row.config["trainer"]
    many = f"{options['accumulate']} x " if options["accumulate"] > 1 else ""
    clips = f"{many}{data['batch_size']} of {data['frames']}x{data['crop']}x{data['crop']}"
    peak = "not known" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f} MiB"
    return [
        ("parameters", f"{row.parameters:,}"),
        ("clips a step", clips),
        ("device, precision", f"{row.device}, {options['precision']}"),
        ("operator", row.operator),
        ("steps/s", f"{row.steps_per_second:.3g}"),
        ("samples/s", f"{row.samples_per_second:.3g}"),
        ("median step", f"{1000 * statistics.median(row.step_seconds):.4g} ms"),
        ("processor time a step", f"{1000 * row.cpu_seconds_per_step:.4g} ms"),
        ("waiting for data", f"{row.data_wait:.1%}"),
        *(
            (
                f"loader alone, {workers} worker{'s' * (workers != '1')}",
                f"{rate:.4g} samples/s, x{row.loader_times[workers]:.3g}",
            )
            for workers, rate in row.loader.items()
        ),
        ("peak memory", f"{peak} of the {'GPU' if row.device.startswith('cuda') else 'process'}"),
    ]


def _parts(report: Report, row: Row) -> Table:
    busy = f", GPU busy {row.device_busy:.0%}" if row.device_busy else ""
    table = Table(title=f"{_title(report, row)}: a step{busy}", title_justify="left", box=box.SIMPLE)
    table.add_column("part")
    for name in ("share", "ms", "forward", "backward", "other"):
        table.add_column(name, justify="right")
    for part, found in row.parts.items():
        times = [
            f"{found[key]:.1f}" if found[key] else ""
            for key in ("milliseconds", "forward", "backward", "other")
        ]
        table.add_row(part, f"{found['share']:.1%}", *times)
    return table


def _operations(row: Row, most: int) -> Table:
    table = Table(title="the costliest operations", title_justify="left", box=box.SIMPLE)
    table.add_column("operation", overflow="fold")
    table.add_column("part")
    table.add_column("phase")
    table.add_column("share", justify="right")
    for found in row.operations[:most]:
        table.add_row(found["operation"], found["part"], found["phase"], f"{found['share']:.1%}")
    return table
