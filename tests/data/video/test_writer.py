"""Writing: what ffprobe finds in a copy is what it finds in the source; lossless copies keep every code."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stan.data.video import CopiedPacket, OutputSettings, VideoClip, VideoWriter, open_output, open_source
from stan.data.video.properties import upright
from stan.errors import VideoError

from .clips import decode_by_ffmpeg, ffmpeg, probe, probe_times, random_frame, smooth_frames, write_video

ROTATED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


KEPT = [
    "color_space",
    "color_range",
    "color_primaries",
    "color_transfer",
    "sample_aspect_ratio",
    "time_base",
    "start_time",
    "avg_frame_rate",
    "r_frame_rate",
    "pix_fmt",
    "width",
    "height",
    "nb_frames",
    "codec_name",
    "side_data_list",
]


def copy(source: Path, output: Path, **settings: Any) -> VideoWriter:
    """Decode a file and write its frames again, through float RGB."""
    clip = VideoClip(source)
    writer = open_output(output, clip, OutputSettings(**settings))
    assert isinstance(writer, VideoWriter)
    for item in clip.frames_and_packets(writer.copied):
        writer.write(item)
    assert not output.exists()
    assert writer.finish() == output
    assert sorted(p.name for p in output.parent.iterdir() if p.name.startswith(".")) == []
    return writer


def video_of(path: Path) -> dict[str, Any]:
    return next(s for s in probe(path)["streams"] if s["codec_type"] == "video")


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a telephone makes it: turned, variable frame rate, BT.601 full range, sound; oblong pixels."""
    return write_video(
        tmp_path_factory.mktemp("phone") / "phone.mp4",
        smooth_frames(12, 48, 32, "yuv420p"),
        time_base=Fraction(1, 90000),
        fps=30,
        pts=[0, 3000, 6000, 9003, 12000, 18000, 21000, 24010, 27000, 45000, 48000, 51000],
        tags=(6, 2, 6, 6),
        pixel_aspect=Fraction(4, 3),
        matrix=ROTATED,
        audio=True,
        metadata={"title": "a walk", "artist": "me"},
    )


def test_everything_survives_in_mp4(tmp_path: Path, phone: Path) -> None:
    output = tmp_path / "out.mp4"
    writer = copy(phone, output)
    assert writer.notes == []
    before, after = probe(phone), probe(output)
    for key in KEPT:
        assert video_of(output).get(key) == video_of(phone).get(key), key
    assert probe_times(output) == probe_times(phone)
    assert after["format"]["tags"]["title"] == "a walk"
    assert after["format"]["tags"]["artist"] == "me"
    assert [s["codec_name"] for s in after["streams"]] == ["h264", "aac"]
    assert after["streams"][1]["nb_frames"] == before["streams"][1]["nb_frames"]
    assert after["streams"][1]["duration"] == before["streams"][1]["duration"]


def test_sound_is_copied_bit_by_bit(tmp_path: Path, phone: Path) -> None:
    copy(phone, tmp_path / "out.mp4")

    def sound(path: Path) -> bytes:
        return ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "md5", "-")

    assert sound(tmp_path / "out.mp4") == sound(phone)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mov"])
