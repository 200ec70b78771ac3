"""What lies beside the pictures, and alpha: it is kept, or named, and never costs the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stan.data.video import OutputSettings, VideoClip, VideoWriter, open_output
from stan.errors import VideoError

from .clips import ffmpeg, probe, probe_times, smooth_frames, write_video
from .test_writer import copy, video_of

PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.4")
SOUND = ("-f", "lavfi", "-i", "sine=r=48000:d=0.4")
QUICK = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
SLOPE = "color=red:s=96x64:d=0.5:r=10,format=yuva420p,geq=lum='p(X,Y)':cb='cb(X,Y)':cr='cr(X,Y)':a='X*2'"
VPX = {"vp9": "libvpx-vp9", "vp8": "libvpx"}


def with_sound(path: Path, codec: str) -> Path:
    ffmpeg(*PICTURES, *SOUND, *QUICK, "-c:a", codec, "-strict", "-2", path)
    return path


def codecs(path: Path) -> list[str | None]:
    return [s.get("codec_name") for s in probe(path)["streams"]]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QuickTime file with sound and a track of time code."""
    path = tmp_path_factory.mktemp("timed") / "timed.mov"
    ffmpeg(*PICTURES, *SOUND, *QUICK, "-c:a", "aac", "-timecode", "01:00:00:00", path)
    assert [s["codec_type"] for s in probe(path)["streams"]] == ["video", "audio", "data"]
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_time_code_is_kept(tmp_path: Path, timed: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    assert copy(timed, output).notes == []
    assert codecs(output)[:2] == ["h264", "aac"]
    tags = {k.lower(): v for k, v in video_of(output)["tags"].items()}
    assert tags["timecode"] == "01:00:00:00"
    assert len(probe_times(output)) == 10


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_other_data_are_named_and_the_video_is_written(tmp_path: Path, timed: Path, suffix: str) -> None:
    """The metadata track of a telephone."""
    held = timed.read_bytes().replace(b"tmcd", b"mebx").replace(b"mhlrmebx", b"mhlrmeta")
    (tmp_path / "phone.mov").write_bytes(held.replace(b"TimeCodeHandler", b"Core Media Data"))
    output = tmp_path / f"out{suffix}"
    notes = copy(tmp_path / "phone.mov", output).notes
    assert notes == ["the data stream 2 (Core Media Data) is left out: data are not copied"]
    assert codecs(output) == ["h264", "aac"]
    assert len(probe_times(output)) == 10


def test_a_track_of_chapters_is_not_called_lost(tmp_path: Path, timed: Path) -> None:
    chapters = ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=200\ntitle=first\n"
    (tmp_path / "chapters.txt").write_text(chapters)
    source = tmp_path / "in.mp4"
    ffmpeg("-i", timed, "-i", tmp_path / "chapters.txt", "-map", "0:v", "-map_chapters", "1", "-c", "copy",
           "-write_tmcd", "0", source)  # fmt: skip
    assert [s["codec_type"] for s in probe(source)["streams"]] == ["video", "data"]
    assert copy(source, tmp_path / "out.mp4").notes == []
    assert [c["tags"]["title"] for c in probe(tmp_path / "out.mp4")["chapters"]] == ["first"]


@pytest.mark.parametrize("codec", ["flac", "libopus", "truehd"])
def test_sound_that_quicktime_refuses_is_named(tmp_path: Path, codec: str) -> None:
    """PyAV takes it, and FFmpeg refuses when the header is written."""
    output = tmp_path / "out.mov"
    notes = copy(with_sound(tmp_path / "in.mkv", codec), output).notes
    name = codec.removeprefix("lib")
    assert notes == [f"the audio stream 1 ({name}) is left out: .mov cannot hold it; .mkv holds most"]
    assert codecs(output) == ["h264"]
    assert len(probe_times(output)) == 10


@pytest.mark.parametrize("codec", ["truehd", "eac3", "flac"])
def test_sound_that_mp4_holds_is_kept(tmp_path: Path, codec: str) -> None:
    """TrueHD FFmpeg calls experimental, and in Matroska two of its packets share a millisecond."""
    source, output = with_sound(tmp_path / "in.mkv", codec), tmp_path / "out.mp4"
    assert copy(source, output).notes == []
    assert codecs(output) == ["h264", codec]

    def sound(path: Path) -> bytes:
        return ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "data", "-")

    assert sound(output) == sound(source)


