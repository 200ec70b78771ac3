"""A video file as FFmpeg opens it: its video stream, its packets, and what they tell without being decoded."""

from __future__ import annotations

import math
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from av.stream import Disposition

from stan.data.video.truncation import STRUCTURED, missing_bytes
from stan.errors import VideoError

ARBITRARY_CLOCK = ("mpegts", "mpeg")
"""Formats whose clock may start anywhere (FFmpeg's AVFMT_TS_DISCONT), and which are sought by times of decoding."""


@dataclass(frozen=True)
class Index:
    """Presentation times of all frames in order, and which of them decoding may start from."""

    pts: list[int]  # empty if the container holds no times
    keyframes: list[int]  # frame numbers
    places: list[int]  # times that seeking finds the keyframes by
    frames: int
    declared: str  # "" or what the file says it holds and does not
    by_decoding: bool = False  # frames are timed by their decoding: the file does not say when to show them


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file.

    Raises:
        VideoError: it is missing, empty, no regular file, or nothing that FFmpeg knows.
    """
    if path.is_dir():
        raise VideoError(f"{path} is a folder, not a video file")
    if not path.exists():
        raise VideoError(f"no such file: {path}")
    if not path.is_file():
        raise VideoError(f"{path} is not a regular file: read pipes with --stream")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes)")
    try:
        return av.open(f"file:{path}", metadata_errors="replace")  # 12:30.mp4 names no protocol
    except av.error.PermissionError:
        raise VideoError(f"no permission to read {path}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path} is not a video that can be read: {reason_of(error)} "
            "(another kind of file, or cut short before its index)"
        ) from None


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {"a cover picture" if s.type == "video" else str(s.type) for s in container.streams}
        raise VideoError(f"{path} holds no video stream (only {', '.join(sorted(kinds)) or 'nothing'})")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(
            f"{path}: this FFmpeg has no decoder for its video codec; convert it with ffmpeg first"
        )
    return stream


def demux(
    container: av.container.InputContainer,
    streams: Sequence[av.stream.Stream],
    path: Path,
    salvage: bool = False,
) -> Generator[av.Packet, None, None]:
    """Packets of ``streams``, also the empty ones that flush decoders; a read error ends them or raises."""
    try:
        yield from container.demux(*streams)
    except (av.error.FFmpegError, OSError) as error:
        if not salvage:
            raise VideoError(f"{path} cannot be read to its end: {reason_of(error)}") from None


def scan(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> Index:
    """Read all packets once: frame times, keyframes, and whether the file holds what it declares.

    Raises:
        VideoError: no frames, or times that start anew.
    """
    times: dict[int, int | None] = {}  # when a frame is shown, and the time to seek it by if it is a keyframe
    sought_by_dts = container.format.name in ARBITRARY_CLOCK
    untimed = packets = 0
    ends: dict[int, float] = {}
    newest = -math.inf
    for packet in demux(container, tuple(container.streams), path, salvage=True):
        when = packet.pts if packet.pts is not None else packet.dts
        if when is not None:
            end = float((when + (packet.duration or 0)) * packet.time_base)
            ends[packet.stream.index] = max(end, ends.get(packet.stream.index, end))
        if packet.stream.index != stream.index or packet.size == 0:
            continue
        packets += 1
        if packet.dts is not None:
            if (decoded := float(packet.dts * packet.time_base)) < newest - 1:
                raise VideoError(
                    f"{path}: time stamps start anew at frame {packets}, as of joined recordings; mend it first "
                    f"(ffmpeg -fflags +genpts -i {shlex.quote(str(path))} -c copy mended.mkv)"
                )
            newest = max(newest, decoded)
        if packet.is_discard:
            continue
        if packet.pts is None:
            untimed += 1
        else:
            place = packet.dts if sought_by_dts and packet.dts is not None else packet.pts
            times[packet.pts] = place if packet.is_keyframe else None
    if packets == 0:
        raise VideoError(f"{path} holds no frames")
    by_decoding = _is_shown_late(container, stream)
    shown = [] if untimed or by_decoding else sorted(times)
    places = {number: at for number, pts in enumerate(shown) if (at := times[pts]) is not None}
    return Index(
        pts=shown,
        keyframes=list(places),
        places=list(places.values()),
        frames=len(shown) or packets,
        declared=_shortfall(path, container, stream, packets, ends),
        by_decoding=by_decoding,
    )


def _is_shown_late(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether frames are shown in another order than they lie in, and the file does not say when: AVI keeps no such
    times, and what FFmpeg makes up for H.264 and H.265 is the order in the file."""
    context = stream.codec_context
    return bool(container.format.name == "avi" and context.name in ("h264", "hevc") and context.has_b_frames)


def _shortfall(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: int,
    ends: dict[int, float],
) -> str:
    """What the file promises beyond what is there, in words; empty if nothing."""
    structured = container.format.name in STRUCTURED
    missing = missing_bytes(path, container.format.name) if structured else 0
    if structured and not missing:
        return ""
    if stream.frames > packets and container.format.name != "matroska,webm":
        return f"it declares {stream.frames} frames and holds {packets}"
    if container.format.name == "matroska,webm" and container.duration and ends:
        return f"it declares {container.duration / 1e6:.1f} s and ends after {max(ends.values()):.1f} s"
    return f"{missing} bytes are missing at its end" if missing else ""


def first_frame(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> av.VideoFrame:
    """The first frame that decodes.

    Raises:
        VideoError: none does.
    """
    reason = "no frame came out of its decoder"
    for packet in demux(container, (stream,), path, salvage=True):
        try:
            for frame in packet.decode():
                return frame
        except av.error.FFmpegError as error:
            reason = reason_of(error)
    raise VideoError(f"{path}: no frame can be decoded ({stream.codec_context.name}): {reason}")


def reason_of(error: Exception) -> str:
    """What FFmpeg or the operating system says, in lower case, to stand in a sentence."""
    return (getattr(error, "strerror", None) or str(error)).rstrip(".").lower()
