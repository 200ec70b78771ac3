"""One training in a folder at a time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from stan.errors import TrainingError
from stan.training.ranks import outside_rank

try:
    import fcntl
except ImportError:  # not on this system: no lock
    fcntl = None  # type: ignore[assignment]

NAME = ".training.lock"
_held: set[Path] = set()
"""Folders that this process has."""


@contextlib.contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made, for the length of a `with` block; blocks may be nested.

    The system lets go of the lock when its process ends, however it ends: one left by a dead process is no obstacle.
    Inside, what killed trainings left half-written is removed. A folder that was made for it and has stayed empty goes.

    Raises:
        TrainingError: when another training has the folder.
    """
    if outside_rank() > 0:  # the first process has it for all
        yield
        return
    made = [place.absolute() for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    path = folder / NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, folder)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                break  # else its owner removed it just before we had it
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    _held.add(folder)
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)
        yield
    finally:
        _held.discard(folder)
        path.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty: the rule
            for place in made:
                place.rmdir()


def _lock(handle: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        # A lock of the process (not of the file, as flock's): loader processes do not inherit it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
        raise TrainingError(
            f"{folder} has a training going on ({owner}): wait for it, or choose another output"
        ) from None
    except OSError:
        pass  # a file system without locks
