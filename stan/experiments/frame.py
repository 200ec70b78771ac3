"""What every experiment is: settings, tasks that give rows, and what the rows say. Killed, it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stan.errors import DataError
from stan.evaluation.provenance import code
from stan.experiments.plot import Chart

Row = dict[str, Any]
"""One line of results: plain data, its key and its figures."""

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Task:
    """A piece of work that is done as a whole or not at all.

    Attributes:
        key: what tells it from the other tasks; it stands in each of its rows.
        run: gives its rows.
    """

    key: Row
    run: Callable[[], list[Row]]


@dataclass(frozen=True)
class Table:
    """A table of the report: heading, names of the columns, cells as text."""

    heading: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]


@dataclass
class Report:
    """What came out.

    Attributes:
        conclusions: one sentence or two each; the first is the answer to the question.
        tables: in order.
        charts: file name without its ending -> picture.
        notes: what must be known to read the figures.
    """

    conclusions: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: dict[str, Chart] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Experiment:
    """Base of the experiments. A subclass is registered in `stan.registry.experiments`, which gives it its settings.

    Args:
        folder: where the experiment may keep what it makes (trained networks, say).
        settings: as the subclass declares them.

    Attributes:
        keyed: settings whose values stand in the keys of the tasks, or move no figure.
    """

    keyed: Collection[str] = ()

    def __init__(self, folder: Path, settings: Any) -> None:
        self.folder = folder
        self.settings = settings

    def tasks(self) -> Iterator[Task]:
        """All that has to be done, in order; what cannot be used is told here, before anything is computed."""
        raise TypeError(f"{type(self).__name__} is an Experiment without a tasks() method")

    def made_by(self) -> dict[str, Any]:
        """What besides its key decides the figures of a task, as plain data: rows made otherwise are not reused."""
        return {name: value for name, value in vars(self.settings).items() if name not in self.keyed}

    def report(self, rows: list[Row]) -> Report:
        """What the rows say; some may be missing yet."""
        raise TypeError(f"{type(self).__name__} is an Experiment without a report() method")


class Rows:
    """The finished tasks of an experiment, one a line of a file. A line is there whole or not at all.

    Only rows that were made by the same (plain data), and by the same program, are taken.
    """

    def __init__(self, path: Path, made_by: Any) -> None:
        self.path = path
        text = json.dumps([made_by, code()["source"]], sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._tasks: dict[str, list[Row]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line at which it was killed
            if record["made_by"] == self.fingerprint:
                self._tasks[_text(record["key"])] = record["rows"]

    def of(self, task: Task) -> list[Row] | None:
        """The rows of a task that is done."""
        return self._tasks.get(_text(task.key))

    def add(self, task: Task, rows: list[Row]) -> None:
        """Keep the rows of a task, on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = [{**task.key, **row} for row in rows]
        line = json.dumps({"made_by": self.fingerprint, "key": task.key, "rows": whole})
        broken = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * broken + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._tasks[_text(task.key)] = json.loads(line)["rows"]


def run_tasks(experiment: Experiment, console: Console, *, compute: bool = True) -> list[Row]:
    """Do what is not done yet, and give the rows of all tasks in their order.

    Raises:
        DataError: nothing is there, and without `compute` only what is there is taken.
    """
    rows = Rows(experiment.folder / ROWS, experiment.made_by())
    tasks = list(experiment.tasks())
    waiting = [task for task in tasks if rows.of(task) is None]
    if not compute and len(waiting) == len(tasks):
        raise DataError(f"{rows.path} has no rows of these settings: run the experiment without --report")
    if waiting and len(waiting) < len(tasks):
        console.print(f"{len(tasks) - len(waiting)} of {len(tasks)} tasks are done already", highlight=False)
    for number, task in enumerate(waiting if compute else (), len(tasks) - len(waiting) + 1):
        started = time.monotonic()
        rows.add(task, task.run())
        said = " ".join(f"{name} {value}" for name, value in task.key.items())
        took = f"{time.monotonic() - started:.1f} s"
        console.print(f"{number}/{len(tasks)} {said}: {took}", highlight=False, soft_wrap=True)
    return [row for task in tasks for row in rows.of(task) or ()]


def one_varied(lists: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The first value of each list together, then one list after the other varied."""
    base = {name: values[0] for name, values in lists.items()}
    return [base, *({**base, name: value} for name, values in lists.items() for value in values[1:])]


def group(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some of their columns, in the order of the rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return groups


def mean(rows: Sequence[Row], name: str) -> float:
    """The mean of a column over rows that have it; NaN over none."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else float("nan")


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