@pytest.mark.parametrize(
    ("codec", "suffix", "added"),
    [("wmav2", ".asf", "wmav2"), ("adpcm_ima_wav", ".avi", "adpcm_ima_wav"), ("mov_text", ".mp4", "subrip")],
)
def test_what_pyav_cannot_copy_ffmpeg_adds_as_told(
    tmp_path: Path, codec: str, suffix: str, added: str
) -> None:
    source, output = tmp_path / f"in{suffix}", tmp_path / "out.mkv"
    if codec == "mov_text":
        (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nhello\n")
        ffmpeg(*PICTURES, "-i", tmp_path / "s.srt", *QUICK, "-c:s", codec, source)
    else:
        with_sound(source, codec)
    (note,) = copy(source, output).notes
    assert f"stream 1 ({codec}) is left out: PyAV cannot copy it; ffmpeg -i OUTPUT -i INPUT" in note
    words = note.split("; ffmpeg ")[1].removesuffix(" may add it").split()
    places = {"OUTPUT": output, "INPUT": source}
    ffmpeg(*(places.get(word, word) for word in words), tmp_path / "both.mkv")
    assert codecs(tmp_path / "both.mkv") == ["h264", added]


def test_the_encoder_is_not_blamed_for_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that trials did not foresee costs the copies, not the video; its own fault the encoder bears."""
    source = with_sound(tmp_path / "in.mkv", "flac")
    monkeypatch.setattr(VideoWriter, "_refusal", lambda *_: "")
    (note,) = copy(source, tmp_path / "out.mov").notes
    assert note == "all streams but the video are left out: .mov refuses them (Invalid argument)"
    assert len(probe_times(tmp_path / "out.mov")) == 10
    with pytest.raises(VideoError, match="libx264 cannot write 64x48"):
        open_output(tmp_path / "b.mov", VideoClip(source), OutputSettings(options={"preset": "warp"}))


def test_a_colon_in_a_relative_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_video(tmp_path / "in.mp4", smooth_frames(3, 32, 32, "yuv420p"))
    monkeypatch.chdir(tmp_path)
    copy(source, Path("out12:30.mp4"))
    assert len(probe_times(tmp_path / "out12:30.mp4")) == 3


def alpha_of(path: Path) -> np.ndarray:
    """Codes of the alpha plane as ffmpeg has them, 255 where there is none."""
    decoder = VPX.get(video_of(path)["codec_name"])
    words = ["-c:v", decoder] if decoder else []
    raw = ["-vf", "format=yuva444p,alphaextract", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    return np.frombuffer(ffmpeg(*words, "-i", path, *raw), np.uint8).reshape(-1, 64, 96).astype(int)


def sloping(path: Path, codec: str, pixel_format: str = "yuva420p") -> Path:
    """A red picture that is the more opaque the farther to the right."""
    extra = ["-auto-alt-ref", "0"] if codec == "libvpx" else []
    ffmpeg("-f", "lavfi", "-i", SLOPE, "-c:v", codec, *extra, "-pix_fmt", pixel_format, path)
    np.testing.assert_allclose(alpha_of(path)[0, 0, ::40], [0, 80, 160], atol=1)
    return path


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_alpha_of_webm_is_kept(tmp_path: Path, codec: str, suffix: str) -> None:
    source, output = sloping(tmp_path / "in.webm", codec), tmp_path / f"out{suffix}"
    writer = copy(source, output, codec="vp9" if suffix == ".webm" else "ffv1")
    assert writer.notes == []
    assert np.abs(alpha_of(output) - alpha_of(source)).max() <= 1
    kept = [frame.alpha for frame in VideoClip(output).frames(2, 4)]  # after seeking
    assert [round(255 * float(alpha[9, 40])) for alpha in kept if alpha is not None] == [80, 80]


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("h265", ".mkv"), ("vp9", ".mp4")])
@pytest.mark.parametrize("given", ["vp9", "rgb"])
def test_alpha_that_is_lost_is_told(tmp_path: Path, given: str, codec: str, suffix: str) -> None:
    if given == "vp9":
        source = sloping(tmp_path / "in.webm", "libvpx-vp9")
    else:
        source = sloping(tmp_path / "in.mkv", "ffv1", "bgra")
    (note,) = copy(source, tmp_path / f"out{suffix}", codec=codec).notes
    assert "keeps no alpha: it is left out" in note
    found = video_of(tmp_path / f"out{suffix}")
    assert found["pix_fmt"] == "yuv420p"
    assert "alpha_mode" not in {k.lower() for k in found["tags"]}


def test_a_mark_without_alpha_is_not_passed_on(tmp_path: Path) -> None:
    """FFmpeg's own decoder leaves alpha out, and the mark remains in what is converted so."""
    source = tmp_path / "in.webm"
    ffmpeg(*PICTURES, "-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-metadata:s:v", "alpha_mode=1", source)
    assert "alpha_mode" in {k.lower() for k in video_of(source)["tags"]}
    assert VideoClip(source).properties.pixel_format == "yuv420p"
    assert copy(source, tmp_path / "out.webm").notes == []
    assert "alpha_mode" not in {k.lower() for k in video_of(tmp_path / "out.webm")["tags"]}
