"""Whether a video file ends before its own structure does.

Counts and durations of headers cannot tell: those of AVI count padding and frames that were dropped, those of MP4 what
an edit list hides, and a piece of a longer recording begins anywhere. Boxes, chunks and elements say how long they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

STRUCTURED = ("avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
"""FFmpeg's names of the formats that `missing_bytes` knows."""

SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(path: Path, container: str) -> int:
    """How many bytes the outermost parts of a file reach beyond its end: 0 where they do not, or do not say.

    Args:
        path: the file.
        container: FFmpeg's name of its format, one of `STRUCTURED`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        end = (
            _end_of_segment(file)
            if container.startswith("matroska")
            else _end_of_parts(file, size, container)
        )
    return max(0, end - size)


def _end_of_parts(file: BinaryIO, size: int, container: str) -> int:
    """Where the last of the boxes of an MP4 (ISO 14496-12), or of the RIFF chunks of an AVI, ends."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        if container == "avi":
            if not head.startswith(b"RIFF"):
                break
            length = 8 + int.from_bytes(head[4:8], "little")
            length += length % 2
        else:
            if not head[4:8].isalnum():
                break  # padding
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
        if length < 8:  # to the end of the file, or not known: written by a program that did not end
            break
        place += length
    return place


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment of a Matroska file ends; 0 if it does not say, as of a live recording (RFC 8794)."""
    file.seek(4)  # behind the identifier of the EBML header
    length = _size(file)
    if length is None:
        return 0
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return 0
    length = _size(file)
    return 0 if length is None else file.tell() + length


def _size(file: BinaryIO) -> int | None:
    """The size of an element: as many bytes as its first one has leading zeros, and one; all ones are "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value
