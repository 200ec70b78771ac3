"""Video files and folders of pictures: reading any, writing what was read with other pixels.

Reading: `open_source` gives a `VideoClip` or a `PicturesClip`; both are `stan.data.Clip` (``name``,
``len()``, ``size``, ``fps``, ``read(start, stop)`` as uint8) and also give float frames in order by
``frames(start, stop)``, with their ``properties``.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

from stan.data.frame import Frame
from stan.data.frames import is_image
from stan.data.video.codecs import OutputSettings
from stan.data.video.output import open_output
from stan.data.video.picture_writer import PictureWriter
from stan.data.video.pictures import PicturesClip, find_pictures
from stan.data.video.properties import CopiedPacket, beside
from stan.data.video.reader import VideoClip
from stan.data.video.unfinished import usable_name
from stan.data.video.writer import VideoWriter
from stan.errors import VideoError

__all__ = [
    "CopiedPacket",
    "Frame",
    "OutputSettings",
    "PictureWriter",
    "PicturesClip",
    "VideoClip",
    "VideoWriter",
    "beside",
    "open_output",
    "open_source",
]


def open_source(
    place: str | os.PathLike[str], *, fps: Fraction | float | str = 25, salvage: bool = False
) -> VideoClip | PicturesClip:
    """Open a video file, a folder of pictures, a single picture, or a glob pattern of pictures.

    Args:
        place: path or pattern.
        fps: frames a second for pictures, which have none of their own.
        salvage: take what can be decoded of a damaged video.

    Raises:
        VideoError: it is none of these, empty, or damaged.
    """
    text = usable_name(place)
    if os.path.isdir(text):
        return PicturesClip(find_pictures(text), fps=fps, name=Path(text).resolve().name)
    if not os.path.exists(text) and any(c in text for c in "*?["):
        return PicturesClip(find_pictures(text), fps=fps)
    if is_image(Path(text)):
        if not os.path.exists(text):
            raise VideoError(f"no such file: {text}")
        return PicturesClip([text], fps=fps, name=Path(text).stem)
    return VideoClip(text, salvage=salvage)
