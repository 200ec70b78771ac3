"""Uncompressed frames on a pipe: Y4M, which says what it holds, and raw frames, which do not.

Y4M: https://wiki.multimedia.cx/index.php/YUV4MPEG2 with FFmpeg's extensions for depth and range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.error

from stan.data.frame import Frame
from stan.data.video.colour import FULL, LIMITED, UNSPECIFIED, Colour
from stan.data.video.pixels import PictureDecoder, PictureEncoder, describe
from stan.data.video.properties import Properties
from stan.errors import VideoError

_MAGIC = b"YUV4MPEG2"
_LONGEST_LINE = 1024


@dataclass(frozen=True)
class RawFormat:
    """Size of raw frames and FFmpeg's name of their pixel format, e.g. ``RawFormat(720, 1280, "rgb24")``."""

    height: int
    width: int
    pixel_format: str


class RawReader:
    """Frames of a binary stream, one by one, as they come.

    Args:
        stream: open for reading.
        raw: what the frames are; None for Y4M, whose header says so.

    Raises:
        VideoError: no Y4M header, an unknown colour layout, or a stream that ends inside a frame.
    """

    def __init__(self, stream: BinaryIO, raw: RawFormat | None = None) -> None:
        self._stream = stream
        self.header = b"" if raw else self._line()
        if not raw and not self.header.startswith(_MAGIC):
            found = f"begins with {self.header[:12]!r}" if self.header else "is empty"
            raise VideoError(
                f"the input stream {found} and is not Y4M (ffmpeg -f yuv4mpegpipe); "
                "raw frames need --raw and --size"
            )
        self.properties = _raw_properties(raw) if raw else _y4m_properties(self.header)
        p = self.properties
        self._decoder: Any = _codec("r", p.height, p.width, p.pixel_format)
        encoder = _codec("w", p.height, p.width, p.pixel_format)
        try:
            self._bytes = len(bytes(encoder.encode(av.VideoFrame(p.width, p.height, p.pixel_format))[0]))
        except (av.error.FFmpegError, OverflowError, MemoryError):
            raise VideoError(
                f"frames of {p.width}x{p.height} {p.pixel_format} are larger than can be held: "
                "is the stream's size right?"
            ) from None
        self._picture = PictureDecoder()

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        while True:
            if self.header:
                if not (line := self._line()):
                    return
                if not line.startswith(b"FRAME"):
                    raise VideoError(
                        f"frame {number} of the Y4M stream begins with {line[:12]!r}, not with FRAME"
                    )
            data = self._stream.read(self._bytes)
            if not data and not self.header:
                return
            if len(data) < self._bytes:
                raise VideoError(f"the stream ends inside frame {number}: {len(data)} of {self._bytes} bytes")
            (picture,) = self._decoder.decode(av.Packet(data))
            rgb, alpha = self._picture(picture, self.properties.colour)
            yield Frame(rgb, alpha, pts=number, duration=1)
            number += 1

    def _line(self) -> bytes:
        return self._stream.readline(_LONGEST_LINE)


class RawWriter:
    """Writes frames to a binary stream in the format of a `RawReader`, each at once."""

    def __init__(self, stream: BinaryIO, reader: RawReader) -> None:
        p = reader.properties
        self._stream = stream
        self._y4m = bool(reader.header)
        self._picture = PictureEncoder(p.pixel_format, p.colour)
        self._encoder: Any = _codec("w", p.height, p.width, p.pixel_format)
        self._number = 0
        self._stream.write(reader.header)
        self._stream.flush()

    def write(self, frame: Frame) -> None:
        """Write one frame.

        Raises:
            OSError: the other side has gone (BrokenPipeError), or the disk is full.
        """
        picture = self._picture(frame.rgb, frame.alpha)
        picture.pts = self._number
        self._number += 1
        (packet,) = self._encoder.encode(picture)
        self._stream.write(b"FRAME\n" + bytes(packet) if self._y4m else bytes(packet))
        self._stream.flush()


def _codec(mode: str, height: int, width: int, pixel_format: str) -> Any:
    context: Any = av.CodecContext.create("rawvideo", mode)  # type: ignore[call-overload]
    context.width, context.height = width, height
    context.pix_fmt = pixel_format
    if mode == "w":
        context.time_base = Fraction(1, 25)
    return context


def _raw_properties(raw: RawFormat) -> Properties:
    family = describe(raw.pixel_format).family
    limited = family == "yuv" and not raw.pixel_format.startswith("yuvj")
    colour = Colour(0 if family == "rgb" else UNSPECIFIED, LIMITED if limited else FULL)
    rate = Fraction(25)
    return Properties(raw.height, raw.width, rate, 1 / rate, raw.pixel_format, colour, codec="rawvideo")


def _y4m_properties(header: bytes) -> Properties:
    """Properties from the line ``YUV4MPEG2 W176 H144 F30000:1001 Ip A1:1 C420mpeg2 XCOLORRANGE=LIMITED``."""
    words = header.decode("ascii", "replace").split()[1:]
    fields = {word[0]: word[1:] for word in words if not word.startswith("X")}
    extra = dict(word[1:].partition("=")[::2] for word in words if word.startswith("X"))
    layout = fields.get("C", "420jpeg")
    pixel_format = _y4m_pixel_format(layout)
    try:
        height, width = int(fields["H"]), int(fields["W"])
        rate = _ratio(fields.get("F", "25:1"))
    except (KeyError, ValueError, ZeroDivisionError):
        height = width = 0
    if min(height, width) < 1 or rate <= 0:
        raise VideoError(f"the Y4M header {header[:80]!r} has no valid size and rate")
    code_range = FULL if extra.get("COLORRANGE") == "FULL" else LIMITED
    return Properties(
        height=height,
        width=width,
        fps=rate,
        time_base=1 / rate,
        pixel_format=pixel_format,
        colour=Colour(range=code_range, centred=layout in ("420jpeg", "420")),
        interlaced=fields.get("I", "p") in ("t", "b", "m"),
        codec="yuv4mpeg",
    )


def _y4m_pixel_format(layout: str) -> str:
    """FFmpeg's name of a Y4M colour layout such as 420jpeg, 422p10, mono12, 444alpha."""
    if layout == "444alpha":
        return "yuva444p"
    if layout in ("420", "420jpeg", "420mpeg2", "420paldv"):
        return "yuv420p"
    kind, bits = layout.partition("p")[::2] if layout[0] in "4" else ("mono", layout[4:])
    known = layout.startswith("mono") or kind in ("411", "420", "422", "444")
    if known and bits in ("", "9", "10", "12", "14", "16"):
        suffix = f"{bits}le" if bits else ""
        return f"gray{suffix}" if layout.startswith("mono") else f"yuv{kind}p{suffix}"
    raise VideoError(
        f"Y4M colour layout C{layout} is not known: use 420, 422, 444 or mono (ffmpeg -pix_fmt yuv420p)"
    )


def _ratio(text: str) -> Fraction:
    numerator, _, denominator = text.partition(":")
    return Fraction(int(numerator), int(denominator or 1))
