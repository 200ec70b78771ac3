"""How far a command is: a bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stan.inference import Progress

SPAN = 30.0
"""Seconds of past work that the speed is taken from."""

LEAST_GAP, GAP_PART, MOST_GAP = 10.0, 0.25, 300.0
"""Seconds between two lines: this part of the time so far, within these bounds."""


class Speed:
    """Frames a second over the last `SPAN` seconds of `clock`, and the time left at that speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._past: deque[tuple[float, float]] = deque()  # (time, frames done), the oldest just beyond SPAN

    def words(self, done: float, total: int | None) -> str:
        """``12/300 frames  0.71 frames/s  6:45 left``, with what is known of it by now."""
        now = self._clock()
        self._past.append((now, done))
        while len(self._past) > 2 and now - self._past[1][0] >= SPAN:
            self._past.popleft()
        began, before = self._past[0]
        words = f"{done:.0f} frames" if total is None else f"{done:.0f}/{total} frames"
        if now - began < 1 or done <= before:
            return words
        speed = (done - before) / (now - began)
        words = f"{words}  {speed:.2f} frames/s"
        return words if total is None else f"{words}  {duration((total - done) / speed)} left"


def duration(seconds: float) -> str:
    """Seconds for a person: ``0:07``, ``6:45``, ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def lines(tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Progress:
    """Tells a line now and then: for logs and pipes."""
    speed, began = Speed(clock), clock()
    due = began + LEAST_GAP

    def update(done: float, total: int | None) -> None:
        nonlocal due
        words, now = speed.words(done, total), clock()
        if now >= due and done != total:
            tell(words)
            due = now + min(MOST_GAP, max(LEAST_GAP, GAP_PART * (now - began)))

    return update


@contextmanager
def progress_bar(what: str, tell: Callable[[str], None]) -> Iterator[Progress]:
    """Shows on standard error how far the work in the block is: ``what`` with a bar on a terminal, else lines
    by ``tell``."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lines(tell)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    speed = Speed()
    columns = (TextColumn(what), BarColumn(bar_width=20), TextColumn("{task.description}"))
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task("", total=None)

        def update(done: float, total: int | None) -> None:
            bar.update(task, completed=done, total=total, description=speed.words(done, total))

        yield update
