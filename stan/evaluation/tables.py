"""The tables of an evaluation that people read, as plain cells: terminal, Markdown and page draw the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as Rich

from stan.evaluation.published import comparable, value_at
from stan.evaluation.results import Results, count
from stan.metrics import METRICS, Metric

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it says.
        best: the best of several methods.
        soft: not one of the methods that are compared.
        style: class of the colour that stands for a method.
        link: name of the sequence that it leads to.
        more: what stands beneath it, smaller.
    """

    text: str
    best: bool = False
    soft: bool = False
    style: str = ""
    link: str = ""
    more: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Table:
    """Headings and rows; `ruled` are the rows that begin a new group."""

    heads: list[str]
    rows: list[list[Cell]]
    ruled: frozenset[int] = frozenset()


def style(index: int) -> str:
    """The class of the colour of a method, by its place."""
    return f"s{index % 8}"


def by_level(results: Results) -> Table:
    """The table as papers print it: a row a method, a column a noise level, PSNR over SSIM."""
    metrics = results.metrics("always")
    levels = [[results.mean(m["name"], s) for m in results.methods] for s in results.sigmas]
    columns = [_stacked(level, metrics) for level in levels]
    rows = []
    for i, (method, *cells) in enumerate(zip(results.methods, *columns)):
        rows.append([Cell(method["name"], style=style(i), more=(Cell(_account(method)),)), *cells])
    rows.append([Cell(results.input, soft=True), *(_noisy(level[0], metrics) for level in levels)])
    ruled = frozenset({len(rows)})
    for known, values in comparable(results.settings):
        size = f" · {known.parameters:g} M parameters" if known.parameters else ""
        name = Cell(known.name, soft=True, more=(Cell(f"published{size}"),))
        rows.append(
            [name, *(Cell(METRICS["psnr"].show(value_at(values, s)), soft=True) for s in results.sigmas)]
        )
    return Table([_heading(metrics), *(f"σ {s:g}" for s in results.sigmas)], rows, ruled)


def all_figures(results: Results, *shown: str) -> Table:
    """A row a method and noise level, a column a metric, of those that are `shown` so."""
    metrics = results.metrics(*shown)
    rows: list[list[Cell]] = []
    ruled: set[int] = set()
    for sigma in results.sigmas:
        ruled.add(len(rows))
        level = [row for row in results.means if row["sigma"] == sigma]
        for row, cells in zip(level, _cells(level, metrics)):
            rows.append([Cell(f"{sigma:g}"), Cell(row["method"]), *cells])
    word = results.input.partition(" ")[0]
    heads = [m.heading.replace("noisy", word) for m in metrics]
    return Table(["sigma", "method", *heads], rows, frozenset(ruled - {0}))


def by_sequence(results: Results, sigma: float) -> Table:
    """A row a sequence, a column a method, at one noise level."""
    metrics = results.metrics("always")
    rows = []
    for name in results.names:
        level = _at(results, name, sigma)
        noisy = replace(_noisy(level[0], metrics), soft=True)
        rows.append([Cell(name, link=name), Cell(str(level[0]["frames"])), *_stacked(level, metrics), noisy])
    methods = [method["name"] for method in results.methods]
    return Table([_heading(metrics), "frames", *methods, results.input], rows)


def of_sequence(results: Results, name: str, sigma: float) -> Table:
    """A row a method, a column a metric, for one sequence at one noise level."""
    metrics = [metric for metric in results.metrics("always", "tables") if metric.of != "noisy"]
    level = _at(results, name, sigma)
    rows = [[Cell(row["method"]), *cells] for row, cells in zip(level, _cells(level, metrics))]
    rows.append([Cell(results.input, soft=True), *(_of_noisy(level[0], metric) for metric in metrics)])
    return Table(["method", *(m.heading for m in metrics)], rows)


def terminal(results: Results) -> Rich:
    """The means, for the terminal; the best of several methods stands out."""
    table = all_figures(results, "always", "tables")
    several = len(results.methods) > 1
    number = count(results.settings["data"]["sequences"], "sequence")
    drawn = Rich(
        title=f"{results.title}, {number}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    kept = [i for i in range(len(table.heads)) if several or i != 1]
    for i in kept:
        drawn.add_column(table.heads[i], justify="left" if i == 1 else "right", overflow="fold")
    for number_of_row, row in enumerate(table.rows):
        if number_of_row in table.ruled:
            drawn.add_section()
        first = number_of_row == 0 or number_of_row in table.ruled
        texts = [f"[bold]{escape(cell.text)}[/bold]" if cell.best else escape(cell.text) for cell in row]
        drawn.add_row(*(texts[i] if i or first else "" for i in kept))
    return drawn


def _at(results: Results, name: str, sigma: float) -> list[dict[str, Any]]:
    return [row for row in results.sequences if row["sequence"] == name and row["sigma"] == sigma]


def _cells(rows: Sequence[Figures], metrics: Sequence[Metric]) -> list[list[Cell]]:
    """The figures of some methods; the best of each metric stands out."""
    best = {m.name: m.best(row.get(m.name) for row in rows) if len(rows) > 1 else None for m in metrics}
    return [
        [Cell(m.show(row.get(m.name)), best=best[m.name] is not None and row.get(m.name) == best[m.name])
         for m in metrics]
        for row in rows
    ]  # fmt: skip


def _stacked(rows: Sequence[Figures], metrics: Sequence[Metric]) -> list[Cell]:
    """One cell a method: the first metric, and the others beneath."""
    return [replace(first, more=tuple(more)) for first, *more in _cells(rows, metrics)]


def _noisy(row: Figures, metrics: Sequence[Metric]) -> Cell:
    first, *more = (_of_noisy(row, metric) for metric in metrics)
    return replace(first, more=tuple(cell for cell in more if cell.text))


def _of_noisy(row: Figures, metric: Metric) -> Cell:
    """The same metric of the noisy input, if there is one."""
    noisy = METRICS.get(f"{metric.name}_noisy")
    return Cell(noisy.show(row.get(noisy.name)) if noisy else "", soft=True)


def _heading(metrics: Sequence[Metric]) -> str:
    return " / ".join(metric.title for metric in metrics)


def _account(method: Figures) -> str:
    if method["kind"] != "network":
        return "not learned"
    blind = "blind" if method["blind"] else "finds sigma" if method.get("find_level") else "knows sigma"
    size = f"{method['parameters'] / 1e6:.3g} M parameters"
    reach = [f"temporal window {method['temporal_window']}"] if "temporal_window" in method else []
    return " · ".join([method["model"], size, blind, *reach, method["sha256"][:10]])
