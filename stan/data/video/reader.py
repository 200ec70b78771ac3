"""Video files: frames by number or in order, with everything a faithful copy needs to know about them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import torch
from torch import Tensor

from stan.data.clips import Clip
from stan.data.frame import Frame
from stan.data.video.colour import UNSPECIFIED, Colour
from stan.data.video.container import (
    ARBITRARY_CLOCK,
    demux,
    first_frame,
    open_container,
    scan,
    video_stream,
)
from stan.data.video.pixels import describe
from stan.data.video.properties import CopiedPacket, Properties, to_uint8
from stan.data.video.session import ALPHA_FORMAT, Session, alpha_decoder
from stan.errors import VideoError

_CENTRED_CHROMA = ("mjpeg", "mpeg1video")


class VideoClip(Clip):
    """A video file as a `stan.data.Clip`: frames by number, and a sequential pass for denoising.

    Opening reads the file through once without decoding, so that the number of frames and their times are
    known exactly (also of variable frame rate), and a truncated file is noticed before any work is done. The
    object may be pickled and used after a fork.

    Args:
        path: a file that FFmpeg can read.
        root: folder of the data set that it belongs to; None: the file's own folder.
        salvage: take what can be decoded of a damaged or truncated file instead of raising.

    Raises:
        VideoError: not a video, no frames, an unsupported codec or pixel format, or truncated.
    """

    def __init__(
        self, path: str | os.PathLike[str], root: Path | None = None, *, salvage: bool = False
    ) -> None:
        self.path = Path(path)
        self.salvage = salvage
        self.damage: list[str] = []
        self._session: Session | None = None
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            self.stream_index = stream.index
            self.index = scan(container, stream, self.path)
            arbitrary = container.format.name in ARBITRARY_CLOCK
            self.origin = container.start_time or 0 if arbitrary else 0  # microseconds to subtract from times
        if self.index.declared:
            if not salvage:
                raise VideoError(
                    f"{self.path} is truncated: {self.index.declared}; --salvage takes the frames that are there"
                )
            self.damage.append(f"truncated: {self.index.declared}")
        self.properties = self._probe()
        fps, root = float(self.properties.fps), root or self.path.parent
        super().__init__(self.path.stem, self.index.frames, self.properties.size, fps, root, [self.path])

    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> Tensor:
        return torch.stack([to_uint8(frame.rgb[:, rows, columns]) for frame in self.frames(start, stop)])

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Frames ``start`` to ``stop`` (None: the last) in order; seeks, unless the last call ended where
        this one starts.

        Raises:
            IndexError: not ``0 <= start <= stop <= len(clip)``.
            VideoError: a frame that cannot be decoded.
        """
        stop = self._check(start, stop)
        if start == stop:
            return
        session, self._session = self._session, None
        if session is None or not session.can_reach(start):
            session = Session(self, start)
        expected = start
        for frame in session:
            assert isinstance(frame, Frame)
            number = session.number_of(frame)
            if number < expected:
                continue
            if number > expected and not self.salvage:
                break
            self._check_damage(frame, number)
            expected = number + 1
            if expected >= stop:
                self._session = session
            yield frame
            if expected >= stop:
                return
        if not self.salvage:
            raise VideoError(f"{self.path}: frame {expected} of {len(self)} cannot be decoded")

    def frames_and_packets(self, copied: Sequence[int] = ()) -> Iterator[Frame | CopiedPacket]:
        """All frames in order, and between them the packets of the streams ``copied`` (their indices) as they
        lie in the file.

        Time stamps start at zero for formats with an arbitrary clock (MPEG-TS and PS), else they are the
        file's own.
        """
        session = Session(self, 0, copied, threads=0)
        number = 0
        for item in session:
            if isinstance(item, Frame):
                self._check_damage(item, number)
                number += 1
            yield item
        if session.damaged:
            places = len(session.damaged)
            self.damage.append(f"damaged in {places} places, the first near frame {session.damaged[0]}")

    def _check_damage(self, frame: Frame, number: int) -> None:
        if frame.damaged and not self.salvage:
            place = f"after frame {number - 1}" if number else "at its start"
            raise VideoError(
                f"{self.path}: damaged {place}: the decoder guesses a part of the next frame; "
                "--salvage takes it so"
            )

    def damage_found(self, frames: int) -> list[str]:
        """What was found wrong while the file was read, in lines; ``frames`` of it came out."""
        lines = [f"{self.path}: {line}" for line in self.damage]
        if frames != len(self):
            lines.append(f"{self.path}: {frames} of {len(self)} frames could be decoded")
        return lines

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_session": None}

    def _probe(self) -> Properties:
        """Properties of the stream, completed by those of its first frame."""
        with open_container(self.path) as container:
            stream = container.streams[self.stream_index]
            assert isinstance(stream, av.VideoStream)
            assert stream.time_base is not None
            frame = first_frame(container, stream, self.path)
            pixel_format = frame.format.name.replace("yuvj", "yuv")
            if self._has_vpx_alpha():
                pixel_format = ALPHA_FORMAT
            describe(pixel_format)
            context = stream.codec_context
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
            full_range = frame.format.name.startswith("yuvj")
            return Properties(
                height=frame.height,
                width=frame.width,
                fps=Fraction(rate),
                time_base=Fraction(stream.time_base),
                pixel_format=pixel_format,
                colour=Colour(
                    matrix=_tag(int(frame.colorspace), int(context.colorspace)),
                    range=2 if full_range else int(frame.color_range) or int(context.color_range),
                    primaries=_tag(int(frame.color_primaries), int(context.color_primaries)),
                    transfer=_tag(int(frame.color_trc), int(context.color_trc)),
                    centred=context.name in _CENTRED_CHROMA,
                ),
                pixel_aspect=Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1),
                display_matrix=_display_matrix(frame),
                interlaced=bool(frame.interlaced_frame),
                codec=context.name,
            )

    def _has_vpx_alpha(self) -> bool:
        """Whether there is alpha in VP8 or VP9: the mark may be left of a time before another conversion."""
        with open_container(self.path) as container:
            stream = container.streams[self.stream_index]
            assert isinstance(stream, av.VideoStream)
            if (decoder := alpha_decoder(stream)) is None:
                return False
            for packet in demux(container, (stream,), self.path, salvage=True):
                with suppress(av.error.FFmpegError):
                    for frame in decoder.decode(packet):
                        return bool(frame.format.name == ALPHA_FORMAT)
        return False


def _tag(of_frame: int, of_stream: int) -> int:
    return of_stream if of_frame == UNSPECIFIED else of_frame


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else tuple(int(v) for v in np.frombuffer(bytes(data), dtype=np.int32))
