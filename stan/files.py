"""Writing files so that nothing half-written ever has its final name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` when the block ends well, and vanishes when it does not.

    The temporary file lies in the same folder, which is made if missing, so that the renaming is atomic.
    With ``durable`` its bytes are on the disk before it is renamed, so that not even a power cut leaves half a
    file; a cache that checks what it reads does without.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, or none."""
    with replacing(path) as file:
        file.write(text.encode())
