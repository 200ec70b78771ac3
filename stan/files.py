"""Files as wholes: nothing half-written ever has its final name; what tells two files apart."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

STALE = 3600.0
"""Seconds without a change after which an unfinished file belongs to no process any more."""


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` when the block ends well, and vanishes when it does not.

    What killed processes left of it is removed. The temporary file lies in the same folder, which is made if
    missing, so that the renaming is atomic. With ``durable`` its bytes are on the disk before it is renamed, so that
    not even a power cut leaves half a file; a cache that checks what it reads does without.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_space(path: Path) -> int:
    """Bytes that are free on the disk of a path, which need not exist."""
    place = path.absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of earlier tries to write `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, or none."""
    with replacing(path) as file:
        file.write(text.encode())
