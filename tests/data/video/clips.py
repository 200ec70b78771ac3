"""Small videos and pictures written for tests, and what ffprobe says of a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from stan.data.video.pixels import describe

# libswscale's flags, which PyAV 17 does not name
BILINEAR, POINT, FULL_CHROMA_IN, FULL_CHROMA_OUT = 0x2, 0x10, 0x4000, 0x2000
ACCURATE_RND, BITEXACT = 0x40000, 0x80000


def random_frame(width: int, height: int, pixel_format: str, seed: int = 0) -> av.VideoFrame:
    """A frame whose code values are all random, over the whole range of codes."""
    held = describe(pixel_format)
    frame = av.VideoFrame(width, height, held.planar)
    rng = np.random.default_rng(seed)
    for code in codes(frame):
        code[:] = rng.integers(0, 1 << held.bits, code.shape)
    return frame if held.planar == pixel_format else repacked(frame, pixel_format)


def repacked(frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
    """The same code values in another order."""
    exact: Any = POINT | ACCURATE_RND | BITEXACT
    return VideoReformatter().reformat(frame, format=pixel_format, interpolation=exact)


def codes(frame: av.VideoFrame) -> list[np.ndarray]:
    """The planes of a planar frame as views, (h, w) each."""
    deep = max(c.bits for c in frame.format.components) > 8
    kind = np.dtype("<u2") if deep else np.dtype(np.uint8)
    samples = 2 if frame.format.name.startswith("ya") else 1
    return [np.frombuffer(p, kind).reshape(p.height, -1)[:, : samples * p.width] for p in frame.planes]


def smooth_frames(count: int, width: int, height: int, pixel_format: str) -> list[av.VideoFrame]:
    """A colourful gradient that moves, with a brighter edge; kind to lossy codecs."""
    frames = []
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for t in range(count):
        rgb = np.stack(
            (128 + 90 * np.sin((x + 3 * t) / 9), 128 + 80 * np.cos((y - 2 * t) / 7), 60 + 120 * x / width), -1
        )
        rgb[height // 3 : height // 2, (4 + 2 * t) % width :: 16] = 230
        frame = av.VideoFrame.from_ndarray(rgb.clip(0, 255).astype(np.uint8), "rgb24")
        frames.append(frame if pixel_format == "rgb24" else frame.reformat(format=pixel_format))
    return frames


def write_video(
    path: Path,
    frames: Sequence[av.VideoFrame],
    *,
    codec: str = "libx264",
    fps: Fraction | int = 25,
    time_base: Fraction | None = None,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    tags: tuple[int, int, int, int] = (2, 0, 2, 2),
    pixel_aspect: Fraction = Fraction(1),
    matrix: Sequence[int] | None = None,
    audio: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write ``frames`` with PyAV alone; ``tags`` are (matrix, range, primaries, transfer)."""
    container = av.open(str(path), "w")
    container.metadata.update(metadata or {})
    stream: Any = container.add_stream(codec, rate=fps, options=options or {})
    stream.width, stream.height = frames[0].width, frames[0].height
    stream.pix_fmt = frames[0].format.name
    base = time_base or 1 / Fraction(fps)
    stream.codec_context.time_base = base
    context = stream.codec_context
    context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
    context.sample_aspect_ratio = pixel_aspect
    stream.set_display_matrix(matrix)
    sound: Any = container.add_stream("aac", rate=48000, layout="mono") if audio else None
    for t, frame in enumerate(frames):
        frame.pts = t if pts is None else pts[t]
        frame.time_base = base
        frame.colorspace, frame.color_range = tags[0], tags[1]
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    if sound is not None:
        seconds = float(((pts[-1] if pts else len(frames) - 1) + 1) * base)
        wave = (8000 * np.sin(np.arange(int(48000 * seconds)) / 20)).astype(np.int16)[None]
        piece = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        piece.sample_rate, piece.pts, piece.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    container.close()
    return path


def tool(name: str) -> str:
    """``ffmpeg`` or ``ffprobe``: where it is not installed the test is skipped, but in CI it fails."""
    if shutil.which(name) is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed (Debian and Ubuntu: apt-get install ffmpeg)")
    return name


def ffmpeg(*words: object) -> bytes:
    """Run ffmpeg; returns what it writes to standard output."""
    command = [tool("ffmpeg"), "-v", "error", *map(str, words)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def probe(path: Path) -> dict[str, Any]:
    """What ffprobe finds in a file: its format, its streams and chapters."""
    words = [
        tool("ffprobe"),
        "-v",
        "error",
        "-show_streams",
        "-show_format",
        "-show_chapters",
        "-of",
        "json",
        str(path),
    ]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def probe_times(path: Path) -> list[str]:
    """Presentation times of the video's frames as ffprobe decodes them."""
    words = [
        tool("ffprobe"),
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-show_entries",
        "frame=pts_time",
        "-of",
        "csv=p=0",
    ]
    done = subprocess.run([*words, str(path)], capture_output=True, text=True, check=True)
    return [line.strip(",") for line in done.stdout.split()]


def decode_by_ffmpeg(path: Path, pixel_format: str, *options: str) -> bytes:
    """All frames as raw bytes, decoded by the ffmpeg command."""
    words = [*options, "-i", path, "-fps_mode", "passthrough"]
    return ffmpeg(*words, "-pix_fmt", pixel_format, "-f", "rawvideo", "-")
