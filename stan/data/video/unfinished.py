"""Results under a hidden name until they are complete, and what it says when they cannot be written."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import time
import zlib
from pathlib import Path

from stan.errors import VideoError
from stan.files import STALE

MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
"""This machine, or container, by its name."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.EPERM)


class Unfinished:
    """A file, or a folder, that gets its name when it is complete. What killed runs left of it is removed.

    Attributes:
        place: where it is until then: in the same folder, so that the renaming is atomic.

    Raises:
        VideoError: it cannot be made.
    """

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        mark = f".{path.stem}.part-"
        self.place = path.with_name(f"{mark}{MACHINE}-{os.getpid()}{path.suffix}")
        ours = re.compile(rf"{re.escape(mark)}([^-]*)-(\d+){re.escape(path.suffix)}")
        try:
            for left in path.parent.iterdir():
                if (made := ours.fullmatch(left.name)) and _is_stale(left, made[1], int(made[2])):
                    _remove(left)
            if folder:
                self.place.mkdir()
            else:
                self.place.touch()
        except OSError as error:
            raise cannot_write(path, error) from None

    def take_name(self, path: Path) -> None:
        """Give it its name; what was there is replaced.

        Raises:
            OSError: the disk is gone or the name is not to be had.
        """
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(self.place, path)

    def discard(self) -> None:
        """Delete it."""
        _remove(self.place)


def _is_stale(path: Path, machine: str, owner: int) -> bool:
    if machine != MACHINE:  # whether its process lives is not to be known, but its file changes
        return time.time() - path.stat().st_mtime > STALE
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return True
    except (OverflowError, PermissionError):
        pass
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def usable_name(place: str | os.PathLike[str]) -> str:
    """The text of a path.

    Raises:
        VideoError: no file can have such a name.
    """
    text = os.fspath(place)
    try:
        os.lstat(text)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            shown = text if len(text) < 60 else f"{text[:40]}..."
            raise VideoError(f"no file can be called {shown!r} ({len(text)} characters)") from None
    return text


def cannot_write(path: Path, error: Exception) -> VideoError:
    """The line for an operating system's refusal to write ``path``."""
    number = getattr(error, "errno", None)
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        return VideoError(f"{folder} is no folder: choose another output than {path}")
    if not folder.is_dir():
        return VideoError(f"the folder {folder} does not exist: make it first, or choose another output")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return VideoError(f"the disk is full: {path} was not written; free some space and run again")
    if number == errno.EFBIG:
        return VideoError(f"{path} was not written: it exceeds the largest file allowed here (ulimit -f)")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return VideoError(f"no permission to write into {folder}")
    reason = getattr(error, "strerror", None) or str(error)
    return VideoError(f"{path} cannot be written: {reason}")
