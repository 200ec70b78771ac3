"""What every benchmark does around measuring: threads, files that can be written, how far it is, what is kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan.errors import StanError
from stan.files import write_text

if TYPE_CHECKING:
    from rich.console import Console


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Threads, and the file of figures."""
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")


def prepare(threads: int | None, *files: Path | None) -> None:
    """Set torch's threads, and see that the files that are asked for have a folder.

    Raises:
        StanError: no thread, or a folder that does not exist.
    """
    import torch

    for path in files:
        if path is not None and not path.parent.is_dir():
            raise StanError(f"{path}: the folder {path.parent} does not exist")
    if threads is not None:
        if threads < 1:
            raise StanError(f"--threads {threads}: at least 1 is needed")
        torch.set_num_threads(threads)


@contextmanager
def counting(console: Console, beginning: str, count: int, done: str) -> Iterator[Callable[[object], None]]:
    """Shows `beginning`, then how many of `count` are `done`; gives what is to be called as each is."""
    so_far = 0
    with console.status(beginning) as status:

        def on_row(row: object) -> None:
            nonlocal so_far
            so_far += 1
            status.update(f"{so_far} of {count} {done}")

        yield on_row


def keep(console: Console, path: Path | None, content: str | Mapping[str, Any]) -> None:
    """Write a text, or plain data as JSON, where a file is asked for; under its final name it is always complete."""
    if path is not None:
        write_text(path, content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")
        console.print(f"wrote {path}")
