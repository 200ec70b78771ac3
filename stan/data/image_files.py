"""What OpenCV does not say of an image file: how many pictures it holds, and which sample is its highest."""

from __future__ import annotations

import re
import shlex
import struct
from pathlib import Path

import numpy as np

_NETPBM = re.compile(rb"P([2356])(?:(?:\s|#[^\n]*\n)+\d+){2}(?:\s|#[^\n]*\n)+(\d+)")
"""The header of PGM (2, 5) and PPM (3, 6), plain (2, 3) or not, to its highest sample."""


def full_scale(picture: np.ndarray, data: bytes) -> np.ndarray:
    """The samples that OpenCV gave for a file, those of PGM and PPM scaled so that the highest that its header names is
    that of their type; OpenCV does so for plain ones of 8 bits."""
    header = _NETPBM.match(data)
    if header is None:
        return picture
    peak, full = int(header[2]), np.iinfo(picture.dtype).max
    if not 0 < peak < full or (header[1] in b"23" and full == 255):
        return picture
    return ((np.minimum(picture, peak).astype(np.uint32) * full + peak // 2) // peak).astype(picture.dtype)


def several(path: Path, data: bytes) -> str:
    """What is wrong with a file of several pictures, of which OpenCV gives the first without a word; else empty."""
    name = shlex.quote(str(path))
    number, command = 1, ""
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        number, command = _tiff_pages(data), f"tiffsplit {name} page_"
    elif data[8:16] == b"WEBPVP8X" and data[20] & 2:  # animated
        number, command = data.count(b"ANMF"), f"convert {name} -coalesce page%05d.png"
    elif data.startswith(b"\x89PNG") and (control := data.find(b"acTL", 0, data.find(b"IDAT"))) > 0:
        (number,) = struct.unpack_from(">I", data, control + 4)
        command = f"ffmpeg -i {name} page%05d.png"
    return f"{path} holds {number} pictures instead of one: split it first ({command})" if number > 1 else ""


def _tiff_pages(data: bytes) -> int:
    """Pages of a TIFF file, leaving out smaller copies and masks of them."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    many, size, offset, value = ("Q", 20, "Q", 12) if big else ("H", 12, "I", 8)
    pages, seen = 0, {0}
    try:
        (place,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        while place not in seen:
            seen.add(place)
            (entries,) = struct.unpack_from(order + many, data, place)
            first = place + struct.calcsize(many)
            tag, kind = struct.unpack_from(order + "HH", data, first)
            role = 0
            if tag == 254:  # NewSubfileType, the lowest of all tags, which are in order
                (role,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, first + value)
            pages += not role & 0b101
            (place,) = struct.unpack_from(order + offset, data, first + entries * size)
    except struct.error:  # it is damaged there
        pass
    return pages
