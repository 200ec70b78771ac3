"""Unpacking archives from strangers: no path leaves the target, no links, no bombs."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stan.data.progress import frame_progress
from stan.errors import DataError
from stan.files import free_space

_MAX_MEMBERS = 1_000_000
_MAX_RATIO = 100  # unpacked to packed size; pictures hardly shrink, so more is a bomb
_FREE_OF_SUSPICION = 1 << 26  # bytes that any archive may unpack to
_CLUTTER = ("__MACOSX", ".DS_Store", "Thumbs.db")


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; `kind` is a word for what it is, "file" or "folder" or worse."""

    name: str
    size: int
    kind: str
    entry: Any


def unpack(
    archive: Path,
    target: Path,
    *,
    wanted: Callable[[PurePosixPath], bool] = lambda path: True,
    progress: bool = True,
) -> int:
    """Unpack a zip or tar archive (also gz, bz2, xz) into a folder.

    Every name is checked before the first file is written. One bad entry, wanted or not, condemns the
    archive.

    Args:
        archive: the file.
        target: folder to unpack to; made if missing. Nothing in it is overwritten.
        wanted: tells from its path whether a file is to be unpacked.
        progress: show a progress bar on standard error.

    Returns:
        The number of files written.

    Raises:
        DataError: not an archive, damaged, encrypted, or one that holds links, devices, paths that lead out
            of the target, a name twice, or far more data than its own size allows; or no room. Names the
            entry.
    """
    with _opened(archive) as (members, read):
        chosen = {path: member for path, member in _checked(archive, members).items() if wanted(path)}
        need = sum(member.size for member in chosen.values())
        if need > (free := free_space(target)):
            raise DataError(
                f"{archive} unpacks to {need / 1e9:.2f} GB, and {target} has {free / 1e9:.2f} GB free"
            )
        with frame_progress(
            f"unpacking {archive.name}", len(chosen), shown=progress, unit="files"
        ) as advance:
            for path, member in chosen.items():
                place = target / path
                place.parent.mkdir(parents=True, exist_ok=True)
                with read(member.entry) as source, place.open("xb") as file:
                    _copy(archive, path, member.size, source, file)
                advance(1)
    return len(chosen)


def _copy(archive: Path, path: PurePosixPath, left: int, source: IO[bytes], file: IO[bytes]) -> None:
    while piece := source.read(1 << 20):
        left -= len(piece)
        if left < 0:
            raise DataError(f"{archive} is refused: {path} holds more than it declares")
        file.write(piece)
    if left:
        raise DataError(f"{archive} is damaged: {path} is cut short")


def _checked(archive: Path, members: Iterable[_Member]) -> dict[PurePosixPath, _Member]:
    """The plain files among the entries, by path; refuse the archive if an entry is bad."""
    packed = archive.stat().st_size
    limit = max(_FREE_OF_SUSPICION, _MAX_RATIO * packed)
    files: dict[PurePosixPath, _Member] = {}
    total = 0
    for count, member in enumerate(members, 1):
        name, kind = member.name, member.kind
        total += member.size
        if count > _MAX_MEMBERS:
            raise DataError(f"{archive} is refused: more than {_MAX_MEMBERS} entries")
        if total > limit:
            raise DataError(f"{archive} is refused: {packed} bytes that unpack to over {limit} are a bomb")
        path = _safe_path(archive, name)
        if kind not in ("file", "folder"):
            raise DataError(f"{archive} is refused: {name!r} is a {kind}, and only plain files are unpacked")
        if kind == "folder" or any(part in _CLUTTER or part.startswith("._") for part in path.parts):
            continue
        if path in files or not path.parts:
            raise DataError(f"{archive} is refused: it holds {name!r} twice")
        files[path] = member
    for path in files:
        if clash := next((parent for parent in path.parents if parent in files), None):
            raise DataError(f"{archive} is refused: {str(clash)!r} is both a file and a folder")
    return files


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    bad = (
        path.is_absolute()
        or ".." in path.parts
        or any(char in name for char in "\\\0:")
        or any(part != part.strip() for part in path.parts)
    )
    if bad or (not path.parts and name.strip("./")):
        raise DataError(f"{archive} is refused: the path {name!r} leads out of the target or is not portable")
    return path


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[Iterator[_Member], Callable[[Any], IO[bytes]]]]:
    """Give the entries of an archive and how one is read; what damaged archives raise within becomes one line."""
    if archive.is_dir():
        raise DataError(f"archive {archive} is a folder: give what is unpacked already by --source {archive}")
    if not archive.is_file():
        raise DataError(f"archive {archive} does not exist")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield _zip_members(archive, packed), packed.open
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                extract: Any = tarred.extractfile  # None only of what is no plain file, and those are refused
                yield _tar_members(tarred), extract
        else:
            raise DataError(f"{archive} is neither a zip nor a tar archive, or is cut short")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"archive {archive} is damaged: {error}") from None
    except (NotImplementedError, RuntimeError) as error:  # how zipfile speaks of unknown compression
        raise DataError(f"archive {archive} cannot be unpacked: {error}") from None
    except OSError as error:
        if error.errno is None:  # gzip.BadGzipFile, and bz2's own
            raise DataError(f"archive {archive} is damaged: {error}") from None
        raise


def _zip_members(archive: Path, packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        if info.flag_bits & 1:
            raise DataError(f"{archive} is encrypted: unpack it yourself and give the folder by --source")
        mode = info.external_attr >> 16
        kind = "file"
        if info.is_dir():
            kind = "folder"
        elif info.create_system == 3 and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            kind = "link" if stat.S_ISLNK(mode) else "special file"
        # orig_filename is the name as stored; zipfile itself cuts names at a NUL.
        yield _Member(info.orig_filename, info.file_size, kind, info)


def _tar_members(tarred: tarfile.TarFile) -> Iterator[_Member]:
    for info in tarred:
        if info.isdir():
            kind = "folder"
        elif info.issym() or info.islnk():
            kind = "link"
        else:
            kind = "file" if info.isreg() and not info.issparse() else "special file"
        yield _Member(info.name, info.size, kind, info)
