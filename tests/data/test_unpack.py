"""Unpacking: good archives come out whole, hostile ones are refused before anything is written."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stan.data.unpack import unpack
from stan.errors import DataError

CONTENT = {"top/a.txt": b"first", "top/deep/er/b.bin": bytes(range(256)) * 50, "c": b""}


def make_zip(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, content: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": make_zip,
    "stored": lambda path, content: make_zip(path, content, zipfile.ZIP_STORED),
    "tar": lambda path, content: make_tar(path, content, "w"),
    "gz": make_tar,
    "bz2": lambda path, content: make_tar(path, content, "w:bz2"),
    "xz": lambda path, content: make_tar(path, content, "w:xz"),
}


def found(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive: Path, tmp_path: Path, says: str) -> None:
    """The archive is refused with one line that names it, and nothing exists that did not before."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=says) as caught:
        unpack(archive, tmp_path / "deep/in/target", progress=False)
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_good_archives(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "a", CONTENT)
    assert unpack(archive, tmp_path / "out", progress=False) == 3
    assert found(tmp_path / "out") == CONTENT
    wanted = unpack(archive, tmp_path / "some", wanted=lambda path: path.suffix == ".txt", progress=False)
    assert wanted == 1
    assert found(tmp_path / "some") == {"top/a.txt": b"first"}


def test_clutter_is_left_out(tmp_path: Path) -> None:
    content = {**CONTENT, "__MACOSX/top/._a.txt": b"x", "top/.DS_Store": b"x", "top/._b": b"x"}
    unpack(make_zip(tmp_path / "a.zip", content), tmp_path / "out", progress=False)
    assert found(tmp_path / "out") == CONTENT


PATHS = [
    "../evil",
    "a/../../evil",
    "a/b/../../../evil",
    "/etc/evil",
    "//evil",
    "..",
    "..\\evil",
    "C:\\evil",
    "C:evil",
    "a\\..\\..\\evil",
    "a/ ../evil",
]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_out(name: str, kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "a", {"good.txt": b"x", name: b"evil"})
    refused(archive, tmp_path, "leads out of the target")


def test_a_bad_name_condemns_the_archive_even_if_unwanted(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good.txt": b"x", "../evil.sh": b"x"})
    with pytest.raises(DataError, match=r"\.\./evil\.sh"):
        unpack(archive, tmp_path / "out", wanted=lambda path: path.suffix == ".txt", progress=False)
    assert not (tmp_path / "out").exists()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(name=st.text(st.sampled_from("./\\ :ab\0"), min_size=1, max_size=12))
def test_no_name_gets_out(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("names")
    try:
        archive = make_tar(tmp_path / "a.tar", {name: b"data"}, "w")
    except ValueError:
        return
    target = tmp_path / "x/y/target"
    with contextlib.suppress(DataError):
        unpack(archive, target, progress=False)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and p != archive and target not in p.parents]
    assert outside == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("sub")
        info.type, info.linkname = kind, "/tmp"
        archive.addfile(info)
        inner = tarfile.TarInfo("sub/evil")
        inner.size = 1
        archive.addfile(inner, io.BytesIO(b"x"))
    refused(tmp_path / "a.tar", tmp_path, "'sub' is a (link|special file)")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_links_and_devices(mode: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("sub")
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    refused(tmp_path / "a.zip", tmp_path, "'sub' is a (link|special file)")


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_bombs(kind: str, tmp_path: Path) -> None:
    archive = MAKERS[kind](tmp_path / "a", {f"{i}.bin": bytes(20_000_000) for i in range(5)})
    refused(archive, tmp_path, "are a bomb")


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    """The header declares 10 bytes for a member that unpacks to 50 MB: no more than declared is written."""
    archive = make_zip(tmp_path / "a.zip", {"x.bin": bytes(50_000_000)})
    data = bytearray(archive.read_bytes())
    size = struct.pack("<L", 50_000_000)
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = struct.pack("<L", 10)
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged|more than it declares"):
        unpack(archive, tmp_path / "out", progress=False)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()) <= 10


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_clash(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="twice"):
        unpack(MAKERS[kind](tmp_path / "a", {"x": b"1", "./x": b"2"}), tmp_path / "out", progress=False)
    refused(MAKERS[kind](tmp_path / "b", {"x": b"1", "x/y": b"2"}), tmp_path, "both a file and a folder")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out/top").mkdir(parents=True)
    (tmp_path / "out/top/a.txt").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        unpack(make_zip(tmp_path / "a.zip", CONTENT), tmp_path / "out", progress=False)
    assert (tmp_path / "out/top/a.txt").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_archives(kind: str, share: float, tmp_path: Path) -> None:
    import random

    noise = {f"{i}.bin": random.Random(i).randbytes(20_000) for i in range(5)}
    archive = MAKERS[kind](tmp_path / "a", noise)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"damaged|cut short"):
        unpack(archive, tmp_path / "out", progress=False)


def test_flipped_bits_are_found_by_the_archives_checksum(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x.bin": bytes(range(256)) * 100}, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[5000] ^= 4
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged: .*x\.bin"):
        unpack(archive, tmp_path / "out", progress=False)


def test_what_is_not_an_archive(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.zip", tmp_path, "does not exist")
    (tmp_path / "page.zip").write_text("<html>Please log in</html>")
    refused(tmp_path / "page.zip", tmp_path, "neither a zip nor a tar")


def test_encrypted_archives(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": b"secret"})
    data = bytearray(archive.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(magic) + flags] |= 1
    archive.write_bytes(data)
    refused(archive, tmp_path, "encrypted")


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    refused(make_zip(tmp_path / "a.zip", CONTENT), tmp_path, r"unpacks to .* GB free")


def test_wanted_gets_paths_inside_the_archive(tmp_path: Path) -> None:
    seen: list[PurePosixPath] = []
    unpack(
        make_zip(tmp_path / "a.zip", CONTENT),
        tmp_path / "o",
        wanted=lambda p: bool(seen.append(p)),
        progress=False,
    )
    assert [str(path) for path in seen] == list(CONTENT)
