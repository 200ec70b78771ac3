"""An open decoder of a video file."""

from __future__ import annotations

import bisect
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.codec
import av.error

from stan.data.frame import Frame
from stan.data.video.container import demux, open_container, reason_of
from stan.data.video.pixels import PictureDecoder
from stan.data.video.properties import CopiedPacket
from stan.errors import VideoError

if TYPE_CHECKING:
    from stan.data.video.reader import VideoClip

ALPHA_FORMAT = "yuva420p"
"""The one format with alpha of VP8 and VP9."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_inherited: list[object] = []  # decoders of the process that this one was forked from


class Session:
    """An open decoder: iterates over frames from the keyframe before ``start`` on, and packets of ``copied``.

    It may be inherited by a forked process. There the decoder's threads do not exist, so that it can be
    neither used nor freed (which waits for them): it is left alone.
    """

    def __init__(self, clip: VideoClip, start: int, copied: Sequence[int] = (), threads: int = 1) -> None:
        self.damaged: list[int] = []  # frame numbers near which something did not decode
        self._owner = os.getpid()
        self._clip = clip
        self._container = open_container(clip.path)
        self._begin: int | None = None  # the time before which frames belong to an earlier keyframe
        self._next = self._seek(start)  # number of the frame that comes next, if all before it decode
        stream = self._container.streams[clip.stream_index]
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        stream.thread_type = "AUTO"
        stream.thread_count = threads
        alpha = clip.properties.pixel_format == ALPHA_FORMAT
        self._decoder = (alpha and alpha_decoder(stream)) or stream.codec_context
        self._decode = PictureDecoder()
        self._first = self._next
        self._seen = 0
        self._last_pts: int | None = None
        self._step = max(1, round(1 / (clip.properties.fps * clip.properties.time_base)))
        self._ready: deque[Frame | CopiedPacket] = deque()
        streams = (stream, *(self._container.streams[k] for k in copied))
        self._packets = demux(self._container, streams, clip.path, clip.salvage)

    def __del__(self) -> None:
        if getattr(self, "_packets", None) is None:
            return
        if self._owner == os.getpid():
            self._packets.close()
            self._container.close()  # now, and not when the cycles inside PyAV are found
        else:
            _inherited.append((self._container, self._stream, self._packets, self._decoder))

    def can_reach(self, start: int) -> bool:
        """Whether reading on is possible, and no slower than seeking to ``start``."""
        if self._owner != os.getpid() or self._next > start:
            return False
        return self._key_before(start) <= self._next

    def number_of(self, frame: Frame) -> int:
        """The number of the frame that was just given out."""
        pts = self._clip.index.pts
        number = bisect.bisect_left(pts, frame.pts + self._origin()) if pts else self._next
        self._next = number + 1
        return number

    def __iter__(self) -> Iterator[Frame | CopiedPacket]:
        return self

    def __next__(self) -> Frame | CopiedPacket:
        while not self._ready:
            self._take(next(self._packets))
        return self._ready.popleft()

    def _seek(self, start: int) -> int:
        """Go to the keyframe before ``start``, by one before that where the format's search goes astray (MPEG, FLV);
        to the first one where it finds none, or cannot search, as raw MJPEG."""
        index, key = self._clip.index, self._key_before(start)
        if key == 0:
            return 0
        last = bisect.bisect_left(index.keyframes, key)
        with suppress(av.error.FFmpegError, OSError, StopIteration):
            for at in range(last, max(-1, last - 4), -1):
                if self._arrives_at(index.places[at], whole=at == last) <= index.pts[index.keyframes[at]]:
                    self._go_to(index.places[at])  # again, as a packet was taken
                    self._begin = index.pts[key]
                    return key
        self._container.close()  # which has read on, looking for the place
        self._container = open_container(self._clip.path)
        return 0

    def _go_to(self, place: int) -> None:
        self._container.seek(place, stream=self._container.streams[self._clip.stream_index], backward=True)

    def _arrives_at(self, place: int, whole: bool) -> float:
        """The time of the frame at which one is after seeking ``place``; infinity if it has none, or is no ``whole``
        keyframe: MPEG may be entered inside of one."""
        self._go_to(place)
        packet = next(self._container.demux(self._container.streams[self._clip.stream_index]))
        return math.inf if packet.pts is None or (whole and not packet.is_keyframe) else packet.pts

    def _key_before(self, start: int) -> int:
        """The frame that decoding begins with to reach ``start``; the first one where the file does not tell."""
        index = self._clip.index
        at = bisect.bisect_right(index.keyframes, start) - 1
        return index.keyframes[at] if at > 0 and index.pts else 0

    def _take(self, packet: av.Packet) -> None:
        """Decode a packet of the video, or pass on another stream's."""
        if packet.stream.index != self._stream.index:
            if packet.dts is not None:
                self._ready.append(CopiedPacket(packet.stream.index, self._shifted(packet)))
            return
        clip, near = self._clip, self._first + self._seen
        try:
            pictures = self._decoder.decode(packet)
        except av.error.FFmpegError as error:
            if self._seen and not clip.salvage:
                raise VideoError(
                    f"{clip.path}: damaged after frame {near - 1}: {reason_of(error)}; "
                    "--salvage goes on behind the damage"
                ) from None
            self.damaged.append(near)
            return
        for picture in pictures:
            assert isinstance(picture, av.VideoFrame)
            if self._begin is not None and picture.pts is not None and picture.pts < self._begin:
                continue
            self._ready.append(self._frame(picture))

    def _frame(self, picture: av.VideoFrame) -> Frame:
        number, properties = self._first + self._seen, self._clip.properties
        size = properties.size
        if (picture.height, picture.width) != size:
            raise VideoError(
                f"{self._clip.path}: frame {number} is {picture.width}x{picture.height} and the first "
                f"{size[1]}x{size[0]}: split the video where its size changes"
            )
        if picture.is_corrupt:
            self.damaged.append(number)
        self._seen += 1
        rgb, alpha = self._decode(picture, properties.colour)
        pts, duration = self._pts_of(picture), picture.duration or 0
        return Frame(rgb, alpha, pts, duration, damaged=bool(picture.is_corrupt))

    def _pts_of(self, picture: av.VideoFrame) -> int:
        """A time that rises from frame to frame, made up where the file has none."""
        last, by_decoding = self._last_pts, self._clip.index.by_decoding
        when = picture.dts if by_decoding else picture.pts
        made_up = 0 if last is None else last + self._step
        pts = made_up if when is None else when - self._origin()
        if last is not None:
            pts = max(pts, last + 1)
            if by_decoding:  # the last frames have no such times: they go on as those before
                self._step = pts - last
        self._last_pts = pts
        return pts

    def _origin(self) -> int:
        return in_ticks(self._clip.origin, self._clip.properties.time_base)

    def _shifted(self, packet: av.Packet) -> av.Packet:
        shift = in_ticks(self._clip.origin, packet.time_base)
        if shift:
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        return packet


def alpha_decoder(stream: av.VideoStream) -> Any:
    """A decoder of VP8 or VP9 marked as having alpha, which FFmpeg's own leaves out; None for other streams."""
    context = stream.codec_context
    name = _ALPHA_DECODERS.get(context.name, "")
    marked = stream.metadata.get("alpha_mode") or stream.metadata.get("ALPHA_MODE")
    if marked != "1" or name not in av.codec.codecs_available:
        return None
    decoder = av.codec.CodecContext.create(name, "r")
    decoder.extradata = context.extradata
    decoder.thread_count = context.thread_count
    return decoder


def in_ticks(microseconds: int, time_base: Fraction) -> int:
    """Microseconds in units of ``time_base``."""
    return round(Fraction(microseconds, 1_000_000) / time_base)
