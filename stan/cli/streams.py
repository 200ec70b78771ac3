"""The three standard streams as a command finds them: perhaps closed, perhaps full."""

from __future__ import annotations

import os
import sys


def keep_numbers() -> None:
    """Put the null device where a standard stream is closed.

    Else the first file that the command opens takes the stream's number, and what libraries print goes into it.
    Python's own streams stay None: what is printed to them is dropped, and who needs one can see that it is closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def tell(line: str) -> None:
    """Print a line to stderr; where that is closed or full, nowhere: the exit code must say it alone."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # What Python still holds for the stream is not to fail once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
