"""Results under a hidden name until they are complete, and what it says when they cannot be written."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import time
import zlib
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from stan.errors import VideoError
from stan.files import STALE

MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
"""This machine, or container, by its name."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.EPERM)


class Unfinished:
    """A file, or a folder, that gets its name when it is complete. What killed runs left of it is removed.

    A link stays one: what it led to at the beginning is written.

    Attributes:
        place: where it is until then: in the same folder, so that the renaming is atomic.

    Raises:
        VideoError: it cannot be made.
    """

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        self._given, self._final = path, destination(path)
        self._kept = False
        path = self._final
        mark = f".{path.stem}.part-"
        self.place = path.with_name(f"{mark}{MACHINE}-{os.getpid()}{path.suffix}")
        ours = re.compile(rf"{re.escape(mark)}([^-]*)-(\d+){re.escape(path.suffix)}")
        try:
            self._before = set(path.iterdir()) if folder and path.is_dir() else set()
            if path.is_dir() and not os.access(path, os.W_OK):
                raise VideoError(f"no permission to write into {path}")
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
        """Give it its name; a file that was there, or the files of a folder, are replaced.

        Raises:
            VideoError: the name is not to be had; it says where the work is, which `discard` then leaves alone.
        """
        path = self._final if path == self._given else path
        try:
            if path.is_dir() and self.place.is_dir():
                self._take_folder(path)
            else:
                os.replace(self.place, path)
        except OSError as error:
            if not self.place.exists():
                raise cannot_write(path, error) from None
            reason = error.strerror or str(error)
            raise VideoError(
                f"{path} cannot be written ({reason.lower()}): the result is in {self._keep(path)}"
            ) from None

    def discard(self) -> None:
        """Delete it."""
        if not self._kept:
            _remove(self.place)

    def _take_folder(self, folder: Path) -> None:
        """Replace a folder that held no more than at the beginning.

        At one stroke, but for a mount point, which the system does not let go, and the current folder: a shell in
        it would be nowhere. Into these the files are moved.
        """
        if set(folder.iterdir()) - self._before:
            raise FileExistsError(errno.EEXIST, "something was put there meanwhile")
        for old in self._before:
            old.unlink(missing_ok=True)
        if not folder.samefile(os.curdir):
            with suppress(OSError):
                os.replace(self.place, folder)
                return
        inside = folder / self.place.name
        try:
            os.rename(self.place, inside)
        except OSError:  # another disk: what takes long, and may fail, is done before any final name is there
            try:
                inside.mkdir()
                for file in self.place.iterdir():
                    shutil.copy2(file, inside)
            except BaseException:
                _remove(inside)
                raise
            _remove(self.place)
        self.place = inside
        for file in sorted(inside.iterdir()):
            os.replace(file, folder / file.name)
        inside.rmdir()

    def _keep(self, path: Path) -> Path:
        """Give it a name that is free and that no later run takes for a killed one's; returns it."""
        self._kept = True
        with suppress(OSError):
            self.place = self.place.rename(free_name(self.place.with_name(path.name), "kept"))
        return self.place


def destination(path: Path) -> Path:
    """Where a path leads, if it is a link or has no name of its own as ``.``; else the path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def free_name(path: Path, word: str) -> Path:
    """The first of ``clip.WORD.mp4``, ``clip.WORD-2.mp4`` and so on beside ``clip.mp4`` that nothing has."""
    words = chain([word], (f"{word}-{number}" for number in count(2)))
    names = (path.parent / f"{path.stem}.{each}{path.suffix}" for each in words)
    return next(name for name in names if not os.path.lexists(name))


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
