"""Writing frames as a folder of pictures, or one frame as one picture."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch

from stan.data.frame import Frame
from stan.data.frames import is_image
from stan.data.video.pictures import write_picture
from stan.data.video.pixels import describe
from stan.data.video.properties import Properties, upright
from stan.data.video.unfinished import Unfinished, cannot_write
from stan.errors import VideoError

PICTURE_FORMATS = {"png": ".png", "jpeg": ".jpg", "jpg": ".jpg", "tiff": ".tif", "tif": ".tif"}


class PictureWriter:
    """Writes each frame as a picture into a temporary folder, which takes its final name when it is complete.

    Pictures keep the source's depth (8 or 16 bits, or float in TIFF; 9 to 14 bits become 16), grey stays
    grey, alpha stays where the format has it. They are turned upright, since pictures carry no turn of their
    own.

    Args:
        path: a folder, or with ``single`` the name of one picture.
        properties: of the source.
        picture_format: a key of `PICTURE_FORMATS`; None is the ending of ``path`` if ``single``, else PNG.
        quality: of JPEG, 1 to 100 (best).
        single: ``path`` is one picture.

    Raises:
        VideoError: the folder above is missing or not writable, or format and quality do not go together.
    """

    def __init__(
        self,
        path: Path,
        properties: Properties,
        *,
        picture_format: str | None = None,
        quality: int | None = None,
        single: bool = False,
    ) -> None:
        self.path = path
        self.properties = properties
        self.single = single
        self.frames = 0
        self._suffix = path.suffix if single else PICTURE_FORMATS[picture_format or "png"]
        held = describe(properties.pixel_format)
        self._grey = held.family == "grey"
        self.notes: list[str] = []
        lossy = self._suffix.lower() in (".jpg", ".jpeg")
        narrow = lossy or self._suffix.lower() not in (".png", ".tif", ".tiff")
        self._settings: tuple[int, ...] = ()
        if lossy:
            value = 95 if quality is None else quality
            if not 1 <= value <= 100:
                raise VideoError(f"quality {value} is outside 1 to 100 (best) of JPEG")
            self._settings = (cv2.IMWRITE_JPEG_QUALITY, value)
        elif quality is not None:
            raise VideoError(f"quality {quality} has no meaning for {self._suffix}: it is lossless")
        if held.alpha and narrow:
            self.notes.append(f"{self._suffix} keeps no alpha here: it is left out (PNG and TIFF keep it)")
        if held.bits > 8 and narrow:
            self.notes.append(f"{self._suffix} keeps 8 of {held.bits} bits (PNG and TIFF keep 16)")
        self._alpha = held.alpha and not narrow
        self._float = properties.float_samples and self._suffix.lower() in (".tif", ".tiff")
        self._peak = 65535 if held.bits > 8 and not narrow else 255
        self._folder = Unfinished(path, folder=True)

    @property
    def copied(self) -> tuple[int, ...]:
        """Pictures carry no other streams."""
        return ()

    def write(self, frame: Frame) -> None:
        """Write a frame under its own name, or its number.

        Raises:
            VideoError: the disk is full or gone.
        """
        name = frame.name or f"{self.frames:05d}"
        path = self._folder.place / f"{name}{self._suffix}"
        if path.exists():
            path = self._folder.place / f"{name}-{self.frames:05d}{self._suffix}"
        try:
            write_picture(path, self._samples(frame), self._settings)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.frames += 1

    def finish(self, path: Path | None = None, *, complete: bool = True) -> Path:
        """Give the folder (or picture) its final name, or ``path``; what was there is replaced."""
        path = path or self.path
        try:
            if self.single:
                os.replace(next(self._folder.place.iterdir()), path)
                self._folder.discard()
            else:
                self._folder.take_name(path)
        except OSError as error:
            self.discard()
            raise cannot_write(path, error) from None
        return path

    def discard(self) -> None:
        """Delete what was written; the final name is left as it was."""
        self._folder.discard()

    def _samples(self, frame: Frame) -> np.ndarray:
        """(H, W), (H, W, 3) or (H, W, 4) of the file's own sample type."""
        planes = frame.rgb.mean(0, keepdim=True) if self._grey and not self._alpha else frame.rgb
        if self._alpha:
            alpha = frame.alpha if frame.alpha is not None else torch.ones(frame.rgb.shape[1:])
            planes = torch.cat((planes, alpha[None]))  # (4, H, W)
        if not self._float:
            planes = (planes * self._peak).round().clamp(0, self._peak)
        values = upright(planes, self.properties).permute(1, 2, 0).numpy()  # (H, W, C)
        kind = np.float32 if self._float else np.uint16 if self._peak > 255 else np.uint8
        values = np.ascontiguousarray(values, dtype=kind)
        return values[:, :, 0] if values.shape[2] == 1 else values


def is_replaceable(folder: Path) -> bool:
    """Whether a folder holds nothing but pictures, so that it may be replaced as a whole."""
    return all(is_image(p) and p.is_file() for p in folder.iterdir())
