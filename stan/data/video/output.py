"""Where a result goes: a video, a folder of pictures or one picture, checked before any work is done."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from stan.data.frames import IMAGE_SUFFIXES, is_image
from stan.data.video.codecs import CODECS, CONTAINERS, OutputSettings, choose_encoding
from stan.data.video.picture_writer import PICTURE_FORMATS, PictureWriter, is_replaceable
from stan.data.video.pictures import PicturesClip
from stan.data.video.properties import doubled
from stan.data.video.reader import VideoClip
from stan.data.video.unfinished import cannot_write, usable_name
from stan.data.video.writer import VideoWriter
from stan.errors import VideoError


def open_output(
    output: str | os.PathLike[str], source: VideoClip | PicturesClip, settings: OutputSettings
) -> VideoWriter | PictureWriter:
    """Begin to write ``output``.

    Args:
        output: a video by its ending (`CONTAINERS`); a picture by its ending if the source has one frame; else
            a folder, to which a name without an ending, with a slash behind it, or of an existing folder points.
        source: whose streams, metadata and properties are kept.
        settings: how.

    Raises:
        VideoError: a place that cannot be written, exists, or is the source itself; settings that do not go
            together.
    """
    text = usable_name(output)
    path = Path(text)
    folder = path.is_dir() or text.endswith(("/", os.sep)) or not path.suffix
    _check_place(path, folder, source, settings.overwrite)
    properties = doubled(source.properties) if settings.compare else source.properties
    if not folder and path.suffix.lower() in CONTAINERS:
        video = source if isinstance(source, VideoClip) else None
        encoding = choose_encoding(path, properties, settings)
        return VideoWriter(path, properties, encoding, copied_from=video)
    if not folder and not is_image(path):
        near = difflib.get_close_matches(path.suffix.lower(), (*CONTAINERS, *IMAGE_SUFFIXES), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise VideoError(
            f"cannot write {text!r}: {path.suffix} is none of {', '.join(CONTAINERS)}{hint}; "
            "end the name with / for a folder of pictures"
        )
    if not folder and len(source) > 1:
        raise VideoError(
            f"{text} is one picture and {source.name} has {len(source)} frames: name a folder or a video"
        )
    kind = _picture_format(settings)
    return PictureWriter(path, properties, picture_format=kind, quality=settings.quality, single=not folder)


def _check_place(path: Path, folder: bool, source: VideoClip | PicturesClip, overwrite: bool) -> None:
    inputs = [source.path] if isinstance(source, VideoClip) else source.paths
    if not path.parent.is_dir():
        raise cannot_write(path, FileNotFoundError())
    if path.exists():
        same = any(os.path.samefile(p, path) for p in inputs if p.exists())
        if same or (folder and os.path.samefile(inputs[0].parent, path)):
            raise VideoError(f"output {path} is the input itself: choose another name")
    if folder and path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise VideoError(f"the folder {path} is not empty: choose another, or --overwrite")
        if not is_replaceable(path):
            raise VideoError(
                f"the folder {path} holds more than pictures and is not overwritten: choose another"
            )
    elif path.exists() and not path.is_dir() and not overwrite:
        raise VideoError(f"{path} exists: choose another name, or --overwrite")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise VideoError(f"{path} is neither a file nor a folder")
    if not os.access(path.parent, os.W_OK):
        raise cannot_write(path, PermissionError(13, "permission denied"))


def _picture_format(settings: OutputSettings) -> str | None:
    name = settings.codec
    if name in CODECS:
        raise VideoError(
            f"codec {name} makes a video: end the output with one of {', '.join(CODECS[name].suffixes)}"
        )
    if name is not None and name not in PICTURE_FORMATS:
        raise VideoError(f"unknown picture format {name!r}: png, jpeg or tiff")
    if name in ("jpeg", "jpg") and settings.lossless:
        raise VideoError("jpeg is never lossless: use png or tiff")
    if settings.pixel_format or settings.options:
        raise VideoError("pixel format and encoder options are for videos: leave them out for pictures")
    return name
