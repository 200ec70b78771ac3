"""Raw and Y4M streams: bytes in are bytes out, in the formats that ffmpeg writes."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest

from stan.data.video.raw import RawFormat, RawReader, RawWriter
from stan.errors import VideoError

from .clips import ffmpeg


def ffmpeg_stream(pixel_format: str, container: str, size: str = "18x14") -> bytes:
    source = f"testsrc2=s=64x64:r=30000/1001,scale={size.replace('x', ':')}"
    words = ["-f", "lavfi", "-i", source, "-frames:v", 4, "-pix_fmt", pixel_format, "-strict", -1]
    return ffmpeg(*words, "-f", container, "-")


def passed_on(data: bytes, raw: RawFormat | None = None) -> tuple[bytes, RawReader]:
    reader, output = RawReader(io.BytesIO(data), raw), io.BytesIO()
    writer = RawWriter(output, reader)
    for frame in reader:
        writer.write(frame)
    return output.getvalue(), reader


Y4M = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv411p", "gray", "yuva444p"]
DEEP = ["yuv420p10le", "yuv422p12le", "yuv444p16le", "gray10le"]


@pytest.mark.parametrize("pixel_format", [*Y4M, *DEEP])
def test_y4m_of_ffmpeg_is_passed_on_byte_by_byte(pixel_format: str) -> None:
    size = "18x14" if pixel_format in DEEP else "17x13"  # ffmpeg 5.1 cuts odd rows of deep chroma in half
    data = ffmpeg_stream(pixel_format, "yuv4mpegpipe", size)
    output, reader = passed_on(data)
    assert output == data
    assert reader.properties.fps == Fraction(30000, 1001)
    assert reader.properties.pixel_format == pixel_format.replace("yuvj", "yuv")
    assert f"{reader.properties.width}x{reader.properties.height}" == size


@pytest.mark.parametrize(
    "pixel_format", ["rgb24", "bgra", "yuv420p", "nv12", "yuyv422", "gray16le", "rgb48le", "gbrp"]
)
def test_raw_frames_are_passed_on_byte_by_byte(pixel_format: str) -> None:
    data = ffmpeg_stream(pixel_format, "rawvideo")
    assert passed_on(data, RawFormat(14, 18, pixel_format))[0] == data


def test_raw_rgb_is_what_the_bytes_say() -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    frames = list(RawReader(io.BytesIO(values.tobytes()), RawFormat(3, 5, "rgb24")))
    for frame, expected in zip(frames, values):
        np.testing.assert_array_equal((frame.rgb * 255).round().permute(1, 2, 0).numpy(), expected)
    assert len(frames) == 2


def test_chroma_position_is_taken_from_the_header() -> None:
    for layout, centred in (("420jpeg", True), ("420mpeg2", False), ("420paldv", False)):
        header = f"YUV4MPEG2 W4 H4 F25:1 Ip A1:1 C{layout} XCOLORRANGE=FULL\n".encode()
        colour = RawReader(io.BytesIO(header)).properties.colour
        assert (colour.centred, colour.range) == (centred, 2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the input stream is empty"),
        (b"RIFF....AVI ", "begins with"),
        (b"YUV4MPEG2 H4 F25:1 C420\n", "no valid size"),
        (b"YUV4MPEG2 W4 H-4 F25:1 C420\n", "no valid size"),
        (b"YUV4MPEG2 W4 H4 F25:0 C420\n", "no valid size"),
        (b"YUV4MPEG2 W4 H4 F25:1 C999\n", "colour layout C999"),
        (b"YUV4MPEG2 W4 H4 F25:1 C420p11\n", "colour layout C420p11"),
    ],
)
def test_other_input_is_told(data: bytes, said: str) -> None:
    with pytest.raises(VideoError, match=said):
        RawReader(io.BytesIO(data))


def test_a_stream_that_ends_inside_a_frame() -> None:
    data = ffmpeg_stream("yuv420p", "yuv4mpegpipe")
    reader = iter(RawReader(io.BytesIO(data[:-10])))
    for _ in range(3):
        next(reader)
    with pytest.raises(VideoError, match="ends inside frame 3"):
        next(reader)
    broken = data[:90].split(b"\n")[0] + b"\nFRAMX\n"
    with pytest.raises(VideoError, match="not with FRAME"):
        next(iter(RawReader(io.BytesIO(broken))))
