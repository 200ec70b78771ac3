"""What is left behind when the work fails half-way: nothing, or after Ctrl-C a playable part."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from stan.data.video import CopiedPacket, Frame, OutputSettings, VideoClip, VideoWriter, open_source
from stan.data.video.pictures import read_picture
from stan.data.video.unfinished import MACHINE
from stan.errors import VideoError
from stan.inference import Options
from stan.inference.files import denoise_file, preview_file
from stan.inference.tiling import TilePlan
from tests.data.video.clips import probe, probe_times, random_frame, smooth_frames, write_video

from .networks import StandIn, identity

TILES = Options(tiles=TilePlan(frames=4, frame_overlap=0))
OVERWRITE = OutputSettings(overwrite=True)
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("stan-")] == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_video(tmp_path / "in" / "clip.mp4", smooth_frames(24, 48, 32, "yuv420p"), audio=True)


def failing(after: int, error: BaseException) -> StandIn:
    """An identity that raises ``error`` instead of its chunk number ``after``."""
    calls: list[int] = []

    def core(noisy: Tensor, _: object, __: object) -> Tensor:
        calls.append(1)
        if len(calls) > after:
            raise error
        return noisy

    return StandIn(core)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "in")


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "frames"])
def test_ctrl_c_leaves_a_playable_part(tmp_path: Path, source: Path, output: str) -> None:
    result = denoise_file(
        failing(3, KeyboardInterrupt()), source, tmp_path / output, replace(TILES, scenes=False)
    )
    assert result.interrupted
    assert (result.frames, result.total) == (12, 24)
    part = {"out.mp4": "out.partial.mp4", "out.mkv": "out.partial.mkv", "frames": "frames.partial"}[output]
    assert result.output == tmp_path / part
    assert left(tmp_path) == [part]
    if output == "frames":
        assert len(open_source(tmp_path / part)) == 12
        return
    assert len(probe_times(tmp_path / part)) == 12
    streams = probe(tmp_path / part)["streams"]
    assert [s["codec_type"] for s in streams] == ["video", "audio"]
    assert open_source(tmp_path / part).read().shape == (12, 3, 32, 48)


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path: Path, source: Path) -> None:
    result = denoise_file(failing(0, KeyboardInterrupt()), source, tmp_path / "out.mp4", TILES)
    assert result.interrupted
    assert (result.output, result.frames) == (None, 0)
    assert left(tmp_path) == []


@pytest.mark.parametrize("output", ["out.mp4", "frames"])
def test_a_failing_network_leaves_nothing(tmp_path: Path, source: Path, output: str) -> None:
    (tmp_path / "out.mp4").write_text("the last good result")
    with pytest.raises(ZeroDivisionError):
        denoise_file(failing(3, ZeroDivisionError()), source, tmp_path / output, TILES, OVERWRITE)
    assert left(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "the last good result"


def test_damage_half_way_leaves_nothing_and_salvage_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write_video(
        tmp_path / "in" / "a.mp4", smooth_frames(60, 128, 96, "yuv420p"), options={"g": "12", "bf": "0"}
    )
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 300] = bytes(range(256)) + bytes(44)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged after frame \d+"):
        denoise_file(identity(), path, tmp_path / "out.mp4", TILES)
    assert left(tmp_path) == []
    lines: list[str] = []
    result = denoise_file(
        identity(), open_source(path, salvage=True), tmp_path / "out.mp4", replace(TILES, tell=lines.append)
    )
    assert 30 < result.frames <= 60
    assert len(probe_times(tmp_path / "out.mp4")) == result.frames
    assert any("damaged in" in line for line in lines)


def test_a_damaged_picture_is_named_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    denoise_file(identity(), source, tmp_path / "in" / "frames", TILES)
    bad = tmp_path / "in" / "frames" / "00017.png"
    bad.write_bytes(bad.read_bytes()[:200])
    for output in ("out.mp4", "clean"):
        with pytest.raises(VideoError, match=r"00017\.png is cut short"):
            denoise_file(identity(), tmp_path / "in" / "frames", tmp_path / output, TILES)
    assert left(tmp_path) == []


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond a number of bytes: what a full disk is to a writer, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("output", ["out.mkv", "out.mp4", "frames", "one.tif"])
def test_no_room_for_the_output(tmp_path: Path, limit_files: Callable[[int], None], output: str) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for k in range(1 if output == "one.tif" else 12):
        pixels = random_frame(96, 60, "rgb24", k).to_ndarray()  # noise, which does not shrink: 17 kB
        (pictures / f"{k}.ppm").write_bytes(b"P6 96 60 255\n" + pixels.tobytes())
    limit_files(100_000 if output.startswith("out") else 10_000)
    settings = OutputSettings(lossless=True) if output.startswith("out") else OutputSettings()
    with pytest.raises(VideoError, match="exceeds the largest file allowed"):
        denoise_file(identity(), pictures, tmp_path / output, TILES, settings)
    assert left(tmp_path) == []


def test_preview_that_fails_leaves_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        preview_file(failing(1, ZeroDivisionError()), source, tmp_path / "out.mp4", 3, TILES)
    assert left(tmp_path) == []


def test_what_killed_runs_left_is_removed(tmp_path: Path, source: Path) -> None:
    """Hidden files of dead processes go when the same output is written again; those that may be in use stay."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    old, now = time.time() - 7200, time.time()
    gone = {
        f".out.part-{MACHINE}-{ended.pid}.mp4": now,
        f".out.part-0123abcd-{os.getpid()}.mp4": old,  # of another machine, and nothing writes it
        f".frames.part-{MACHINE}-{ended.pid}": now,
    }
    stay = {
        f".out.part-{MACHINE}-{os.getppid()}.mp4": old,  # of a process that lives
        f".out.part-{MACHINE}-{10**30}.mp4": old,  # no process number
        f".out.part-0123abcd-{ended.pid}.mp4": now,  # of another machine, perhaps being written
        f".other.part-{MACHINE}-{ended.pid}.mp4": old,
    }
    for name, when in {**gone, **stay}.items():
        (tmp_path / name).mkdir() if name.startswith(".frames") else (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    for output in ("out.mp4", "frames"):
        denoise_file(identity(), source, tmp_path / output, TILES)
    assert left(tmp_path) == sorted([*stay, "out.mp4", "frames"])


def test_reading_computing_and_writing_overlap(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a chunk is computed the frames of the next are read and those of the one before are written: here
    each waits until the others have done so, which would never end if they took turns."""
    read, computing, written = [0], [0], [0]
    moved = threading.Condition()
    waits: list[bool] = []

    def count(what: list[int]) -> None:
        with moved:
            what[0] += 1
            moved.notify_all()

    def wait(until: Callable[[], bool]) -> None:
        with moved:
            waits.append(moved.wait_for(until, 20))

    frames_of = VideoClip.frames_and_packets

    def reading(clip: VideoClip, copied: Sequence[int] = ()) -> Iterator[object]:
        for item in frames_of(clip, copied):
            yield item
            count(read)

    write_of = VideoWriter.write

    def writing(writer: VideoWriter, item: Frame | CopiedPacket) -> None:
        chunk = written[0] // 4  # of this frame
        wait(lambda: computing[0] > min(chunk + 1, 5))
        write_of(writer, item)
        count(written)

    def core(noisy: Tensor, _: object, __: object) -> Tensor:
        count(computing)
        wait(lambda: read[0] >= min(4 * computing[0] + 4, 24))
        return noisy

    monkeypatch.setattr(VideoClip, "frames_and_packets", reading)
    monkeypatch.setattr(VideoWriter, "write", writing)
    silent = write_video(tmp_path / "in" / "silent.mp4", smooth_frames(24, 48, 32, "yuv420p"))
    result = denoise_file(StandIn(core), silent, tmp_path / "out.mp4", replace(TILES, scenes=False))
    assert result.frames == 24
    assert computing[0] == 6
    assert all(waits)


def test_overwrite_replaces_only_when_done(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_text("old")

    def core(noisy: Tensor, _: object, __: object) -> Tensor:
        assert output.read_text() == "old"
        return noisy

    denoise_file(StandIn(core), source, output, TILES, OVERWRITE)
    assert len(probe_times(output)) == 24
    denoise_file(identity(), source, tmp_path / "frames", TILES)
    old = read_picture(tmp_path / "frames" / "00023.png")
    denoise_file(StandIn(lambda noisy, _, __: noisy * 0), source, tmp_path / "frames", TILES, OVERWRITE)
    assert old.any()
    assert not read_picture(tmp_path / "frames" / "00023.png").any()
