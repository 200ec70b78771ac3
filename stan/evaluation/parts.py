"""Finished pieces of an evaluation on disk, so that a killed one goes on, and several processes share the work.

A piece is what one method did with one sequence at one noise level: a JSON record with the figures of every
frame, and beside it an ``.npz`` file with the pictures of the report. Its file name carries a hash of
everything that can move its figures; a changed checkpoint, setting or program therefore never meets an old
piece. Both files are written under a temporary name and renamed, the JSON last, with a hash of both: a piece that
was damaged or changed afterwards is made again.

A process claims a piece by a file lock, which the system drops when the process ends, however it ends. So any number
of processes, on machines that share the folder, may work on one evaluation, and none waits for a dead one.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from stan.errors import DataError
from stan.files import replacing, write_text


class Parts:
    """The pieces in a folder, which is made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, method: str, sequence: str, sigma: float, key: Mapping[str, Any]) -> Path:
        """Where the record of a piece is, or will be."""
        return self.folder / slug(method) / f"{slug(sequence)}-{sigma:g}-{fingerprint(key)}.json"

    def read(self, path: Path, *, pictures: bool = True) -> dict[str, Any] | None:
        """The record of a finished piece; None if it is not there, or it or its pictures are not as written."""
        try:
            content = json.loads(path.read_bytes())
            record = dict(content["record"])
            packed = pictures_path(path).read_bytes() if pictures else b""
            return record if content["sha256"] == _seal(record, packed) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path, record: Mapping[str, Any], pictures: Mapping[str, np.ndarray] | None) -> None:
        """Write a finished piece."""
        packed = io.BytesIO()
        if pictures is not None:
            np.savez_compressed(packed, **pictures)  # type: ignore[arg-type]
            with replacing(pictures_path(path)) as file:
                file.write(packed.getvalue())
        write_text(path, json.dumps({"sha256": _seal(record, packed.getvalue()), "record": record}))

    def pictures(self, path: Path) -> dict[str, np.ndarray]:
        """The pictures of a finished piece."""
        with np.load(pictures_path(path), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    @contextmanager
    def claim(self, path: Path, *, wait: bool = False) -> Iterator[bool]:
        """Claim a piece while the block runs; yields whether it was got (always, with `wait`)."""
        for place in (path, pictures_path(path), path.with_suffix(".lock")):
            if place.is_dir():
                raise DataError(f"{place} is a folder where this evaluation keeps a file: remove it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise DataError(
                f"{path.parent} cannot be made: there is a file of that name in its path"
            ) from None
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            # Whoever holds or awaits the removed file looks for the record next, and finds it.
            if path.is_file():
                path.with_suffix(".lock").unlink(missing_ok=True)
            lock.release()

    def once(self, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A small decision that all processes, now and after a restart, must share: the first one makes it."""
        path = self.folder / f"{slug(name)}-{fingerprint(key)}.json"
        with self.claim(path, wait=True):
            found = self.read(path, pictures=False)
            if found is None:
                found = make()
                self.write(path, found, None)
        return found


def fingerprint(key: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of plain data."""
    return _seal(key)[:12]


def _seal(record: Mapping[str, Any], pictures: bytes = b"") -> str:
    """SHA-256 of plain data and of packed pictures: whether they are as they were written."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode() + pictures).hexdigest()


def slug(name: str) -> str:
    """A name as a file may have it; names that differ stay apart."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "_"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def pictures_path(path: Path) -> Path:
    """Where the pictures of a record are."""
    return path.with_suffix(".npz")
