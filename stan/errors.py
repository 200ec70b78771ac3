"""Errors meant for the person at the keyboard: one line that names the offending value and the way out.

The ``stan`` command prints such an error without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StanError(Exception):
    """Base of all errors that are the input's fault, not the program's."""


class ConfigError(StanError):
    """An unknown key, a wrong type or an impossible combination in the configuration."""


class DataError(StanError):
    """A data set or cache that is missing, empty, damaged or laid out differently."""


class CheckpointError(StanError):
    """A checkpoint that is missing, damaged or not one of ours."""


class TrainingError(StanError):
    """A training that cannot go on: it diverged, one of its processes died, another one has its folder."""


class VideoError(StanError):
    """A video file or folder of frames that cannot be read or written."""


def short(value: object) -> str:
    """A value as a message shows it: its `repr`, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:60] + "..." + text[-17:]


def nearest(word: object, known: Iterable[object]) -> str:
    """The end of a message about an unknown name: the known name that is close, else all known names."""
    names = list(map(str, known))
    close = difflib.get_close_matches(str(word)[:80], names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
