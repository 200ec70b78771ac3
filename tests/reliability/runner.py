"""Runs the `stan` command in processes of their own that start at once: copies of one that has everything loaded."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

LOADED = [
    "stan.cli",
    "stan.data.prepare",
    "stan.data.synthetic",
    "stan.evaluation.run",
    "stan.evaluation.report",
    "stan.inference.files",
    "stan.training",
    "tests.reliability.runner",
]
"""What the copied process has imported; it computes nothing itself, so that its copies inherit no threads."""


class Said(NamedTuple):
    """What a command left behind.

    Attributes:
        code: exit code; negative: the signal that ended it; None: it did not end in time.
        errors: standard error.
        output: standard output.
        seconds: from start to end.
    """

    code: int | None
    errors: str
    output: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines of standard error."""
        return self.errors.strip().splitlines()


def run(
    words: Sequence[str],
    folder: Path,
    *,
    before: Callable[[], object] | None = None,
    memory: int | None = None,
    file_size: int | None = None,
    timeout: float = 60,
) -> Said:
    """Run ``stan WORDS`` in `folder`.

    Args:
        words: of the command line.
        folder: working folder.
        before: called in the process first; a function that can be pickled.
        memory: bytes by which the process may grow.
        file_size: bytes of the largest file that it may write.
        timeout: seconds after which it is killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    logs = folder.parent / f"{folder.name}.err", folder.parent / f"{folder.name}.out"
    process = context.Process(
        target=_child, args=(list(map(str, words)), str(folder), logs, before, memory, file_size)
    )
    started = time.monotonic()
    process.start()
    process.join(timeout)
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid or 0, signal.SIGKILL
            )  # it leads a group of its own, with all that it started
        process.join()
        code = None
    else:
        code = process.exitcode
    seconds = time.monotonic() - started
    errors, output = (path.read_text(errors="replace") if path.exists() else "" for path in logs)
    return Said(code, errors, output, seconds)


def _child(
    words: list[str],
    folder: str,
    logs: tuple[Path, Path],
    before: Callable[[], object] | None,
    memory: int | None,
    file_size: int | None,
) -> None:
    """The process itself; leaves by the exit code of the command."""
    import torch

    from stan.cli import main

    os.setsid()
    torch.set_num_threads(1)
    for number, path in zip((2, 1), logs):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    if memory is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        if before is not None:
            before()
        code = main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
    os._exit(code)
