"""`stan denoise` as a user types it: the real command, on real files, between real ffmpegs."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stan.cli import main
from stan.data.video import open_source
from tests.conftest import stan_command
from tests.data.video.clips import (
    decode_by_ffmpeg,
    ffmpeg,
    probe,
    probe_times,
    random_frame,
    smooth_frames,
    tool,
    write_video,
)

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of 40x24 with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, smooth_frames(12, 40, 24, "yuv420p"), audio=True, tags=(1, 1, 1, 1))


def test_a_video_file(run_stan: Callable, tmp_path: Path, clip: Path, checkpoints: Path) -> None:
    output = tmp_path / "out.mkv"
    words = ["--checkpoint", checkpoints / "sigma.ckpt", "--sigma", 20, "--lossless", "--memory", "2GiB"]
    done = run_stan("denoise", clip, output, *words)
    assert done.stdout == f"{output}\n"
    assert "12 frames" in done.stderr
    assert "noise level 20.0" in done.stderr
    assert decode_by_ffmpeg(output, "yuv420p") == decode_by_ffmpeg(clip, "yuv420p")
    assert [s["codec_name"] for s in probe(output)["streams"]] == ["ffv1", "aac"]
    assert os.listdir(tmp_path) == ["out.mkv"]


def test_another_temporal_window(tmp_path: Path, clip: Path) -> None:
    """`denoise --temporal-window` gives what weights exported with that window give, and not what they give as they
    are."""
    narrow = tmp_path / "narrow.safetensors"
    assert main(["export", "stan_tiny", str(narrow), "--temporal-window", "1"]) == 0
    for name, words in (
        ("asked", ["--temporal-window", "1"]),
        ("own", []),
        ("narrow", ["--checkpoint", str(narrow)]),
    ):
        assert (
            main(["denoise", str(clip), str(tmp_path / f"{name}.mkv"), "--sigma", "20", "--lossless", *words])
            == 0
        )
    asked, own, exported = (
        decode_by_ffmpeg(tmp_path / f"{name}.mkv", "yuv420p") for name in ("asked", "own", "narrow")
    )
    assert asked == exported != own


def test_no_sigma_is_estimated_and_said_in_one_line(
    tmp_path: Path, clip: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "denoise",
        str(clip),
        str(tmp_path / "o.mp4"),
        "--checkpoint",
        str(checkpoints / "sigma.ckpt"),
        "--chunk",
        "6",
    ]
    assert main(words) == 0
    lines = capfd.readouterr().err.splitlines()
    assert sum("noise level is estimated" in line for line in lines) == 1
    assert sum("warning: sigma" in line and "(5 to 55)" in line for line in lines) == 1
    assert sum("noise level" in line for line in lines) == 2
    assert all(line.startswith("stan: ") for line in lines)


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_that_a_processor_emulates_is_said(
    tmp_path: Path, clip: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, instructions: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: instructions)
    words = ["denoise", str(clip), str(tmp_path / "o.mkv"), "--checkpoint", str(checkpoints / "sigma.ckpt")]
    words += ["--sigma", "20", "--chunk", "12", "--device", "cpu", "--overwrite"]
    assert main([*words, "--precision", "bf16"]) == 0
    assert ("bfloat16 is emulated on this device" in capfd.readouterr().err) == (not instructions)
    assert main([*words, "--precision", "32"]) == 0
    assert "bfloat16" not in capfd.readouterr().err


def test_strength_says_both_levels(
    tmp_path: Path, clip: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoints / "sigma.ckpt"), "--chunk", "6", "--sigma", "20"]
    assert main(["denoise", str(clip), str(tmp_path / "o.mp4"), *words, "--strength", "0.7"]) == 0
    assert "noise level 20.0, denoised as 14.0 (strength 0.7)\n" in capfd.readouterr().err
    assert main(["denoise", str(clip), str(tmp_path / "p.mp4"), *words]) == 0
    assert "noise level 20.0\n" in capfd.readouterr().err


def test_blind_and_not_blind(
    tmp_path: Path, clip: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["denoise", str(clip), str(tmp_path / "o.mp4"), "--blind", "--chunk", "6", "--checkpoint"]
    assert main([*words, str(checkpoints / "blind.ckpt")]) == 0
    assert "noise level" not in capfd.readouterr().err
    assert main([*words, str(checkpoints / "sigma.ckpt"), "--overwrite"]) == 2
    assert "is not blind" in capfd.readouterr().err


def test_folder_of_pictures_preview_and_compare(
    tmp_path: Path, clip: Path, checkpoints: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--checkpoint",
        str(checkpoints / "sigma.ckpt"),
        "--sigma",
        "10",
        "--chunk",
        "4",
        "--tile",
        "24x32",
        "--overlap",
        "8",
    ]
    frames = tmp_path / "frames"
    assert main(["denoise", str(clip), f"{frames}/", *common]) == 0
    assert sorted(p.name for p in frames.iterdir()) == [f"{k:05d}.png" for k in range(12)]
    assert (
        main(
            [
                "denoise",
                f"{frames}/0000*.png",
                str(tmp_path / "both.mp4"),
                *common,
                "--compare",
                "--fps",
                "12000/1001",
            ]
        )
        == 0
    )
    found = probe(tmp_path / "both.mp4")["streams"][0]
    assert (found["width"], found["height"], found["nb_frames"], found["r_frame_rate"]) == (
        80,
        24,
        "10",
        "12000/1001",
    )
    assert main(["denoise", str(clip), str(tmp_path / "x.mp4"), *common, "--preview", "2"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "x.preview")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.mp4", "frames", "x.preview"]


def test_bar_and_ctrl_c(tmp_path: Path, checkpoints: Path) -> None:
    """On a terminal there is a bar with speed and time left; Ctrl-C leaves what was done, playable."""
    source = write_video(
        tmp_path / "in.mp4", smooth_frames(400, 64, 48, "yuv420p"), options={"g": "50"}, audio=True
    )
    ours, theirs = pty.openpty()
    words = [
        "denoise",
        source,
        tmp_path / "out.mp4",
        "--checkpoint",
        checkpoints / "sigma.ckpt",
        "--sigma",
        9,
        "--chunk",
        8,
    ]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(stan_command(*words), stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = ""
    try:
        while not re.search(r"[1-9]\d*/400 frames *\d+\.\d+ frames/s", shown):
            shown += os.read(ours, 4096).decode("utf-8", "replace")
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            shown += _read_or_nothing(ours)
        shown += _read_or_nothing(ours)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 130, shown
    assert "left" in shown
    assert "interrupted: the first" in shown
    assert "Traceback" not in shown
    partial = tmp_path / "out.partial.mp4"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.partial.mp4"]
    counted = int(re.findall(r"the first (\d+) frames", shown)[-1])
    times = probe_times(partial)
    assert 0 < len(times) == counted < 400
    assert times == probe_times(source)[:counted]
    assert [s["codec_type"] for s in probe(partial)["streams"]] == ["video", "audio"]


def _read_or_nothing(terminal: int) -> str:
    time.sleep(0.02)
    os.set_blocking(terminal, False)
    try:
        return os.read(terminal, 65536).decode("utf-8", "replace")
    except OSError:  # nothing there, or the other side is closed
        return ""


@pytest.mark.parametrize("kind", ["y4m", "raw"])
def test_between_two_ffmpegs(tmp_path: Path, clip: Path, checkpoints: Path, kind: str) -> None:
    """ffmpeg decodes, the network denoises frame by frame, ffmpeg encodes; every code value arrives."""
    decode = [tool("ffmpeg"), "-v", "error", "-i", str(clip)]
    encode = [tool("ffmpeg"), "-v", "error"]
    if kind == "y4m":
        decode += ["-f", "yuv4mpegpipe", "-"]
        encode += ["-i", "-"]
        words: list[object] = []
    else:
        decode += ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
        encode += ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "40x24", "-r", "25", "-i", "-"]
        words = ["--raw", "yuv420p", "--size", "40x24"]
    output = tmp_path / "out.mkv"
    stan = stan_command(
        "denoise", "-", "-", "--stream", "--checkpoint", checkpoints / "causal.safetensors", *words
    )
    first = subprocess.Popen(decode, stdout=subprocess.PIPE)
    second = subprocess.Popen(stan, stdin=first.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    third = subprocess.Popen([*encode, "-c:v", "ffv1", str(output)], stdin=second.stdout)
    assert first.stdout is not None
    assert second.stdout is not None
    assert second.stderr is not None
    first.stdout.close()
    second.stdout.close()
    lines = second.stderr.read().decode()
    assert (third.wait(100), second.wait(10), first.wait(10)) == (0, 0, 0), lines
    second.stderr.close()
    assert "delay of 0 frames" in lines
    assert decode_by_ffmpeg(output, "yuv420p") == decode_by_ffmpeg(clip, "yuv420p")


def test_a_pipe_by_name(tmp_path: Path, clip: Path, checkpoints: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    y4m = tmp_path / "in.y4m"
    ffmpeg("-i", clip, y4m)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    thread.start()
    words = ["denoise", str(y4m), str(pipe), "--stream", "--checkpoint", str(checkpoints / "blind.ckpt")]
    assert main(words) == 0
    thread.join(20)
    assert got == [y4m.read_bytes()]


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_nobody_listens(tmp_path: Path, clip: Path, checkpoints: Path, where: str) -> None:
    """Standard error closed or full: the result is there, and nothing else on standard output."""
    words = stan_command(
        "denoise", clip, tmp_path / "o.mkv", "--chunk", "6", "--checkpoint", checkpoints / "sigma.ckpt"
    )
    done = subprocess.run(
        f"{shlex.join(words)} {where}", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'o.mkv'}\n")
    assert len(probe_times(tmp_path / "o.mkv")) == 12


@pytest.mark.parametrize(
    ("where", "said"), [("<&-", "standard input is closed"), (">&-", "output is closed")]
)
def test_closed_pipes(tmp_path: Path, clip: Path, checkpoints: Path, where: str, said: str) -> None:
    ffmpeg("-i", clip, tmp_path / "in.y4m")
    words = stan_command(
        "denoise", "-", "-", "--stream", "--sigma", "9", "--checkpoint", checkpoints / "blind.ckpt"
    )
    line = f"{shlex.join(words)} < {shlex.quote(str(tmp_path / 'in.y4m'))} {where}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away(clip: Path, checkpoints: Path) -> None:
    """... | head: no traceback."""
    data = decode_by_ffmpeg(clip, "rgb24") * 20
    words = [
        "--stream",
        "--raw",
        "rgb24",
        "--size",
        "40x24",
        "--checkpoint",
        checkpoints / "causal.safetensors",
    ]
    command = stan_command("denoise", "-", "-", *words)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    feeder = threading.Thread(target=_feed, args=(process.stdin, data), daemon=True)
    feeder.start()
    process.stdout.read(100)
    process.stdout.close()
    lines = process.stderr.read().decode()
    assert process.wait(60) == 1, lines
    assert "Traceback" not in lines
    assert "BrokenPipe" not in lines
    feeder.join(20)


def _feed(pipe: object, data: bytes) -> None:
    try:
        pipe.write(data)  # type: ignore[attr-defined]
        pipe.close()  # type: ignore[attr-defined]
    except BrokenPipeError:
        pass


def test_real_clip_is_denoised(
    run_stan: Callable, tmp_path: Path, shared_data: Path, checkpoints: Path
) -> None:
    """The start of a real video with sound, through the real network (which changes nothing) and H.264."""
    source = tmp_path / "in.mp4"
    words = [
        "-i",
        shared_data / "videos/blocks_720p.mp4",
        "-vf",
        "scale=320:180",
        "-t",
        "0.4",
        "-c:a",
        "copy",
        source,
    ]
    ffmpeg(*words)
    run_stan(
        "denoise",
        source,
        tmp_path / "out.mp4",
        "--checkpoint",
        checkpoints / "sigma.ckpt",
        "--chunk",
        6,
        "--quality",
        10,
    )
    a, b = (open_source(p).read().numpy().astype(np.float32) for p in (source, tmp_path / "out.mp4"))
    assert 10 * np.log10(255**2 / np.mean((a - b) ** 2)) > 42
    assert [s["codec_type"] for s in probe(tmp_path / "out.mp4")["streams"]] == ["video", "audio"]
    assert probe_times(tmp_path / "out.mp4") == probe_times(source)


def test_alpha_and_depth_through_the_command(tmp_path: Path, checkpoints: Path) -> None:
    source = write_video(
        tmp_path / "in.mkv", [random_frame(24, 16, "bgra", s) for s in range(3)], codec="ffv1"
    )
    words = ["--checkpoint", str(checkpoints / "blind.ckpt"), "--chunk", "3", "--lossless"]
    assert main(["denoise", str(source), str(tmp_path / "out.mkv"), *words]) == 0
    assert decode_by_ffmpeg(tmp_path / "out.mkv", "bgra") == decode_by_ffmpeg(source, "bgra")
