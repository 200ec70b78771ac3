"""Bad input gets one clear line and exit code 2, and leaves nothing behind.

The table in docs/denoise.md is checked against what the command really says;
`python -m tests.cli.test_denoise_bad_input` prints it.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest

import stan.models
from stan.cli import main
from stan.data.video.pictures import write_picture
from tests.data.video.clips import ffmpeg, random_frame, smooth_frames, write_video

DOCS = Path(__file__).resolve().parents[2] / "docs" / "denoise.md"


def good(name: str = "in.mp4", frames: int = 60, **settings: object) -> Path:
    return write_video(Path(name), smooth_frames(frames, 64, 48, "yuv420p"), options={"g": "12"}, **settings)  # type: ignore[arg-type]


def cut(name: str, part: float = 0.6, **settings: object) -> None:
    path = good(name, **settings)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def text() -> None:
    Path("text.mp4").write_text("this is no video\n" * 50)


def sound_only() -> None:
    good("a.mp4", audio=True)
    ffmpeg("-i", "a.mp4", "-vn", "-c", "copy", "sound.mp4")
    Path("a.mp4").unlink()


def no_frames() -> None:
    good("a.mp4")
    ffmpeg("-i", "a.mp4", "-c", "copy", "-frames:v", "0", "none.mkv")
    Path("a.mp4").unlink()


def cut_web() -> None:
    good("a.mp4")
    ffmpeg("-i", "a.mp4", "-c", "copy", "-movflags", "faststart", "web.mp4")
    Path("a.mp4").unlink()
    path = Path("web.mp4")
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])


def damaged() -> None:
    path = write_video(
        Path("damaged.mp4"), smooth_frames(60, 128, 96, "yuv420p"), options={"g": "12", "bf": "0"}
    )
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 300] = bytes(range(256)) + bytes(44)
    path.write_bytes(data)


def overwritten() -> None:
    """60 bytes in the middle of the pictures, which the decoder conceals without a word."""
    path = write_video(Path("hurt.mp4"), smooth_frames(60, 128, 96, "yuv420p"), options={"g": "12"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (data.index(b"moov") - start) // 2
    data[middle : middle + 60] = bytes(range(60, 120))
    path.write_bytes(data)


def cover_only() -> None:
    good("a.mp4", audio=True)
    cover = ["-f", "lavfi", "-i", "color=s=64x64:d=0.04", "-map", "0:a", "-map", "1", "-c:v", "mjpeg"]
    ffmpeg("-i", "a.mp4", *cover, "-frames:v", "1", "-disposition:v:0", "attached_pic", "song.mp4")
    Path("a.mp4").unlink()


def huge_y4m() -> None:
    Path("in.y4m").write_bytes(b"YUV4MPEG2 W200000 H200000 F25:1 C420\nFRAME\n" + bytes(100))
    os.mkfifo("pipe")


def some_y4m() -> None:
    Path("in.y4m").write_bytes(b"YUV4MPEG2 W16 H16 F25:1 C420\nFRAME\n" + bytes(384))
    os.mkfifo("pipe")


def unknown_codec() -> None:
    path = good("a.mkv")
    data = path.read_bytes()
    path.unlink()
    Path("future.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))


def changing_size() -> None:
    parts = [
        write_video(Path(f"{k}.ts"), smooth_frames(5, size, 32, "yuv420p")) for k, size in enumerate((32, 48))
    ]
    Path("both.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    for part in parts:
        part.unlink()


def pictures(count: int = 3) -> None:
    Path("frames").mkdir()
    for k in range(count):
        write_picture(Path("frames") / f"{k}.png", np.full((16, 24, 3), 60 * k, np.uint8))


def cut_picture() -> None:
    pictures()
    path = Path("frames/1.png")
    path.write_bytes(path.read_bytes()[:50])


def unlike_pictures() -> None:
    pictures()
    write_picture(Path("frames/1.png"), np.zeros((16, 20, 3), np.uint8))


def text_picture() -> None:
    Path("frames").mkdir()
    Path("frames/0.png").write_text("this is no picture")


def stack() -> None:
    assert cv2.imwritemulti("stack.tif", [np.full((16, 24), 60 * k, np.uint8) for k in range(3)])


def empty_folder() -> None:
    Path("frames").mkdir()


def dot() -> None:
    write_video(Path("dot.mkv"), [random_frame(1, 1, "yuv444p")], codec="ffv1")


def locked() -> None:
    good()
    Path("locked").mkdir(mode=0o555)


def occupied() -> None:
    good()
    Path("out.mp4").write_text("precious")


def diary() -> None:
    good()
    Path("out").mkdir()
    Path("out/diary.txt").write_text("dear diary")


def linked() -> None:
    good()
    Path("link.mp4").symlink_to("in.mp4")


def large() -> None:
    write_video(Path("in.mkv"), [random_frame(96, 64, "yuv420p", k) for k in range(12)], codec="ffv1")


def broken_checkpoint() -> None:
    good()
    Path("broken.ckpt").write_bytes(b"not a checkpoint")


def y4m_cut() -> None:
    good("a.mp4", frames=3)
    ffmpeg("-i", "a.mp4", "in.y4m")
    Path("a.mp4").unlink()
    Path("in.y4m").write_bytes(Path("in.y4m").read_bytes()[:-100])
    os.mkfifo("pipe")


def text_to_pipe() -> None:
    text()
    os.mkfifo("pipe")


CASES: list[tuple[str, Callable[[], object], str]] = [
    ("a text file named .mp4", text, "text.mp4 out.mp4"),
    ("an empty file", lambda: Path("empty.mp4").touch(), "empty.mp4 out.mp4"),
    ("a file that is not there", lambda: None, "missing.mp4 out.mp4"),
    ("sound without pictures", sound_only, "sound.mp4 out.mp4"),
    ("a song with a cover picture", cover_only, "song.mp4 out.mp4"),
    ("a header without frames", no_frames, "none.mkv out.mp4"),
    ("a codec that FFmpeg does not know", unknown_codec, "future.mkv out.mp4"),
    ("a truncated .mp4", lambda: cut("cut.mp4"), "cut.mp4 out.mp4"),
    ("a truncated .mp4 with its index in front", cut_web, "web.mp4 out.mp4"),
    ("a truncated .mkv", lambda: cut("cut.mkv"), "cut.mkv out.mp4"),
    ("damage in the middle", damaged, "damaged.mp4 out.mp4"),
    ("damage that the decoder conceals", overwritten, "hurt.mp4 out.mp4 --sigma 9"),
    ("a size that changes", changing_size, "both.ts out.mp4"),
    ("1x1 pixels, and no sigma given", dot, "dot.mkv out.mkv"),
    ("an empty folder", empty_folder, "frames out.mp4"),
    ("a pattern that matches nothing", pictures, "frames/*.jpg out.mp4"),
    ("a name of 400 characters", lambda: None, f"{'a' * 396}.mp4 out.mp4"),
    ("a text file named .png", text_picture, "frames out.mp4"),
    ("a picture cut short", cut_picture, "frames out.mp4 --sigma 9"),
    ("a picture of another size", unlike_pictures, "frames out.mp4 --sigma 9"),
    ("a TIFF file of several pages", stack, "stack.tif out.mp4 --sigma 9"),
    ("output is the input", good, "in.mp4 in.mp4 --overwrite"),
    ("output is a link to the input", linked, "in.mp4 link.mp4 --overwrite"),
    ("output is the input's folder", pictures, "frames frames --overwrite"),
    ("output exists", occupied, "in.mp4 out.mp4"),
    ("output folder is not empty", diary, "in.mp4 out"),
    ("output folder holds other things", diary, "in.mp4 out --overwrite"),
    ("output folder does not exist", good, "in.mp4 missing/out.mp4"),
    ("output folder is a file", good, "in.mp4 in.mp4/out.mp4"),
    ("output of 400 characters", good, f"in.mp4 {'a' * 396}.mp4"),
    ("output folder is not writable", locked, "in.mp4 locked/out.mp4"),
    ("an unknown ending", good, "in.mp4 out.mp5"),
    ("one picture for many frames", good, "in.mp4 out.png"),
    ("no room for the output", large, "in.mkv out.mkv --lossless --sigma 9"),
    ("an unknown codec", good, "in.mp4 out.mp4 --codec h263"),
    ("a codec that the container cannot hold", good, "in.mp4 out.mp4 --codec ffv1"),
    ("a codec without a lossless mode", good, "in.mp4 out.mp4 --codec av1 --lossless"),
    ("a quality outside the scale", good, "in.mp4 out.mp4 --quality 99"),
    ("a size that the encoder cannot take", good, "in.mp4 out.mp4 --codec av1"),
    ("an unknown encoder option", good, "in.mp4 out.mp4 --sigma 9 --encoder-option preset=warp"),
    ("an option that is no pair", good, "in.mp4 out.mp4 --encoder-option preset"),
    ("a sigma outside 0 to 255", good, "in.mp4 out.mp4 --sigma 300"),
    ("a strength of zero", good, "in.mp4 out.mp4 --strength 0"),
    ("--blind with a network that is not", good, "in.mp4 out.mp4 --blind"),
    ("no such checkpoint", good, "in.mp4 out.mp4 --checkpoint missing.ckpt"),
    ("a damaged checkpoint", broken_checkpoint, "in.mp4 out.mp4 --checkpoint broken.ckpt"),
    ("no such device", good, "in.mp4 out.mp4 --device abacus"),
    ("a device without memory", good, "in.mp4 out.mp4 --device meta"),
    ("a memory that is no size", good, "in.mp4 out.mp4 --sigma 9 --memory banana"),
    ("memory and tiles at once", good, "in.mp4 out.mp4 --memory 1GiB --tile 64"),
    ("a tile below nothing", good, "in.mp4 out.mp4 --tile -5"),
    ("a preview of nothing", good, "in.mp4 out.mp4 --preview 0"),
    ("a frame rate for a video", good, "in.mp4 out.mp4 --fps 30"),
    ("a frame rate that is no number", pictures, "frames out.mp4 --sigma 9 --fps nan"),
    ("a frame rate beyond all measure", pictures, "frames out.mp4 --sigma 9 --fps 1e308"),
    ("a pipe without --stream", good, "- out.mp4"),
    ("--stream into a file", good, "in.mp4 out.y4m --stream"),
    ("a stream that is not Y4M", text_to_pipe, "text.mp4 pipe --stream"),
    ("a stream that ends inside a frame", y4m_cut, "in.y4m pipe --stream --sigma 9"),
    ("a size that no memory holds", huge_y4m, "in.y4m pipe --stream --sigma 9"),
    (
        "raw frames of such a size",
        huge_y4m,
        "in.y4m pipe --stream --sigma 9 --raw rgb24 --size 200000x200000",
    ),
    ("a window beyond all measure", some_y4m, "in.y4m pipe --stream --window 12345678901234567890"),
    ("--quality with --stream, be it 0", some_y4m, "in.y4m pipe --stream --quality 0"),
    ("--overlap with --stream, be it 0", some_y4m, "in.y4m pipe --stream --overlap 0"),
    ("raw frames without a size", good, "in.mp4 pipe --stream --raw rgb24"),
]


def listing() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*"))


def said(prepare: Callable[[], object], words: str, checkpoint: Path) -> tuple[int, str]:
    """Exit code and last line of a command, run in the current folder; nothing may be left behind."""
    prepare()
    shutil.copy(checkpoint, "sigma.ckpt")
    before = listing()
    arguments = ["denoise", *words.split()]
    if "--checkpoint" not in arguments:
        arguments += ["--checkpoint", "sigma.ckpt"]
    if " --chunk" not in words and "--memory" not in words and "--stream" not in words:
        arguments += ["--chunk", "4"]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if prepare is large:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    user = os.geteuid()
    if prepare is locked and user == 0:
        os.seteuid(65534)  # root may write anywhere
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.DEVNULL) if Path("pipe").exists() else None
    errors, output = io.StringIO(), io.StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(output):
            code = main(arguments)
    finally:
        if reader is not None:
            reader.terminate()
            reader.wait()
        os.seteuid(user)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert listing() == before, (words, listing(), before)
    assert output.getvalue() == ""
    return code, errors.getvalue().strip().splitlines()[-1]


@pytest.mark.parametrize(("case", "prepare", "words"), CASES, ids=[case for case, _, _ in CASES])
def test_one_line(
    case: str,
    prepare: Callable[[], object],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: Path,
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    code, line = said(prepare, words, checkpoints / "sigma.ckpt")
    assert code == 2
    assert line.startswith("stan: ")
    row = f"| {case} | {line.removeprefix('stan: ').replace('|', chr(92) + '|')} |"
    assert row in DOCS.read_text(), f"docs/denoise.md does not tell this as it is:\n{row}"


@pytest.mark.parametrize(
    "words", ["--sigma much", "--sigma 9 --blind", "--tile big", "--size 9", "--precision 8", "--nonsense"]
)
def test_words_that_argparse_refuses(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["denoise", "a.mp4", "b.mp4", "--checkpoint", "c.ckpt", *words.split()])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("stan denoise: ", "stan: "))
    assert "--help` explains" in line


def _print_table() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        checkpoint = root / "sigma.ckpt"
        stan.models.save(stan.models.build("unet_tiny", flow="zero"), checkpoint)
        print("| input | what it gets |\n|---|---|")
        for k, (case, prepare, words) in enumerate(CASES):
            work = root / str(k)
            work.mkdir()
            os.chdir(work)
            code, line = said(prepare, words, checkpoint)
            print(
                f"| {case} | {line.removeprefix('stan: ')} |",
                "" if code == 2 else f"<- EXIT CODE {code}",
                flush=True,
            )
            os.chdir("/")


if __name__ == "__main__":
    sys.exit(_print_table())
