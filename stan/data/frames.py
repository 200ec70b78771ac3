"""Single frames from image files: decoding to RGB, and telling a damaged file from a good one."""

from __future__ import annotations

import re
from pathlib import Path

import av
import av.error
import cv2
import numpy as np

from stan.data.image_files import full_scale, several
from stan.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image that we read; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which `frame_2` comes before `frame_10`."""
    parts = re.split(r"(\d+)", path.name.lower())
    return tuple((0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part)


def read_frame(path: Path, *, strict: bool = False) -> np.ndarray:
    """Decode one frame.

    Grey becomes RGB, an alpha channel is dropped, 16 bits are rounded to 8 (v / 257), an EXIF rotation is
    applied; the highest sample that a PPM names is white.

    Args:
        path: an image file.
        strict: decode a JPEG a second time with FFmpeg, which, unlike the decoders of OpenCV, torchvision and
            Pillow, reports damage inside the picture data instead of painting over it. Takes twice as long,
            and finds about 19 of 20 frames in which 4 KiB were overwritten; a flipped bit often passes.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        DataError: missing, damaged, not an image, of several pictures, or neither 8 nor 16 bits; names the file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"frame {path} is missing") from None
    except OSError as error:
        raise DataError(f"frame {path} cannot be read: {error.strerror or error}") from None
    if not data:
        raise DataError(f"frame {path} is damaged: the file is empty")
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(path, data, strict)
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        raise DataError(f"frame {path} is damaged: the PNG file ends too early")
    if reason := several(path, data):
        raise DataError(f"frame {reason}")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"frame {path} is damaged or not an image: it does not decode")
    image = full_scale(image, data)
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise DataError(f"frame {path} holds {image.dtype} values: save it with 8 or 16 bits")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _check_jpeg(path: Path, data: bytes, strict: bool) -> None:
    """Raise a DataError if a JPEG is cut short or, when strict, if its picture data is damaged."""
    # Some decoders fill the missing part of a truncated file with grey and say nothing.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise DataError(f"frame {path} is damaged: the JPEG file ends too early")
    if not strict:
        return
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    decoder.thread_count = 1
    try:
        decoder.decode(av.Packet(data))
    except av.error.PatchWelcomeError:  # a JPEG variety that FFmpeg does not know: no second opinion
        return
    except av.error.FFmpegError:
        raise DataError(f"frame {path} is damaged: its JPEG picture data has errors") from None
