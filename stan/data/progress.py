"""Progress bars on standard error; they show only on a terminal and leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def frame_progress(
    task: str, frames: int, *, shown: bool = True, unit: str = "frames"
) -> Iterator[Callable[[int], None]]:
    """Show a bar for `frames` frames (or whatever `unit` says) while the block runs.

    Yields:
        A function to call with the number done since the last call.
    """
    with _bar(shown, MofNCompleteColumn(), TextColumn(unit)) as bar:
        handle = bar.add_task(task, total=frames)
        yield lambda count: bar.advance(handle, count)


@contextmanager
def byte_progress(task: str, *, shown: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar for a download while the block runs.

    Yields:
        A function to call with the bytes that have arrived and the size, None if unknown.
    """
    with _bar(shown, DownloadColumn(), TransferSpeedColumn()) as bar:
        handle = bar.add_task(task, total=None)
        yield lambda arrived, size: bar.update(handle, completed=arrived, total=size)


def _bar(shown: bool, *columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
