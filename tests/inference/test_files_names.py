"""Where a result, or after Ctrl-C a part of it, ends up: never in the place of something else, and never nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from stan.data.video import OutputSettings, open_source
from stan.errors import VideoError
from stan.inference.files import denoise_file, preview_file
from tests.data.video.clips import probe_times

from .networks import StandIn, identity
from .test_files_failures import OVERWRITE, TILES, failing, left, source

__all__ = ["source"]  # the fixture
pytestmark = pytest.mark.timeout(60)


def test_a_part_does_not_replace_the_input(tmp_path: Path, source: Path) -> None:
    source = source.rename(tmp_path / "out.partial.mp4")
    before = source.read_bytes()
    for number in (2, 3):
        result = denoise_file(failing(3, KeyboardInterrupt()), source, tmp_path / "out.mp4", TILES)
        assert result.output == tmp_path / f"out.partial-{number}.mp4"
        assert len(probe_times(result.output)) == result.frames
    assert source.read_bytes() == before
    assert left(tmp_path) == ["out.partial-2.mp4", "out.partial-3.mp4", "out.partial.mp4"]


def test_a_part_does_not_replace_a_folder(tmp_path: Path, source: Path) -> None:
    (tmp_path / "frames.partial").mkdir()
    (tmp_path / "frames.partial" / "notes.txt").write_text("dear diary")
    (tmp_path / "frames.partial-2").symlink_to("nowhere")
    result = denoise_file(failing(3, KeyboardInterrupt()), source, tmp_path / "frames", TILES)
    assert result.output == tmp_path / "frames.partial-3"
    assert left(tmp_path / "frames.partial") == ["notes.txt"]
    assert len(open_source(result.output)) == result.frames


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another disk, if there is one."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["clean.mp4", "frames", "one.png"])
def test_what_a_link_leads_to_is_written(
    tmp_path: Path, source: Path, elsewhere: Path, name: str, there: bool
) -> None:
    target, link = elsewhere / f"target{Path(name).suffix}", tmp_path / name
    link.symlink_to(target)
    inputs: Path = source
    if name == "one.png":
        denoise_file(identity(), source, tmp_path / "in" / "frames", TILES)
        inputs = tmp_path / "in" / "frames" / "00003.png"
    if there and name == "frames":
        target.mkdir()
    elif there:
        target.write_text("old")
    result = denoise_file(identity(), inputs, link, TILES, OVERWRITE if there else OutputSettings())
    assert result.output == link
    assert link.is_symlink()
    assert len(open_source(target)) == result.frames == (1 if name == "one.png" else 24)
    assert os.listdir(elsewhere) == [target.name]
    assert left(tmp_path) == [name]
    if name == "frames":
        part = denoise_file(failing(3, KeyboardInterrupt()), source, link, TILES, OVERWRITE)
        assert part.output == elsewhere / "target.partial"
        assert sorted(os.listdir(elsewhere)) == ["target", "target.partial"]


def test_the_current_folder(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays the same folder, or the shell would be in one that is gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    part = denoise_file(failing(3, KeyboardInterrupt()), source, ".", TILES)
    assert part.output == tmp_path / "here.partial"
    for settings in (OutputSettings(), OVERWRITE):
        denoise_file(identity(), source, ".", TILES, settings)
        assert sorted(os.listdir(".")) == [f"{k:05d}.png" for k in range(24)]
    assert preview_file(identity(), source, ".", 1, TILES).output == tmp_path / "here.preview"
    assert left(tmp_path) == ["here", "here.partial", "here.preview"]


_MOUNTED = """
mount -t tmpfs -o size=64k none out && exec "$0" -c '
from pathlib import Path
from stan.data.video.unfinished import Unfinished
work = Unfinished(Path("out"), folder=True)
for k in range(8):
    (work.place / f"{k}.png").write_bytes(bytes(BYTES))
try:
    work.take_name(Path("out"))
except Exception as error:
    print(type(error).__name__, error)
work.discard()
print(len(list(Path("out").glob("?.png"))), len(list(Path("out").iterdir())))
'
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="nothing may be mounted here",
)
@pytest.mark.parametrize(("size", "room"), [(4096, True), (16384, False)])
def test_a_mount_point(tmp_path: Path, size: int, room: bool) -> None:
    """It cannot be replaced but filled; where it has no room, all pictures stay beside it."""
    (tmp_path / "out").mkdir()
    words = ["unshare", "-rm", "sh", "-c", _MOUNTED.replace("BYTES", str(size)), sys.executable]
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    if room:
        assert done.stdout == "8 8\n"
        assert left(tmp_path) == ["out"]
        return
    line = "VideoError out cannot be written (no space left on device): the result is in out.kept\n"
    assert done.stdout == f"{line}0 0\n"
    assert left(tmp_path) == ["out", "out.kept"]
    assert {p.stat().st_size for p in (tmp_path / "out.kept").iterdir()} == {size}
    assert len(os.listdir(tmp_path / "out.kept")) == 8


@pytest.mark.parametrize(("output", "kept"), [("out.mp4", "out.kept.mp4"), ("frames", "frames.kept")])
def test_what_came_meanwhile_is_not_replaced(tmp_path: Path, source: Path, output: str, kept: str) -> None:
    """A folder with a note in it, that was not there when the work began."""
    note = tmp_path / output / "notes.txt"

    def core(noisy: Tensor, _: object, __: object) -> Tensor:
        note.parent.mkdir(exist_ok=True)
        note.write_text("dear diary")
        return noisy

    with pytest.raises(VideoError, match=rf"{output} cannot be written \(.*\): the result is in .*/{kept}$"):
        denoise_file(StandIn(core), source, tmp_path / output, TILES)
    assert left(tmp_path) == sorted([output, kept])
    assert left(note.parent) == ["notes.txt"]
    assert len(open_source(tmp_path / kept)) == 24


def test_a_folder_that_is_not_writable(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the work begins."""
    (tmp_path / "out").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name != "out" and allowed(p, mode))  # root may
    with pytest.raises(VideoError, match=r"no permission to write into .*/out$"):
        denoise_file(failing(0, AssertionError()), source, tmp_path / "out", TILES)
    assert left(tmp_path) == ["out"]
