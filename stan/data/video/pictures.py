"""Folders of pictures as video: 8 or 16 bits or float, colour or grey, with or without alpha.

`stan.data.frames` reads the same files for training, reduced to 8-bit RGB; here everything in them is kept.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from stan.data.clips import Clip
from stan.data.frame import Frame
from stan.data.frames import IMAGE_SUFFIXES, is_image, natural_key
from stan.data.image_files import full_scale, several
from stan.data.video.colour import FULL, Colour
from stan.data.video.properties import Properties, to_uint8
from stan.errors import VideoError

_SRGB = Colour(matrix=0, range=FULL, primaries=1, transfer=13)
_DEPTHS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16, np.dtype(np.float32): 16}


class PicturesClip(Clip):
    """A sequence of picture files of one size and kind as a `stan.data.Clip`.

    Args:
        paths: the files in order; see `find_pictures`.
        fps: frames a second, for the output's time stamps only.
        name: what to call it; the folder's name if not given.

    Raises:
        VideoError: no pictures, the first cannot be read, or `frame_rate` refuses ``fps``.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], *, fps: Fraction | float | str = 25, name: str = ""
    ) -> None:
        self.paths = [Path(p) for p in paths]
        if not self.paths:
            raise VideoError("no pictures to read")
        first = read_picture(self.paths[0])
        self._shape, self._dtype = first.shape, first.dtype
        rate = frame_rate(fps)
        super().__init__(
            name or self.paths[0].parent.name, len(paths), (first.shape[0], first.shape[1]), float(rate)
        )
        self.properties = Properties(
            height=first.shape[0],
            width=first.shape[1],
            fps=rate,
            time_base=1 / rate,
            pixel_format=_channels(first.shape)[_DEPTHS[first.dtype] // 8],
            colour=_SRGB,
            codec=self.paths[0].suffix.lstrip(".").lower(),
            float_samples=first.dtype == np.float32,
        )

    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> Tensor:
        return torch.stack([to_uint8(frame.rgb[:, rows, columns]) for frame in self.frames(start, stop)])

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Frames ``start`` to ``stop`` (None: the last) in order.

        Raises:
            IndexError: not ``0 <= start <= stop <= len(clip)``.
            VideoError: a damaged picture, or one of another size or kind than the first; it is named.
        """
        for number in range(start, self._check(start, stop)):
            path = self.paths[number]
            picture = read_picture(path)
            if picture.shape != self._shape or picture.dtype != self._dtype:
                raise VideoError(
                    f"{path} is {_kind(picture.shape, picture.dtype)} and {self.paths[0].name} is "
                    f"{_kind(self._shape, self._dtype)}: all pictures must be alike"
                )
            rgb, alpha = _to_float(picture)
            yield Frame(rgb, alpha, pts=number, duration=1, name=path.stem)

    def frames_and_packets(self, copied: Sequence[int] = ()) -> Iterator[Frame]:
        """All frames; pictures have no other streams. (As `VideoClip` has it.)"""
        return self.frames()

    def damage_found(self, frames: int) -> list[str]:
        """Nothing: a damaged picture is an error. (As `VideoClip` has it.)"""
        return []


def frame_rate(fps: Fraction | float | str) -> Fraction:
    """Frames a second as an exact ratio, from a number or text such as ``"30000/1001"``.

    Raises:
        VideoError: no number, not positive, or above 1000.
    """
    try:
        rate = Fraction(fps).limit_denominator(1001000)
    except (ValueError, OverflowError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise VideoError(f"frame rate {fps} is not positive and at most 1000: write 25, 23.976 or 30000/1001")
    return rate


def find_pictures(place: str | os.PathLike[str]) -> list[Path]:
    """The picture files of a folder, or those that a glob pattern names, in natural order (9 before 10).

    Raises:
        VideoError: nothing there.
    """
    text = os.fspath(place)
    if os.path.isdir(text):
        found = [p for p in Path(text).iterdir() if is_image(p) and p.is_file()]
        if not found:
            raise VideoError(f"{text} holds no pictures ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))})")
    else:
        found = [p for p in map(Path, glob.glob(text, recursive=True)) if is_image(p)]
        if not found:
            raise VideoError(f"no picture matches {text!r}")
    return sorted(found, key=lambda p: (str(p.parent), natural_key(p)))


def read_picture(path: Path) -> np.ndarray:
    """A picture as stored: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or float32. A camera's EXIF
    turn is applied to JPEG, and the samples of PPM are scaled so that the highest is that of their type.

    Raises:
        VideoError: missing, damaged, cut short, of several pictures, or of a sample type that is not supported.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if not data:
        raise VideoError(f"{path} is empty (0 bytes)")
    jpeg = data.startswith(b"\xff\xd8")
    if jpeg and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:
        raise VideoError(f"{path} is cut short (no end marker)")
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        raise VideoError(f"{path} is cut short (no end marker)")
    if reason := several(path, data):
        raise VideoError(reason)
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if jpeg else cv2.IMREAD_UNCHANGED
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        picture = None
    if picture is None:
        raise VideoError(f"{path} is not a picture that can be read, or is damaged")
    if picture.dtype not in _DEPTHS:
        raise VideoError(f"{path} holds {picture.dtype} samples: use 8 or 16 bits, or 32-bit float")
    picture = full_scale(picture, data)
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    if picture.ndim == 3:
        picture = np.ascontiguousarray(picture[..., [2, 1, 0, 3][: picture.shape[2]]])
    return picture


def write_picture(path: Path, picture: np.ndarray, settings: Sequence[int] = ()) -> None:
    """Write (H, W), (H, W, 3) RGB or (H, W, 4) RGBA to ``path``; the ending decides the format.

    ``settings`` are OpenCV's ``IMWRITE_*`` pairs.

    Raises:
        OSError: the file cannot be written.
    """
    if picture.ndim == 3:
        picture = picture[..., [2, 1, 0, 3][: picture.shape[2]]]
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(picture), list(settings))
    if not done:
        raise VideoError(
            f"{path}: a picture of {_kind(picture.shape, picture.dtype)} cannot be stored as {path.suffix}"
        )
    path.write_bytes(data.tobytes())


def _to_float(picture: np.ndarray) -> tuple[Tensor, Tensor | None]:
    values = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32))
    if picture.dtype != np.float32:
        values = values / float(np.iinfo(picture.dtype).max)
    if values.ndim == 2:
        return values.expand(3, -1, -1), None
    planes = values.permute(2, 0, 1)
    return planes[:3].contiguous(), planes[3].contiguous() if len(planes) == 4 else None


# Channels of a picture (0: no axis of them) -> their name, and FFmpeg's formats of 8 and of 16 bits
_CHANNELS = {
    0: ("grey", "gray", "gray16le"),
    3: ("RGB", "rgb24", "rgb48le"),
    4: ("RGBA", "rgba", "rgba64le"),
}


def _channels(shape: tuple[int, ...]) -> tuple[str, str, str]:
    return _CHANNELS[shape[2] if len(shape) == 3 else 0]


def _kind(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{shape[1]}x{shape[0]} {_channels(shape)[0]} {dtype}"
