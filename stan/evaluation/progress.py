"""What a person sees while an evaluation runs: a bar over all frames, and a line for every finished piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stan.evaluation.methods import Noisy
from stan.evaluation.plan import Plan, Task
from stan.metrics import METRICS


class Board:
    """Progress of all pieces, whoever computes them; written to the console if it is `shown`."""

    def __init__(self, plan: Plan, console: Console, *, shown: bool) -> None:
        self.plan = plan
        self.console = console if shown else Console(quiet=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self.handle = self.bar.add_task("evaluating", total=sum(map(self._frames, plan.tasks)))
        self.completed = 0
        self.frames = 0
        self.found_by: Counter[str] = Counter()

    def __enter__(self) -> Board:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        self.bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.console.print("interrupted: the same command goes on where this one stopped")

    def found(self, task: Task, *, earlier: bool) -> None:
        """A piece was there already: from an earlier run, or another process made it meanwhile."""
        self.found_by["already" if earlier else "by other processes"] += 1
        self._complete(task)

    def working(self, task: Task) -> None:
        """Name the piece that is being computed."""
        self.frames = self._frames(task)
        what = f"{escape(task.method.name)} on {escape(task.clip.name)}, sigma {task.sigma:g}"
        self.bar.update(self.handle, description=what)

    def denoising(self, part: float) -> None:
        """The part of the piece that is denoised, in [0, 1]; measuring takes a tenth of the time."""
        self.bar.update(self.handle, completed=self.completed + self.frames * 0.9 * part)

    def finished(self, task: Task, record: Mapping[str, Any]) -> None:
        """A piece was computed."""
        self._complete(task)
        if not isinstance(task.method, Noisy):
            told = [m for m in METRICS.values() if m.shown == "always" and m.name in record]
            figures = (f"{m.heading} {m.show(record[m.name])}" for m in (*told, METRICS["seconds_per_frame"]))
            what = f"{task.clip.name}  sigma {task.sigma:g}  {task.method.name}  {'  '.join(figures)}"
            self.console.print(escape(what), highlight=False)

    def finish(self, failures: list[str]) -> None:
        """Say what was kept from before, and which helpers did not end well."""
        for who, number in self.found_by.items():
            self.console.print(f"{number} of {len(self.plan.tasks)} pieces were done {who}")
        for line in failures:
            self.console.print(f"[yellow]note[/yellow] {escape(line)}", highlight=False)

    def _frames(self, task: Task) -> int:
        """Frames that a piece counts for; those of the noisy input take no time beside the others'."""
        alone = all(isinstance(method, Noisy) for method in self.plan.methods)
        return self.plan.frames(task.clip) if alone or not isinstance(task.method, Noisy) else 0

    def _complete(self, task: Task) -> None:
        self.completed += self._frames(task)
        self.bar.update(self.handle, completed=self.completed)
