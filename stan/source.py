"""Which code computes: a hash of this package's files and of the modules that `stan.imports` brought in."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path

from stan.imports import imported_files

PACKAGE = Path(__file__).resolve().parent


def source_hash(*parts: str) -> str:
    """Tell two states of the code apart, 64 hexadecimal digits.

    Args:
        parts: folders and files of this package, such as ``models`` and ``evaluation/methods.py``. Files of users'
            modules are always part of it: whatever they register may be used.
    """
    return _hash(parts, tuple(imported_files()))


@functools.cache
def _hash(parts: tuple[str, ...], foreign: tuple[Path, ...]) -> str:
    paths = list(foreign)
    for part in map(PACKAGE.joinpath, parts):
        files = [part] if part.is_file() else part.rglob("*")
        paths += [path for path in files if path.suffix in (".py", ".so", ".pyd")]
    digest = hashlib.sha256()
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            name = path.relative_to(PACKAGE) if PACKAGE in path.parents else path.name
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