def test_other_containers_keep_times_colour_and_turn(tmp_path: Path, phone: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    writer = copy(phone, output)
    start = float(probe_times(output)[0])
    ours = [float(t) - start for t in probe_times(output)]
    np.testing.assert_allclose(
        ours, [float(t) for t in probe_times(phone)], atol=0.0011
    )  # Matroska counts in ms
    for key in ("color_space", "color_range", "side_data_list"):
        assert video_of(output).get(key) == video_of(phone).get(key), key
    if suffix == ".webm":
        assert any("audio stream 1 (aac) is left out" in note for note in writer.notes)
        assert any("loses the pixel shape" in note for note in writer.notes)
    else:
        assert [s["codec_name"] for s in probe(output)["streams"]] == ["h264", "aac"]


@pytest.mark.parametrize(
    ("pixel_format", "codec", "suffix"),
    [
        ("yuv420p", "ffv1", ".mkv"),
        ("yuv420p", "h264", ".mp4"),
        ("yuv422p10le", "h264", ".mp4"),
        ("yuv420p", "h265", ".mp4"),
        ("yuv444p10le", "h265", ".mkv"),
        ("yuv420p", "vp9", ".webm"),
        ("yuv411p", "ffv1", ".mkv"),
        ("yuv420p10le", "ffv1", ".mkv"),
        ("yuv444p12le", "ffv1", ".mkv"),
        ("gray", "ffv1", ".mkv"),
        ("gray16le", "ffv1", ".mkv"),
        ("bgr0", "ffv1", ".mkv"),
        ("bgra", "ffv1", ".mkv"),
        ("gbrp10le", "ffv1", ".mkv"),
        ("yuva420p", "ffv1", ".mkv"),
    ],
)
def test_lossless_copies_keep_every_code(tmp_path: Path, pixel_format: str, codec: str, suffix: str) -> None:
    """Random codes through float RGB and a lossless codec: not one differs."""
    size = (66, 70) if codec == "h265" else (34, 22)
    frames = [random_frame(*size, pixel_format, seed) for seed in range(3)]
    source = write_video(
        tmp_path / "in.mkv",
        frames,
        codec="ffv1",
        tags=(1, 1, 1, 1) if "yuv" in pixel_format else (2, 0, 2, 2),
    )
    output = tmp_path / f"out{suffix}"
    writer = copy(source, output, codec=codec, lossless=True)
    assert writer.notes == []
    assert decode_by_ffmpeg(output, pixel_format) == decode_by_ffmpeg(source, pixel_format)


@pytest.mark.parametrize("size", [(17, 31), (1, 1), (16, 9), (2, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_odd_sizes_keep_their_size(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    source = write_video(tmp_path / "in.mkv", smooth_frames(3, *size, "yuv444p"), codec="ffv1")
    output = tmp_path / f"out{suffix}"
    copy(source, output)
    found = video_of(output)
    assert (found["width"], found["height"]) == size
    assert len(probe_times(output)) == 3


def test_ten_bits_stay_ten_bits(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "in.mkv", smooth_frames(3, 80, 64, "yuv420p10le"), codec="ffv1", tags=(9, 1, 9, 16)
    )
    copy(source, tmp_path / "out.mp4")
    found = video_of(tmp_path / "out.mp4")
    assert (found["pix_fmt"], found["codec_name"], found["codec_tag_string"]) == (
        "yuv420p10le",
        "hevc",
        "hvc1",
    )
    assert (found["color_space"], found["color_transfer"], found["color_primaries"]) == (
        "bt2020nc",
        "smpte2084",
        "bt2020",
    )


def test_small_frames_of_ten_bits_become_h264(tmp_path: Path) -> None:
    """x265 does not take them."""
    source = write_video(tmp_path / "in.mkv", smooth_frames(3, 48, 32, "yuv420p10le"), codec="ffv1")
    copy(source, tmp_path / "out.mp4")
    found = video_of(tmp_path / "out.mp4")
    assert (found["pix_fmt"], found["codec_name"]) == ("yuv420p10le", "h264")
    clip = VideoClip(source)
    with pytest.raises(VideoError, match="h265 cannot encode 48x32: its least side is 64 pixels"):
        open_output(tmp_path / "b.mp4", clip, OutputSettings(codec="h265"))


def test_rgb_becomes_tagged_bt709(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", smooth_frames(3, 48, 32, "bgr0"), codec="ffv1")
    copy(source, tmp_path / "out.mp4", quality=1)
    found = video_of(tmp_path / "out.mp4")
    assert (found["color_space"], found["color_range"], found["pix_fmt"]) == ("bt709", "tv", "yuv420p")
    shown = np.frombuffer(
        decode_by_ffmpeg(tmp_path / "out.mp4", "rgb24", "-sws_flags", "accurate_rnd"), np.uint8
    )
    meant = VideoClip(source).read().permute(0, 2, 3, 1).numpy().ravel()
    assert np.abs(shown.astype(int) - meant).mean() < 6  # 4:2:0 of hard edges


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".mkv"])
def test_an_attachment_stays_or_is_named(tmp_path: Path, suffix: str) -> None:
    """Only Matroska holds attachments (fonts, say); elsewhere that is told, and the video is written."""
    source = write_video(tmp_path / "in.mkv", smooth_frames(3, 48, 32, "yuv420p"))
    (tmp_path / "font.ttf").write_bytes(bytes(999))
    attach = ["-attach", tmp_path / "font.ttf", "-metadata:s:t", "mimetype=application/x-truetype-font"]
    ffmpeg("-i", source, *attach, "-c", "copy", tmp_path / "rich.mkv")
    writer = copy(tmp_path / "rich.mkv", tmp_path / f"out{suffix}")
    kinds = [s["codec_type"] for s in probe(tmp_path / f"out{suffix}")["streams"]]
    assert kinds == (["video", "attachment"] if suffix == ".mkv" else ["video"])
    assert any("attachment stream 1" in note for note in writer.notes) == (suffix != ".mkv")
    assert len(probe_times(tmp_path / f"out{suffix}")) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".mkv"])
@pytest.mark.parametrize("given", [".mkv", ".mp4"])
def test_a_cover_picture_stays_or_is_named(tmp_path: Path, given: str, suffix: str) -> None:
    """Where it stays it is the same file, marked as a cover: not a second video, nor an empty one."""
    source = write_video(tmp_path / "in.mkv", smooth_frames(3, 48, 32, "yuv420p"))
    cover, rich, output = tmp_path / "cover.jpg", tmp_path / f"rich{given}", tmp_path / f"out{suffix}"
    ffmpeg("-i", source, "-frames:v", "1", cover)
    if given == ".mkv":
        ffmpeg("-i", source, "-attach", cover, "-metadata:s:t", "mimetype=image/jpeg", "-c", "copy", rich)
    else:
        marked = ["-disposition:v:1", "attached_pic", "-c", "copy"]
        ffmpeg("-i", source, "-i", cover, "-map", "0", "-map", "1", *marked, rich)
    writer = copy(rich, output)
    covers = [s["disposition"]["attached_pic"] for s in probe(output)["streams"]]
    assert len(probe_times(output)) == 3
    if suffix in (".mp4", ".mkv"):
        assert covers == [0, 1]
        ffmpeg("-i", output, "-map", "0:v:1", "-c", "copy", "-f", "image2", tmp_path / "again.jpg")
        assert (tmp_path / "again.jpg").read_bytes() == cover.read_bytes()
        assert writer.notes == []
    else:
        assert covers == [0]
        assert any("cover picture of stream 1" in note for note in writer.notes)


def test_subtitles_chapters_and_second_sound_are_copied(tmp_path: Path, phone: Path) -> None:
    (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nhello\n")
    (tmp_path / "chapters.txt").write_text(
        ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=200\ntitle=first\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=200\nEND=500\ntitle=second\n"
    )
    rich = tmp_path / "rich.mkv"
    words = [
        "-i",
        phone,
        "-i",
        tmp_path / "s.srt",
        "-i",
        tmp_path / "chapters.txt",
        "-map",
        "0:v",
        "-map",
        "0:a",
    ]
    words += [
        "-map",
        "0:a",
        "-map",
        "1",
        "-map_chapters",
        "2",
        "-c:v",
        "copy",
        "-c:a:0",
        "copy",
        "-c:a:1",
        "flac",
    ]
    words += ["-metadata:s:a:1", "language=fra", "-c:s", "srt", rich]
    ffmpeg(*words)
    copy(rich, tmp_path / "out.mkv")
    found = probe(tmp_path / "out.mkv")
    assert [s["codec_name"] for s in found["streams"]] == ["h264", "aac", "flac", "subrip"]
    assert found["streams"][2]["tags"]["language"] == "fra"
    assert [c["tags"]["title"] for c in found["chapters"]] == ["first", "second"]
    writer = copy(rich, tmp_path / "out.mp4")
    found = probe(tmp_path / "out.mp4")
    assert [s["codec_name"] for s in found["streams"]][:3] == [
        "h264",
        "aac",
        "flac",
    ]  # then a track of chapters
    assert [c["tags"]["title"] for c in found["chapters"]] == ["first", "second"]
    assert any("subtitle stream 3" in note for note in writer.notes)


@pytest.mark.parametrize(
    "matrix",
    [
        (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
        ROTATED,
        (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
        (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
        (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
        (65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
        (0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
        (0, -65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    ],
)
def test_upright_is_what_ffmpeg_shows(tmp_path: Path, matrix: Sequence[int]) -> None:
    source = write_video(
        tmp_path / "in.mp4",
        smooth_frames(1, 32, 16, "yuv444p"),
        options={"qp": "0"},
        matrix=matrix,
        tags=(6, 1, 6, 6),
    )
    clip = VideoClip(source)
    ours = upright(clip.read(), clip.properties)[0].permute(1, 2, 0).numpy()
    theirs = np.frombuffer(decode_by_ffmpeg(source, "rgb24"), np.uint8).reshape(ours.shape)
    assert np.abs(ours.astype(int) - theirs).max() <= 3


def test_an_early_end_leaves_a_playable_file_without_later_sound(tmp_path: Path, phone: Path) -> None:
    clip = VideoClip(phone)
    writer = open_output(tmp_path / "out.mp4", clip, OutputSettings())
    assert isinstance(writer, VideoWriter)
    for item in clip.frames_and_packets(writer.copied):
        if isinstance(item, CopiedPacket) or writer.frames < 6:
            writer.write(item)
    partial = writer.finish(tmp_path / "out.partial.mp4", complete=False)
    found = probe(partial)
    assert len(probe_times(partial)) == 6
    assert float(found["streams"][1]["duration"]) < 0.35
    assert not (tmp_path / "out.mp4").exists()


def test_last_frame_keeps_its_duration(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    first = write_video(
        tmp_path / "a.mp4",
        smooth_frames(4, 32, 32, "yuv420p"),
        pts=[0, 40, 80, 120],
        time_base=Fraction(1, 1000),
    )
    ffmpeg("-i", first, "-c", "copy", source)
    copy(source, tmp_path / "out.mp4")
    assert video_of(tmp_path / "out.mp4")["duration"] == video_of(source)["duration"]


def test_real_clips(tmp_path: Path, shared_data: Path) -> None:
    source = tmp_path / "in.mp4"
    words = ["-i", shared_data / "videos/blocks_720p.mp4", "-t", "0.3", "-c", "copy", source]
    ffmpeg(*words)
    copy(source, tmp_path / "out.mkv", lossless=True)
    assert decode_by_ffmpeg(tmp_path / "out.mkv", "yuv420p") == decode_by_ffmpeg(source, "yuv420p")
    oblong = shared_data / "videos/carphone.mp4"
    copy(oblong, tmp_path / "out.mp4", quality=30)
    assert video_of(tmp_path / "out.mp4")["sample_aspect_ratio"] == "128:117"
    assert probe_times(tmp_path / "out.mp4") == probe_times(oblong)


def test_a_lost_pixel_shape_is_told(tmp_path: Path, phone: Path) -> None:
    assert any("loses the pixel shape 4:3" in n for n in copy(phone, tmp_path / "a.mkv", codec="ffv1").notes)
    assert copy(phone, tmp_path / "b.mkv", lossless=True, codec="h264").notes == []
    assert open_source(tmp_path / "b.mkv").properties.pixel_aspect == Fraction(4, 3)


def test_bad_places_and_settings(tmp_path: Path, phone: Path) -> None:
    clip = VideoClip(phone)

    def refused(name: str, said: str, **settings: Any) -> None:
        with pytest.raises(VideoError, match=said):
            open_output(tmp_path / name, clip, OutputSettings(**settings))
        assert list(tmp_path.iterdir()) == []

    refused("missing/out.mp4", "does not exist")
    refused("out.xyz", r"\.xyz is none of")
    refused("out.mp5", r"did you mean \.mp4")
    refused("out.mp4", "codec 'h263' is not known; did you mean 'h26", codec="h263")
    refused("out.mp4", "ffv1 does not go into .mp4: use .mkv", codec="ffv1")
    refused("out.mp4", "quality 99 is outside 0", quality=99)
    refused("out.mp4", "quality 20 has no meaning with lossless", quality=20, lossless=True)
    refused("out.mkv", "ffv1 has no quality", quality=20, codec="ffv1")
    refused("out.mov", "av1 does not go into .mov", codec="av1", lossless=True)
    refused("out.mp4", "does not take pixel format", pixel_format="gbrp14le")
    refused("out.mp4", "unknown pixel format", pixel_format="yuv999")
    refused("out.mp4", "av1 cannot encode 48x32", codec="av1")
    refused("frames/", "codec h264 makes a video", codec="h264")
    refused("frames/", "unknown picture format 'gif'", codec="gif")
    refused("frames/", "jpeg is never lossless", codec="jpeg", lossless=True)
    refused("frames/", "quality 0 is outside 1 to 100", codec="jpeg", quality=0)
    refused("frames/", "has no meaning", quality=10)
    refused("one.png", "is one picture and phone has 12 frames")


def test_input_is_never_overwritten(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", smooth_frames(2, 32, 32, "yuv420p"))
    (tmp_path / "link.mp4").symlink_to(path)
    before = path.read_bytes()
    clip = VideoClip(path)
    for name in ("a.mp4", "link.mp4"):
        with pytest.raises(VideoError, match="is the input itself"):
            open_output(tmp_path / name, clip, OutputSettings(overwrite=True))
    (tmp_path / "b.mp4").write_text("precious")
    with pytest.raises(VideoError, match="exists: choose another name, or --overwrite"):
        open_output(tmp_path / "b.mp4", clip, OutputSettings())
    assert path.read_bytes() == before
    assert (tmp_path / "b.mp4").read_text() == "precious"
    assert torch.equal(clip.read(0, 1), VideoClip(path).read(0, 1))
