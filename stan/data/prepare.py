"""Bringing a data set to disk: fetched, unpacked, every frame checked, and decoded into the cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import filelock

from stan.data.cache import Cache, MappedClip, check_room
from stan.data.clips import Clip, FrameClip
from stan.data.download import download
from stan.data.frames import is_image, read_frame
from stan.data.progress import frame_progress
from stan.data.sources import (
    DAVIS_FRAMES,
    DAVIS_LISTS,
    SET8,
    is_video,
    open_clips,
    read_list,
    set8_name,
    visible,
)
from stan.data.unpack import unpack
from stan.errors import ConfigError, DataError, StanError

DAVIS_BASE = "https://data.vision.ee.ethz.ch/csergi/share/davis/"
DAVIS_ARCHIVES = {
    "trainval": "DAVIS-2017-trainval-480p.zip",
    "test-dev": "DAVIS-2017-test-dev-480p.zip",
}
_LISTS_OF = {"trainval": ["train", "val"], "test-dev": ["test-dev"]}
_EXPECTED = {
    "davis": f"DAVIS at 480p ({DAVIS_FRAMES}/<sequence>/<00000>.jpg)",
    "set8": f"Set8 (a folder of PNG frames for each of {', '.join(SET8)})",
    "folder": "frames or video files",
}
# Sequences and frames of the official lists; other lists of the same name are somebody's own.
_DAVIS_COUNTS = {"train": (60, 4209), "val": (30, 1999), "test-dev": (30, 2086)}


@dataclass
class Prepared:
    """What a data set holds after it has been checked.

    Attributes:
        kind, root: what was prepared, and where.
        sequences: name, frames, height and width of each.
        lists: sequences a split list (DAVIS).
        notes: what the user should know but need not act on.
        cache: bytes of the decoded cache and its folder; None if it was not asked for.
    """

    kind: str
    root: Path
    sequences: list[tuple[str, int, int, int]] = field(default_factory=list)
    lists: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cache: tuple[int, Path] | None = None

    @property
    def frames(self) -> int:
        """Frames of all sequences together."""
        return sum(frames for _, frames, _, _ in self.sequences)


def prepare(
    kind: str,
    root: Path | str,
    *,
    urls: Sequence[str] = (),
    archives: Sequence[Path] = (),
    source: Path | None = None,
    checksums: Sequence[str] = (),
    keep: bool = False,
    cache: Path | str | None = None,
    build_cache: bool = True,
    progress: bool = True,
) -> Prepared:
    """Bring a data set to `root` and check all of it. May be repeated: what is done already is only checked.

    Args:
        kind: `davis`, `set8` or `folder`.
        root: the data set's folder. With none of the next three, it holds the data already.
        urls: archives to download first.
        archives: archives on this machine to unpack.
        source: an unpacked folder to copy from.
        checksums: SHA-256 of the archives of `urls`, in order, where known.
        keep: leave downloaded archives in `<root>/.downloads`.
        cache: folder of the decoded cache; None: see `stan.data.cache.cache_folders`.
        build_cache: decode into the cache; else decode only to check.
        progress: show progress bars on standard error.

    Raises:
        ConfigError: an unknown kind.
        DataError: any of the things that can be wrong with a download, an archive, a layout or a frame.
            Damaged frames are all named.
    """
    if kind not in _EXPECTED:
        raise ConfigError(f"unknown data kind {kind!r}: davis, set8 or folder can be prepared")
    root = Path(root).expanduser()
    if root.exists() and not root.is_dir():
        raise DataError(f"data root {root} is a file: {kind!r} needs a folder")
    if urls or archives or source:
        with _alone(root):
            for url, sha256 in zip_longest(urls, checksums):
                name = PurePosixPath(url.split("?")[0]).name or "archive"
                target = root / ".downloads" / name
                try:
                    download(url, target, sha256=sha256, progress=progress)
                finally:
                    _remove_if_empty(target.parent)
                try:
                    _place_archive(kind, target, root, progress)
                except DataError as error:
                    target.unlink(missing_ok=True)  # a second try should not meet the same bad file
                    raise DataError(
                        f"{error}; the download was removed, run the same command again"
                    ) from None
                if not keep:
                    target.unlink()
                    _remove_if_empty(target.parent)
            for archive in archives:
                _place_archive(kind, Path(archive).expanduser(), root, progress)
            if source is not None:
                _place_folder(kind, Path(source).expanduser(), root)
    elif not root.is_dir() or not any(p for p in root.iterdir() if not p.name.startswith(".")):
        raise DataError(
            f"{root} is {'empty' if root.is_dir() else 'missing'}: get the data by --download, "
            "or from a file by --archive, or from an unpacked folder by --source"
        )
    prepared = Prepared(kind, root)
    clips = open_clips(kind, root)
    if kind == "davis":
        _check_lists(prepared, clips)
    _check_frames(prepared, clips, cache, build_cache, progress)
    return prepared


def davis_urls(root: Path, subset: str = "all", mirror: str | None = None) -> list[str]:
    """Give the addresses of the official archives at 480p that `root` lacks.

    Args:
        root: the data set's folder; archives whose sequences are all there are left out.
        subset: `trainval`, `test-dev` or `all` (both).
        mirror: address of another folder that holds files of the same names.
    """
    base = (mirror or DAVIS_BASE).rstrip("/") + "/"
    subsets = list(DAVIS_ARCHIVES) if subset == "all" else [subset]
    return [base + DAVIS_ARCHIVES[name] for name in subsets if not _is_here(root, name)]


def _is_here(root: Path, subset: str) -> bool:
    lists = [root / DAVIS_LISTS / f"{name}.txt" for name in _LISTS_OF[subset]]
    return all(
        path.is_file() and all((root / DAVIS_FRAMES / name).is_dir() for name in read_list(path))
        for path in lists
    )


def _check_lists(prepared: Prepared, clips: Sequence[Clip]) -> None:
    """Hold the split lists against the sequences; a list of which nothing is there is no error."""
    lengths = {clip.name: len(clip) for clip in clips}
    for path in sorted((prepared.root / DAVIS_LISTS).glob("*.txt")):
        names = read_list(path)
        missing = [name for name in names if name not in lengths]
        if len(missing) == len(names):
            prepared.notes.append(f"list {path.stem}: none of its {len(names)} sequences is here")
            continue
        if missing:
            listed = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise DataError(f"sequences of {path} are missing ({len(missing)} of {len(names)}): {listed}")
        prepared.lists[path.stem] = len(names)
        sequences, frames = _DAVIS_COUNTS.get(path.stem, (0, 0))
        found = sum(lengths[name] for name in names)
        if len(names) == sequences and found != frames:
            prepared.notes.append(f"list {path.stem} has {found} frames; the official archive has {frames}")
    if not prepared.lists:
        prepared.notes.append("there are no split lists: use data.split=null for all sequences")


def _check_frames(
    prepared: Prepared, clips: Sequence[Clip], cache: Path | str | None, build: bool, progress: bool
) -> None:
    """Decode every frame, into the cache or for the check alone, and collect all that is wrong."""
    problems: list[str] = []
    size, folder = 0, prepared.root
    with frame_progress("checking", sum(len(clip) for clip in clips), shown=progress) as advance:
        for clip in clips:
            try:
                if build:
                    own = Cache(clip, cache)
                    if (mapped := own.find(verify=True)) is not None:
                        advance(len(clip))
                    else:
                        check_room([own])
                        mapped = own.store(advance, again=True)
                    assert isinstance(mapped, MappedClip)
                    size, folder = size + mapped.path.stat().st_size, mapped.path.parent
                else:
                    for _ in clip.decode():
                        advance(1)
                prepared.sequences.append((clip.name, len(clip), *clip.size))
            except StanError as error:
                problems += _damaged_frames(clip) or [str(error)]
    if problems:
        listed = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{count}: {listed} (remove the folders of these sequences and get them anew)")
    if build:
        prepared.cache = size, folder


def _damaged_frames(clip: Clip) -> list[str]:
    """Name all damaged frames of a sequence, not just the first."""
    problems = []
    for path in clip.files if isinstance(clip, FrameClip) else []:
        try:
            read_frame(path, strict=True)
        except DataError as error:
            problems.append(str(error))
    return problems


def _place_archive(kind: str, archive: Path, root: Path, progress: bool) -> None:
    with _scratch(root) as scratch:
        unpack(archive, scratch, wanted=lambda path: _wanted(kind, path), progress=progress)
        _move(kind, scratch, root, f"archive {archive}", lambda old, new: old.replace(new))


def _place_folder(kind: str, source: Path, root: Path) -> None:
    if not source.is_dir():
        raise DataError(f"source {source} is not a folder")
    inner, outer = source.resolve(), root.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise DataError(
            f"source {source} and root {root} lie inside each other: check it in place by --root {source}"
        )
    with _scratch(root) as scratch:

        def copy(old: Path, new: Path) -> None:
            temporary = scratch / "copy"
            if old.is_dir():
                shutil.copytree(old, temporary, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copy2(old, temporary)
            temporary.replace(new)

        _move(kind, source, root, f"source {source}", copy)


def _wanted(kind: str, path: PurePosixPath) -> bool:
    """Whether a file of an archive is part of what we use: frames, videos and split lists."""
    parts = path.parts
    image = is_image(Path(path.name))
    if kind == "davis":
        listed = path.suffix == ".txt" and parts[-3:-1] == DAVIS_LISTS.parts
        return listed or (image and parts[-4:-2] == DAVIS_FRAMES.parts)
    if kind == "set8":
        return image and len(parts) >= 2 and set8_name(parts[-2]) is not None
    return image or is_video(Path(path.name))


def _move(kind: str, base: Path, root: Path, where: str, move: Callable[[Path, Path], object]) -> None:
    """Move or copy sequences and lists from below `base` to their places under `root`, one by one."""
    units = list(_units(kind, base))
    if not units:
        raise DataError(f"{where} holds nothing of {_EXPECTED[kind]}")
    for old, relative in units:
        new = root / relative
        new.parent.mkdir(parents=True, exist_ok=True)
        if new.is_dir():  # a folder cannot be replaced in one step
            aside = new.with_name(f".{new.name}.{os.getpid()}.old")
            new.replace(aside)
            try:
                move(old, new)
            except BaseException:
                aside.replace(new)
                raise
            shutil.rmtree(aside)
        else:
            move(old, new)


def _units(kind: str, base: Path) -> Iterator[tuple[Path, Path]]:
    """Find what belongs to the data set below `base`: (where it is, its place under the root)."""
    if kind == "folder":
        inner = base
        while len(entries := visible(inner)) == 1 and entries[0].is_dir():
            inner = entries[0]
        for entry in visible(inner):
            if entry.is_dir() or is_image(entry) or is_video(entry):
                yield entry, Path(entry.name)
        return
    for folder in [base, *sorted(path for path in base.rglob("*") if path.is_dir())]:
        if kind == "set8":
            name = set8_name(folder.name)
            if name and any(is_image(path) for path in folder.iterdir()):
                yield folder, Path(name)
        elif folder.parts[-2:] == DAVIS_FRAMES.parts:
            yield from ((s, DAVIS_FRAMES / s.name) for s in visible(folder) if s.is_dir())
        elif folder.parts[-2:] == DAVIS_LISTS.parts:
            yield from ((f, DAVIS_LISTS / f.name) for f in visible(folder) if f.suffix == ".txt")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other processes from preparing the same root."""
    path = root / ".prepare.lock"
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path):
            yield
    finally:
        path.unlink(missing_ok=True)
        if made:
            _remove_if_empty(root)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Give an empty folder on the root's disk; removed at the end, as are those of killed processes."""
    for leftover in root.glob(".unpack-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
