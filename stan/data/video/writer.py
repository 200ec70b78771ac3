"""Writing a video file that shares everything but the pixels with its source."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Discard, Disposition

from stan.data.frame import Frame
from stan.data.video.codecs import CONTAINERS, Encoding
from stan.data.video.container import open_container
from stan.data.video.pixels import PictureEncoder
from stan.data.video.properties import CopiedPacket, Properties
from stan.data.video.reader import VideoClip
from stan.data.video.unfinished import DISK_ERRORS, Unfinished, cannot_write
from stan.errors import VideoError

_COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
"""Codecs of cover pictures that are copied: the ending of a file of them, and their media type."""
_OWN_METADATA = (
    "encoder",
    "major_brand",
    "minor_version",
    "compatible_brands",
    "DURATION",
    "alpha_mode",
    "ALPHA_MODE",
)
_LENIENT = {"strict": "-2"}  # FFmpeg calls some sound experimental that players take: TrueHD in .mp4


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
        self._rising = path.suffix.lower() not in (".mkv", ".webm")  # each packet must be later than the last
        self._last: dict[int, int] = {}  # decoding times of copied packets, by stream of the output
        self._waiting: deque[av.Packet] = deque()
        self._encode = PictureEncoder(encoding.pixel_format, encoding.colour)
        self._file = Unfinished(path)
        try:
            self._open(encoding, copied_from)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.discard()
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise cannot_write(path, error) from None
            size = f"{properties.width}x{properties.height}"
            raise VideoError(
                f"{encoding.encoder} cannot write {size} {encoding.pixel_format} into {path.suffix} "
                f"({' '.join(f'{k}={v}' for k, v in encoding.options.items())}): "
                f"{_reason(error)}; try another --codec, or "
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
                self._copy(self._waiting.popleft())

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
                    self._copy(self._waiting.popleft())
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

    def _open(self, encoding: Encoding, source: VideoClip | None) -> None:
        """Write the header; without copies if it fails with them, so that they are never the encoder's fault."""
        told = len(self.notes)
        try:
            self._start(encoding, source)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if not self._copies and not self._covers:
                raise
            self._start(encoding, source, alone=True)
            self.notes[told:] = [
                f"all streams but the video are left out: {self.path.suffix} refuses them ({_reason(error)})"
            ]

    def _start(self, encoding: Encoding, source: VideoClip | None, alone: bool = False) -> None:
        form = CONTAINERS[self.path.suffix.lower()]
        self._copies: dict[int, av.stream.Stream] = {}
        self._covers: list[av.Packet] = []  # of containers in which a cover is a stream
        name = f"file:{self._file.place}"  # of a relative name with a colon the start would be a protocol
        self._container = av.open(name, "w", format=form, container_options=_LENIENT)
        self._stream = self._add_stream(encoding)
        if source is not None:
            self._add_copies(source, alone)
        self._container.start_encoding()
        for picture in self._covers:
            self._container.mux_one(picture)

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

    def _add_copies(self, source: VideoClip, alone: bool) -> None:
        """Streams for everything beside the video, unless ``alone``; metadata and chapters."""
        with open_container(source.path) as given:
            self._container.metadata.update(_kept(given.metadata))
            self._container.set_chapters(given.chapters())
            video = given.streams[source.stream_index]
            self._stream.metadata.update(_kept(video.metadata))
            self._stream.disposition = video.disposition
            if alone:
                return
            first = _first_packets(given)
            for stream in given.streams:
                if stream.index == video.index:
                    continue
                if stream.disposition & Disposition.attached_pic:
                    self._add_cover(stream, first.get(stream.index))
                elif stream.type == "data":
                    self._leave_data(stream, video)
                elif why := self._refusal(stream, first.get(stream.index)):
                    self.notes.append(
                        f"the {stream.type} stream {stream.index} ({_codec(stream)}) is left out: {why}"
                    )
                else:
                    copy: Any = self._container.add_stream_from_template(stream, opaque=True)
                    copy.metadata.update(stream.metadata)
                    copy.disposition = stream.disposition
                    self._copies[stream.index] = copy

    def _leave_data(self, stream: av.stream.Stream, video: av.stream.Stream) -> None:
        """Tell of data that are lost: FFmpeg cannot write most of them, which it often notices at the end.

        It makes tracks of chapters, and of the time code in the video's metadata, anew.
        """
        code = stream.metadata.get("timecode")
        if stream.discard != Discard.all and (code is None or code != video.metadata.get("timecode")):
            name = stream.metadata.get("handler_name", "").strip() or getattr(stream, "name", None)
            self.notes.append(
                f"the data stream {stream.index} ({name or 'of unknown kind'}) is left out: data are not copied"
            )

    def _refusal(self, stream: av.stream.Stream, packet: av.Packet | None) -> str:
        """Why a stream cannot be copied; empty if it can.

        PyAV asks whether a container knows the codec, and FFmpeg may refuse as late as when the file is
        closed: that is found out in a file of the stream's first packet alone.
        """
        suffix = self.path.suffix.lower()
        if stream.type == "attachment":  # FFmpeg itself notices too late
            return "" if suffix == ".mkv" else f"{suffix} cannot hold it; .mkv does"
        try:
            trial = av.open(io.BytesIO(), "w", format=CONTAINERS[suffix], container_options=_LENIENT)
            copy = trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
            if packet is not None:
                packet.stream, packet.pts, packet.dts = copy, 0, 0
                trial.mux_one(packet)
            trial.close()
        except (av.error.FFmpegError, ValueError):
            if suffix != ".mkv":
                return f"{suffix} cannot hold it; .mkv holds most"
            how = "-c copy -c:s srt" if stream.type == "subtitle" else "-c copy"
            return f"PyAV cannot copy it; ffmpeg -i OUTPUT -i INPUT -map 0 -map 1:{stream.index} {how} may add it"
        return ""

    def _add_cover(self, stream: av.stream.Stream, packet: av.Packet | None) -> None:
        """Copy a cover picture: one packet without a time, which FFmpeg gives out before all others."""
        suffix, codec = self.path.suffix.lower(), _codec(stream)
        if packet is None or codec not in _COVERS or suffix not in (".mkv", ".mp4", ".m4v"):
            self.notes.append(
                f"the cover picture of stream {stream.index} ({codec}) is left out: "
                f"{suffix} is written without such; .mkv and .mp4 hold JPEG and PNG"
            )
        elif suffix == ".mkv":
            ending, media_type = _COVERS[codec]
            name = stream.metadata.get("filename") or f"cover.{ending}"
            self._container.add_attachment(name, media_type, bytes(packet))
        else:
            copy: Any = self._container.add_stream_from_template(stream, opaque=True)
            copy.disposition = Disposition.attached_pic
            picture = av.Packet(bytes(packet))
            picture.stream, picture.pts, picture.dts = copy, 0, 0
            self._covers.append(picture)

    def _copy(self, packet: av.Packet) -> None:
        """Write a copied packet; one at the time of the last, as Matroska's milliseconds have it, a tick later."""
        if self._rising and packet.dts is not None:
            base = Fraction(packet.stream.time_base or 1)
            ratio = Fraction(packet.time_base) / base
            dts, duration = round(packet.dts * ratio), round((packet.duration or 0) * ratio)
            pts = dts if packet.pts is None else round(packet.pts * ratio)
            dts = max(dts, self._last.get(packet.stream.index, dts - 1) + 1)
            packet.dts, packet.pts, packet.duration, packet.time_base = dts, max(dts, pts), duration, base
            self._last[packet.stream.index] = dts
        self._container.mux_one(packet)

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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _kept(metadata: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in metadata.items() if k not in _OWN_METADATA}


def _codec(stream: av.stream.Stream) -> str:
    return getattr(stream.codec_context, "name", None) or "unknown codec"


def _first_packets(given: av.container.InputContainer) -> dict[int, av.Packet]:
    """The first packet of each stream of sound and each cover picture."""
    covers = [s for s in given.streams.video if s.disposition & Disposition.attached_pic]
    wanted = (*given.streams.audio, *covers)
    found: dict[int, av.Packet] = {}
    with suppress(av.error.FFmpegError):
        for packet in given.demux(wanted) if wanted else ():
            if packet.size:
                found.setdefault(packet.stream.index, packet)
            if len(found) == len(wanted):
                break
    return found


def _time(packet: av.Packet) -> Fraction:
    ticks = packet.dts if packet.dts is not None else packet.pts or 0
    return ticks * Fraction(packet.time_base or 1)
