"""Writing a video file that shares everything but the pixels with its source."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from stan.data.frame import Frame
from stan.data.video.codecs import CONTAINERS, Encoding
from stan.data.video.pixels import PictureEncoder
from stan.data.video.properties import CopiedPacket, Properties
from stan.data.video.reader import VideoClip
from stan.data.video.unfinished import DISK_ERRORS, Unfinished, cannot_write
from stan.errors import VideoError

_COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
"""Codecs of cover pictures that are copied: the ending of a file of them, and their media type."""
_OWN_METADATA = ("encoder", "major_brand", "minor_version", "compatible_brands", "DURATION")


class VideoWriter:
    """Encodes frames and copies packets into a temporary file, which takes its final name when it is complete.

    The output has the source's time base, time stamps, pixel aspect, display matrix and metadata; the audio,
    subtitle and attachment streams of ``copied_from`` that its container can hold are copied as they are, cover
    pictures in the container's own way.
    What cannot be kept is told in `notes`.

    Args:
        path: final name. Its folder must exist.
        properties: of the pictures to be written; frames carry times in its ``time_base``.
        encoding: see `choose_encoding`.
        copied_from: the video whose other streams, chapters and metadata are copied.

    Raises:
        VideoError: the folder is missing or not writable, or the encoder refuses the pictures.
    """

    def __init__(
        self, path: Path, properties: Properties, encoding: Encoding, *, copied_from: VideoClip | None = None
    ) -> None:
        self.path = path
        self.properties = properties
        self.notes = list(encoding.losses)
        self.frames = 0
        self._durations: dict[int, int] = {}
        self._waiting: deque[av.Packet] = deque()
        self._covers: list[av.Packet] = []  # of containers in which a cover is a stream
        self._encode = PictureEncoder(encoding.pixel_format, encoding.colour)
        self._file = Unfinished(path)
        try:
            self._container = av.open(str(self._file.place), "w", format=CONTAINERS[path.suffix.lower()])
            self._stream = self._add_stream(encoding)
            self._copies = self._add_copies(copied_from) if copied_from is not None else {}
            self._container.start_encoding()
            for picture in self._covers:
                self._container.mux_one(picture)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.discard()
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise cannot_write(path, error) from None
            size = f"{properties.width}x{properties.height}"
            raise VideoError(
                f"{encoding.encoder} cannot write {size} {encoding.pixel_format} into {path.suffix} "
                f"({' '.join(f'{k}={v}' for k, v in encoding.options.items())}): "
                f"{getattr(error, 'strerror', None) or error}; try another --codec, or "
                + ("a folder of pictures" if encoding.encoder == "ffv1" else "--lossless with .mkv")
            ) from None

    @property
    def copied(self) -> tuple[int, ...]:
        """Indices of the source's streams whose packets are to be handed to `write`."""
        return tuple(self._copies)

    def write(self, frame: Frame | CopiedPacket) -> None:
        """Encode a frame, or copy a packet of one of the streams `copied` when the pictures have come as far
        as its time.

        Raises:
            VideoError: the disk is full or gone.
        """
        if isinstance(frame, CopiedPacket):
            frame.packet.stream = self._copies[frame.stream]
            self._waiting.append(frame.packet)
            return
        picture = self._encode(frame.rgb, frame.alpha)
        picture.pts = frame.pts
        picture.time_base = self.properties.time_base
        self._durations[frame.pts] = frame.duration
        now = frame.pts * self.properties.time_base
        with self._guarded():
            self._mux(self._stream.encode(picture))
            self.frames += 1
            while self._waiting and _time(self._waiting[0]) <= now:
                self._container.mux_one(self._waiting.popleft())

    def finish(self, path: Path | None = None, *, complete: bool = True) -> Path:
        """Close the file and give it its final name, or ``path``; what was there is replaced.

        ``complete=False``: the pictures end early, so packets of later times are left out.

        Raises:
            VideoError: the disk is full or gone; nothing is left behind.
        """
        path = path or self.path
        try:
            with self._guarded():
                self._mux(self._stream.encode(None))
                while complete and self._waiting:
                    self._container.mux_one(self._waiting.popleft())
                self._container.close()
            self._file.take_name(path)
        except BaseException:
            self.discard()
            raise
        return path

    def discard(self) -> None:
        """Delete what was written; the final name is left as it was."""
        container: Any = getattr(self, "_container", None)
        if container is not None:
            with suppress(av.error.FFmpegError, OSError, ValueError):  # the disk may be full
                container.close()
        self._file.discard()

    def _add_stream(self, encoding: Encoding) -> av.VideoStream:
        properties = self.properties
        os.environ.setdefault("SVT_LOG", "1")  # errors only, or SVT-AV1 fills the terminal
        stream: Any = self._container.add_stream(
            encoding.encoder, rate=properties.fps, options=encoding.options
        )
        context = stream.codec_context
        stream.width, stream.height = properties.width, properties.height
        stream.pix_fmt = encoding.pixel_format
        context.time_base = properties.time_base
        stream.time_base = properties.time_base
        context.sample_aspect_ratio = properties.pixel_aspect
        context.colorspace = encoding.colour.matrix
        context.color_range = encoding.colour.range
        context.color_primaries = encoding.colour.primaries
        context.color_trc = encoding.colour.transfer
        if encoding.codec_tag:
            context.codec_tag = encoding.codec_tag
        stream.set_display_matrix(properties.display_matrix)
        return stream

    def _add_copies(self, source: VideoClip) -> dict[int, av.stream.Stream]:
        """Streams for everything beside the video, by their index in the source; metadata and chapters."""
        copies: dict[int, av.stream.Stream] = {}
        with av.open(str(source.path), metadata_errors="replace") as given:
            kept = {k: v for k, v in given.metadata.items() if k not in _OWN_METADATA}
            self._container.metadata.update(kept)
            self._container.set_chapters(given.chapters())
            for stream in given.streams:
                if stream.index == source.stream_index:
                    self._stream.metadata.update(
                        {k: v for k, v in stream.metadata.items() if k not in _OWN_METADATA}
                    )
                    self._stream.disposition = stream.disposition
                    continue
                if isinstance(stream, av.VideoStream) and stream.disposition & Disposition.attached_pic:
                    self._add_cover(given, stream)
                    continue
                try:
                    if stream.type == "attachment" and self.path.suffix.lower() != ".mkv":
                        raise ValueError("attachments are Matroska's")  # FFmpeg itself notices too late
                    copy: Any = self._container.add_stream_from_template(stream, opaque=True)
                except (av.error.FFmpegError, ValueError) as error:
                    name = getattr(stream.codec_context, "name", None) or "unknown codec"
                    self.notes.append(
                        f"the {stream.type} stream {stream.index} ({name}) is left out: "
                        f"{self.path.suffix} cannot hold it ({str(error).splitlines()[0]}); .mkv holds most"
                    )
                    continue
                copy.metadata.update(stream.metadata)
                copy.disposition = stream.disposition
                copies[stream.index] = copy
        return copies

    def _add_cover(self, given: av.container.InputContainer, stream: av.VideoStream) -> None:
        """Copy a cover picture: one packet without a time, which FFmpeg gives out before all others."""
        suffix = self.path.suffix.lower()
        codec: str = getattr(stream.codec_context, "name", None) or "unknown codec"
        picture = b""
        if codec in _COVERS and suffix in (".mkv", ".mp4", ".m4v"):
            with suppress(av.error.FFmpegError, StopIteration):
                picture = bytes(next(given.demux(stream)))
        if not picture:
            self.notes.append(
                f"the cover picture of stream {stream.index} ({codec}) is left out: "
                f"{suffix} is written without such; .mkv and .mp4 hold JPEG and PNG"
            )
        elif suffix == ".mkv":
            ending, media_type = _COVERS[codec]
            name = stream.metadata.get("filename") or f"cover.{ending}"
            self._container.add_attachment(name, media_type, picture)
        else:
            copy: Any = self._container.add_stream_from_template(stream, opaque=True)
            copy.disposition = Disposition.attached_pic
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts = copy, 0, 0
            self._covers.append(packet)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if packet.pts is not None:
                packet.duration = self._durations.pop(packet.pts, 0) or packet.duration
            self._container.mux_one(packet)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from None


def _time(packet: av.Packet) -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts or 0
    return ticks * Fraction(packet.time_base or 1)
