"""What the command says when it cannot go on: one line, whatever was raised."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback

from stan.errors import StanError

BAD_INPUT = 2
DEFECT = 1
NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "unable to allocate")
"""How PyTorch, CUDA and NumPy say that memory is not enough."""


_REASONS = {
    errno.EEXIST: "it is a file, where a folder is needed",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EISDIR: "it is a folder, where a file is needed",
    errno.ENAMETOOLONG: "a name in it is too long",
    errno.ENOENT: "it, or the folder it is to lie in, does not exist",
}


def told(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error that has ended a command, whatever it is.

    The code is 2 for bad input and for what the machine lacks; 1 for a defect of this program, whose traceback is kept
    in a file that the line names.
    """
    if isinstance(error, StanError):
        return BAD_INPUT, " ".join(str(error).split())
    if isinstance(error, OSError) and (line := _of_system(error)):
        return BAD_INPUT, line
    text = _first_line(error)
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        smaller = "take smaller frames, windows, crops or batches"
        return BAD_INPUT, f"there is not enough memory ({text}): {smaller}"
    if isinstance(error, RecursionError):
        return BAD_INPUT, "the input is nested too deeply"
    if isinstance(error, ValueError) and "embedded null" in text:
        return BAD_INPUT, "a name with a NUL character in it is no file's"
    return DEFECT, f"a defect of this program: {type(error).__name__}: {text}; {_kept(error)}"


def _of_system(error: OSError) -> str | None:
    """The line for an error of the operating system that names a file, or that it is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{place}: free some space and run the same command again"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and error.filename:
        return f"no permission for {error.filename}: {error.strerror}"
    if error.filename and error.strerror:
        name = str(error.filename2 or error.filename)
        shown = name if len(name) <= 120 else f"{name[:60]}...{name[-20:]}"
        return f"{shown} cannot be used: {_REASONS.get(error.errno or 0, error.strerror)}"
    return None


def _kept(error: Exception) -> str:
    """Write the traceback to a file; says where."""
    text = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="stan-defect-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return " ".join(text.split())
    return f"please report it with {path}"


def _first_line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return " ".join(first.split()) or type(error).__name__
