"""Reading: by number and in order, whatever the container; damage and non-videos are told in one line."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from stan.data.video import CopiedPacket, Frame, VideoClip, open_source
from stan.data.video.pictures import write_picture
from stan.errors import VideoError

from .clips import codes, decode_by_ffmpeg, ffmpeg, probe_times, random_frame, smooth_frames, write_video

LOSSLESS = {"qp": "0"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames, 4:2:0, a keyframe every 8, B-frames."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    return write_video(path, smooth_frames(30, 48, 32, "yuv420p"), options={"g": "8", "bf": "2"}, audio=True)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mov", ".nut"])
def test_frames_by_number_are_the_frames_in_order(tmp_path: Path, suffix: str) -> None:
    path = write_video(
        tmp_path / f"a{suffix}",
        smooth_frames(21, 48, 32, "yuv420p"),
        options={"g": "6", "bf": "2", **LOSSLESS},
    )
    clip = VideoClip(path)
    whole = clip.read()
    assert len(clip) == 21
    assert whole.shape == (21, 3, 32, 48)
    assert whole.dtype == torch.uint8
    for start, stop in ((0, 3), (5, 6), (6, 9), (20, 21), (2, 5), (9, 21), (7, 7)):
        assert torch.equal(clip.read(start, stop), whole[start:stop]), (start, stop)
    in_order = [e for e in VideoClip(path).frames_and_packets() if isinstance(e, Frame)]
    assert len(in_order) == 21
    assert all(later.pts > earlier.pts for earlier, later in pairwise(in_order))


def test_pixels_are_those_that_ffmpeg_decodes(tmp_path: Path) -> None:
    frames = [random_frame(18, 10, "gbrp", seed) for seed in range(4)]
    path = write_video(tmp_path / "a.mkv", [f.reformat(format="bgr0") for f in frames], codec="ffv1")
    ours = VideoClip(path).read()
    theirs = np.frombuffer(decode_by_ffmpeg(path, "rgb24"), np.uint8).reshape(4, 10, 18, 3)
    np.testing.assert_array_equal(ours.permute(0, 2, 3, 1).numpy(), theirs)
    np.testing.assert_array_equal(ours[3, 1].numpy(), codes(frames[3])[0])


def test_variable_frame_rate_times_are_exact(tmp_path: Path) -> None:
    pts = [0, 1001, 2002, 7007, 8008, 30030, 30500]
    path = write_video(
        tmp_path / "v.mp4", smooth_frames(7, 32, 32, "yuv420p"), time_base=Fraction(1, 30000), pts=pts
    )
    clip = VideoClip(path)
    got = [f.pts * clip.properties.time_base for f in clip.frames()]
    assert got == [Fraction(p, 30000) for p in pts]
    assert [f"{float(t):.6f}" for t in got] == probe_times(path)
    assert clip.frames(3, 4).__next__().pts == list(clip.frames())[3].pts


def test_packets_of_other_streams_come_between(plain: Path) -> None:
    clip = VideoClip(plain)
    events = list(clip.frames_and_packets((1,)))
    packets = [e for e in events if isinstance(e, CopiedPacket)]
    assert sum(isinstance(e, Frame) for e in events) == 30
    assert len(packets) > 40
    assert {p.stream for p in packets} == {1}
    assert not any(isinstance(e, CopiedPacket) for e in clip.frames_and_packets())


def test_transport_stream_starts_at_zero(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "a.ts"
    ffmpeg("-i", plain, "-c", "copy", "-muxdelay", "5", path)
    events = list(VideoClip(path).frames_and_packets((1,)))
    assert 0 <= min(e.pts for e in events if isinstance(e, Frame)) < 9000  # a tenth of a second
    assert float(probe_times(path)[0]) > 4


def test_it_survives_pickling(plain: Path) -> None:
    clip = VideoClip(plain)
    first = clip.read(0, 2)
    assert torch.equal(pickle.loads(pickle.dumps(clip)).read(0, 2), first)


@pytest.mark.timeout(60)
def test_it_survives_a_fork_with_an_open_decoder(plain: Path) -> None:
    """As a data loader's workers do: the threads of the parent's decoder do not exist in the child."""
    clip = VideoClip(plain)
    sequential = clip.frames_and_packets()
    next(sequential)
    clip.read(4, 5)
    answer: multiprocessing.Queue[int] = multiprocessing.get_context("fork").Queue()

    def child() -> None:
        value = int(clip.read(5, 7).long().sum())
        sequential.close()  # type: ignore[attr-defined]
        clip._session = None
        gc.collect()
        answer.put(value)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    value = answer.get(timeout=50)
    process.join(10)
    assert process.exitcode == 0
    assert value == int(clip.read(5, 7).long().sum())
    assert sum(isinstance(e, Frame) for e in sequential) == 29


def test_numbers_outside_are_refused(plain: Path) -> None:
    with pytest.raises(IndexError, match="31"):
        VideoClip(plain).read(0, 31)


def test_properties(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4",
        smooth_frames(3, 48, 32, "yuv422p10le"),
        fps=Fraction(24000, 1001),
        tags=(9, 2, 9, 16),
        pixel_aspect=Fraction(4, 3),
        matrix=(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    )
    p = VideoClip(path).properties
    assert (p.height, p.width, p.fps, p.pixel_aspect) == (32, 48, Fraction(24000, 1001), Fraction(4, 3))
    assert (p.pixel_format, p.codec) == ("yuv422p10le", "h264")
    assert (p.colour.matrix, p.colour.range, p.colour.primaries, p.colour.transfer) == (9, 2, 9, 16)
    assert p.display_matrix is not None
    assert p.orientation == (True, True, False)


def test_interlaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "i.mkv"
    source = ["-f", "lavfi", "-i", "testsrc=s=64x64:r=25:d=0.2"]
    words = [*source, "-vf", "tinterlace=4", "-flags", "+ilme+ildct", "-c:v", "libx264", "-x264opts", "tff=1"]
    ffmpeg(*words, path)
    assert VideoClip(path).properties.interlaced


def test_cover_pictures_are_not_the_video(tmp_path: Path, plain: Path) -> None:
    cover = tmp_path / "cover.png"
    write_picture(cover, np.zeros((100, 100, 3), np.uint8))
    path = tmp_path / "cover.mp4"
    words = [
        "-i",
        cover,
        "-i",
        plain,
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
        "-disposition:v:0",
        "attached_pic",
    ]
    ffmpeg(*words, path)
    clip = VideoClip(path)
    assert clip.size == (32, 48)
    assert len(clip) == 30


def test_non_videos_are_told(tmp_path: Path, plain: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is a text\n" * 50)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    sound = tmp_path / "sound.mp4"
    ffmpeg("-i", plain, "-vn", "-c", "copy", sound)
    noise = tmp_path / "noise.mkv"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    for path, said in (
        (text, "not a video"),
        (empty, "is empty"),
        (sound, "no video stream"),
        (noise, "not a video"),
        (tmp_path / "missing.mp4", "no such file"),
    ):
        with pytest.raises(VideoError, match=said) as caught:
            open_source(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_header_without_frames(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "none.mkv"
    ffmpeg("-i", plain, "-c", "copy", "-frames:v", "0", "-an", path)
    with pytest.raises(VideoError, match=r"no frames|no frame can be decoded|not a video"):
        VideoClip(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    whole = write_video(
        tmp_path / f"whole{suffix}", smooth_frames(60, 64, 48, "yuv420p"), options={"g": "12"}
    )
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
    with pytest.raises(VideoError, match=r"truncated|cut short"):
        VideoClip(path)


def test_truncated_behind_its_index_is_refused_and_salvaged(tmp_path: Path) -> None:
    """An mp4 for the web has its index in front, and opens although most of it is missing."""
    whole = tmp_path / "whole.mp4"
    first = write_video(tmp_path / "a.mp4", smooth_frames(60, 64, 48, "yuv420p"), options={"g": "12"})
    ffmpeg("-i", first, "-c", "copy", "-movflags", "faststart", whole)
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: int(0.7 * whole.stat().st_size)])
    with pytest.raises(VideoError, match=r"it declares 60 frames and holds \d+"):
        VideoClip(path)
    clip = VideoClip(path, salvage=True)
    assert 10 < len(clip) < 60
    frames = [f for f in clip.frames_and_packets() if isinstance(f, Frame)]
    assert 10 < len(frames) <= len(clip)
    assert clip.damage


def test_damage_in_the_middle_is_named_and_salvaged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", smooth_frames(60, 128, 96, "yuv420p"), options={"g": "12"})
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 300] = np.random.default_rng(1).bytes(300)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged after frame \d+.*--salvage"):
        list(VideoClip(path).frames_and_packets())
    with pytest.raises(VideoError, match=r"damaged after frame|cannot be decoded"):
        VideoClip(path).read()
    clip = VideoClip(path, salvage=True)
    assert 40 < sum(isinstance(e, Frame) for e in clip.frames_and_packets()) < 61
    assert "damaged in" in clip.damage[0]


def test_concealed_damage_is_noticed(tmp_path: Path) -> None:
    """60 bytes overwritten anywhere in the pictures of an H.264 file: the decoder paints over it and goes on.
    What decodes to another picture without an error cannot be noticed: 1 of 20 here."""
    path = write_video(tmp_path / "a.mp4", smooth_frames(60, 128, 96, "yuv420p"), options={"g": "12"})
    data = path.read_bytes()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 64
    salvaged: list[int] = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        at = int(random.integers(start, end))
        path.write_bytes(data[:at] + random.bytes(60) + data[at + 60 :])
        clip = VideoClip(path)
        try:
            frames = sum(isinstance(item, Frame) for item in clip.frames_and_packets())
            assert frames == 60
        except VideoError:
            salvaged.append(len(list(VideoClip(path, salvage=True).frames_and_packets())))
    assert len(salvaged) >= 18
    assert min(salvaged) >= 60 - 12  # a group of pictures at most is lost


def test_size_that_changes_is_named(tmp_path: Path) -> None:
    parts = []
    for k, size in enumerate((32, 48)):
        parts.append(write_video(tmp_path / f"{k}.ts", smooth_frames(5, size, 32, "yuv420p")).read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match="48x32 and the first 32x32"):
        list(VideoClip(path).frames_and_packets())


def test_real_clips(shared_data: Path) -> None:
    for name, frames in (("bikes", 250), ("carphone", 120), ("blocks_720p", 292)):
        clip = VideoClip(shared_data / "videos" / f"{name}.mp4")
        assert len(clip) == frames
        late = clip.read(frames - 2)
        raw = decode_by_ffmpeg(clip.path, "yuv420p", "-sws_flags", "bitexact")
        size = clip.size[0] * clip.size[1] * 3 // 2
        assert len(raw) == frames * size
        luma = np.frombuffer(raw[-size:], np.uint8)[: clip.size[0] * clip.size[1]].reshape(clip.size)
        weights = torch.tensor(clip.properties.colour.luma_weights(*clip.size))
        kr, kb = weights.tolist()
        ours = (late[-1].float() * torch.tensor([kr, 1 - kr - kb, kb])[:, None, None]).sum(0) * 219 / 255 + 16
        assert np.abs(ours.numpy() - luma).mean() < 1.0
