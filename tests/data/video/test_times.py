"""Frames by number, and their times, where formats search badly or do not say when frames are shown."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from stan.data.video import Frame, VideoClip

from .clips import ffmpeg

COLOURS = "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2"
SOUND = "-f", "lavfi", "-i", "sine=d=2"


def check(path: Path, frames: int) -> list[int]:
    """The times of all frames in order, and that frames by number are the same ones."""
    clip = VideoClip(path)
    given = [item for item in clip.frames_and_packets() if isinstance(item, Frame)]
    assert len(clip) == len(given) == frames
    assert not clip.damage_found(len(given))
    for number in {1, frames // 4, frames // 4 + 1, frames // 2, frames - 2, frames - 1}:
        (frame,) = VideoClip(path).frames(number, number + 1)
        assert torch.equal(frame.rgb, given[number].rgb), number
    return [frame.pts for frame in given]


def test_a_format_that_cannot_seek(tmp_path: Path) -> None:
    path = tmp_path / "raw.mjpeg"
    ffmpeg(*COLOURS, "-s", "320x240", path)
    assert len({b - a for a, b in pairwise(check(path, 50))}) == 1


@pytest.mark.parametrize("name", ["a.ts", "a.vob", "a.flv"])
def test_seeking_that_goes_astray(name: str, tmp_path: Path) -> None:
    """By times of decoding, or into the middle of a keyframe."""
    h264, mpeg2 = ["libx264", "-bf", "2", "-g", "3"], ["mpeg2video", "-bf", "2", "-g", "12", "-c:a", "mp2"]
    ffmpeg(*COLOURS, *SOUND, "-c:v", *(mpeg2 if name == "a.vob" else h264), tmp_path / name)
    check(tmp_path / name, 50)


def test_avi_tells_only_the_order_of_decoding(tmp_path: Path) -> None:
    path = tmp_path / "reordered.avi"
    ffmpeg(*COLOURS, "-c:v", "libx264", "-bf", "3", "-g", "10", path)
    assert {b - a for a, b in pairwise(check(path, 50))} == {1}
