"""What a person sees while an evaluation runs: a bar over all frames, and a line for every finished piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

_DENOISING = 0.9
"""Part of a piece's time that the denoiser is taken to need; the rest goes into measuring."""


class Board:
    """Progress of all pieces, whoever computes them.

    Args:
        plan: what there is to do.
        console: where to write.
        shown: whether to write at all.
    """

    def __init__(self, plan: Plan, console: Console, *, shown: bool) -> None:
        self.plan = plan
        self.console = console
        self.shown = shown
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} frames"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        total = sum(map(self._frames, plan.tasks))
        self.handle = self.bar.add_task("evaluating", total=total)
        self.completed = 0.0
        self.frames = 0
        self.reused = 0
        self.shared = 0

    def __enter__(self) -> Board:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        self.bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.shown:
            self.console.print("interrupted: the same command goes on where this one stopped")

    def found(self, task: Task, *, earlier: bool) -> None:
        """A piece was there already: from an earlier run, or another process made it meanwhile."""
        self.reused += earlier
        self.shared += not earlier
        self._complete(task)

    def finished(self, task: Task, record: Mapping[str, Any]) -> None:
        """A piece was computed."""
        self._complete(task)
        if self.shown and not isinstance(task.method, Noisy):
            told = [m for m in METRICS.values() if m.shown == "always" and m.name in record]
            told.append(METRICS["seconds_per_frame"])
            self.console.print(
                f"{escape(task.clip.name)}  sigma {task.sigma:g}  {escape(task.method.name)}  "
                + "  ".join(f"{m.heading} {m.show(record[m.name])}" for m in told),
                highlight=False,
            )

    @contextmanager
    def working(self, task: Task) -> Iterator[None]:
        """Name the piece that is being computed."""
        self.frames = self._frames(task)
        self.bar.update(
            self.handle,
            description=f"{escape(task.method.name)} on {escape(task.clip.name)}, sigma {task.sigma:g}",
        )
        yield

    def denoising(self, part: float) -> None:
        """The part of the piece that is denoised, in [0, 1]."""
        self.bar.update(self.handle, completed=self.completed + self.frames * _DENOISING * part)

    def measuring(self, part: float) -> None:
        """The part of the piece that is measured, in [0, 1]."""
        done = _DENOISING + (1 - _DENOISING) * part
        self.bar.update(self.handle, completed=self.completed + self.frames * done)

    def finish(self, failures: list[str]) -> None:
        """Say what was kept from before, and which helpers did not end well."""
        if not self.shown:
            return
        if self.reused:
            self.console.print(f"{self.reused} of {len(self.plan.tasks)} pieces were done already")
        if self.shared:
            self.console.print(f"{self.shared} of {len(self.plan.tasks)} pieces were done by other processes")
        for line in failures:
            self.console.print(f"[yellow]note[/yellow] {escape(line)}", highlight=False)

    def _frames(self, task: Task) -> int:
        """Frames that a piece counts for; those of the noisy input take no time beside the others'."""
        alone = all(isinstance(method, Noisy) for method in self.plan.methods)
        return self.plan.frames(task.clip) if alone or not isinstance(task.method, Noisy) else 0

    def _complete(self, task: Task) -> None:
        self.completed += self._frames(task)
        self.bar.update(self.handle, completed=self.completed)
