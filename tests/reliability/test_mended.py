"""What the table of cases cannot show: which file is taken, what is removed, what a defect leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path

import pytest

from stan.cli.failures import told
from stan.data import open_clips
from stan.errors import DataError
from stan.files import STALE, sha256_of, write_text


def test_a_split_list_of_the_working_folder_comes_first(
    davis_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [clip.name for clip in open_clips("davis", davis_root, "val.txt")] == ["d"]
    Path("val.txt").write_text("a\nc\n")
    assert [clip.name for clip in open_clips("davis", davis_root, "val.txt")] == ["a", "c"]
    assert "is the file here" in capsys.readouterr().err
    assert [clip.name for clip in open_clips("davis", davis_root, "val")] == ["d"]


def test_what_killed_runs_left_beside_a_file_is_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f".{name}.part" for name in ("a[1].txt.x1", "a[1].txt.x2", "b.txt.x3"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, path.stat().st_mtime - STALE - 60))
    write_text(tmp_path / "a[1].txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a[1].txt", new.name, other.name])


def test_hash_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (DataError("two\n  lines"), 2, "two lines"),
        (OSError(errno.ENOSPC, "No space left", "x.ckpt"), 2, "disk is full while writing x.ckpt"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "no permission for x"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), 2, "x cannot be used: it is a file"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
        (RecursionError("maximum depth"), 2, "nested too deeply"),
        (ValueError("embedded null byte"), 2, "NUL"),
    ],
)
def test_errors_are_told_in_one_line(error: Exception, code: int, part: str) -> None:
    found, line = told(error)
    assert found == code
    assert part in line
    assert "\n" not in line


def test_a_defect_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise KeyError("somewhere")
    except KeyError as error:
        code, line = told(error)
    assert code == 1
    place = re.search(r"report it with (\S+)", line)
    assert place is not None
    text = Path(place[1]).read_text()
    assert "test_a_defect_keeps_its_traceback" in text
    assert "KeyError: 'somewhere'" in text
