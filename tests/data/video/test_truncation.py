"""Files that declare more than they hold, and are whole; and such whose time stamps start anew."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from stan.data.video import VideoClip
from stan.errors import VideoError

from .clips import ffmpeg, probe_times

COLOURS = "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=3"
SOUND = "-f", "lavfi", "-i", "sine=d=3"
H264 = "-c:v", "libx264", "-g", "10"

WHOLE = {
    "padded.avi": [*COLOURS, *SOUND],  # mp3 needs a header of its own, which counts as a frame
    "dropped.avi": [
        *COLOURS,
        "-vf",
        "select='not(between(n,10,14))'",
        "-fps_mode",
        "passthrough",
        "-c:v",
        "ffv1",
    ],
    "late.mkv": [*COLOURS, *H264, "-output_ts_offset", "100"],
    "in_pieces.mp4": [*COLOURS, *H264, "-movflags", "frag_keyframe+empty_moov"],
    "12:30.mp4": [*COLOURS, *H264],
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg(*WHOLE[name], f"file:{tmp_path / name}")
    monkeypatch.chdir(tmp_path)
    assert len(VideoClip(Path(name))) == (70 if name == "dropped.avi" else 75)
    path = Path("cut").with_suffix(Path(name).suffix)
    path.write_bytes(Path(name).read_bytes()[:-2000])
    with pytest.raises(VideoError, match=r"truncated|cut short"):
        VideoClip(path)


def test_a_piece_of_a_longer_recording(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    ffmpeg(*COLOURS, *H264, whole)
    ffmpeg("-i", whole, "-c", "copy", "-f", "segment", "-segment_time", "1", tmp_path / "piece%d.mkv")
    assert sum(len(VideoClip(path)) for path in sorted(tmp_path.glob("piece*.mkv"))) == 75


def test_the_head_cut_off_by_an_edit_list(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "trimmed.mp4"
    ffmpeg(*COLOURS, *SOUND, *H264, whole)
    words = "-map", "0:v", "-map", "1:a", "-c", "copy", "-avoid_negative_ts", "disabled"
    ffmpeg("-itsoffset", "-0.7", "-i", whole, "-i", whole, *words, path)
    assert 55 < len(VideoClip(path)) < 75


@pytest.mark.parametrize("name", ["joined.ts", "joined.vob"])
def test_joined_recordings_are_refused_before_any_work(name: str, tmp_path: Path) -> None:
    """Two frames of one time cannot both be written; the way out that the message names works."""
    part, path = tmp_path / f"part{Path(name).suffix}", tmp_path / name
    ffmpeg(*COLOURS, "-c:v", "mpeg2video", part)
    path.write_bytes(2 * part.read_bytes())
    with pytest.raises(VideoError, match="start anew at frame 76") as caught:
        VideoClip(path)
    command = shlex.split(str(caught.value).split("(ffmpeg ")[1].removesuffix(")"))
    ffmpeg(*command[:-1], tmp_path / command[-1])
    times = probe_times(tmp_path / command[-1])
    assert len(times) == len(VideoClip(tmp_path / command[-1])) == 150
    assert max(b - a for a, b in pairwise(map(float, times))) < 0.1
