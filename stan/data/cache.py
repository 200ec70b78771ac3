"""The decoded cache: every sequence once as uint8 in one file, which any number of processes map.

A sequence's file is a plain `.npy` array `(T, 3, H, W)` beside a `.json` manifest. Planes lie apart so that a
crop is copied row by row without shuffling channels. The file's name carries a fingerprint of what it was
decoded from (names, sizes and modification times of the source files, and the downscaling), so a changed
source never meets an old cache. Both files are written under a temporary name, and the manifest last: one
that exists is complete.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import filelock
import numpy as np
import torch
from platformdirs import user_cache_path

from stan.data.clips import Clip, TensorClip
from stan.data.pairs import PairedClip, each_half, halves_of
from stan.data.progress import frame_progress
from stan.errors import ConfigError, DataError
from stan.files import free_space

FOLDER_NAME = ".stan-cache"
_FORMAT = 1
_NEEDED = {"shape", "fps", "bytes", "sha256", "source", "downscale"}


class MappedClip(Clip):
    """A sequence in a cache file. Processes share its memory; pickling it passes the path alone.

    Args:
        path: a `.npy` file, uint8 `(T, 3, H, W)`, that is not changed in place.
        shape: the array's shape.
    """

    def __init__(
        self, name: str, path: Path, shape: tuple[int, int, int, int], fps: float | None = None
    ) -> None:
        super().__init__(name, shape[0], shape[2:], fps)
        self.path = path
        self.shape = shape
        self._inode = path.stat().st_ino

    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> torch.Tensor:
        return torch.from_numpy(
            np.array(_map(self.path, self._inode, self.shape)[start:stop, :, rows, columns])
        )


@functools.lru_cache(maxsize=256)  # a map holds a file descriptor, of which a process may have about 1000
def _map(path: Path, inode: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Map a file; `inode` tells it from an earlier one of the same name that has been replaced."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except OSError as error:
        raise DataError(f"cache file {path} cannot be mapped ({error}): remove {path.parent}") from None
    except (ValueError, EOFError):
        raise DataError(f"cache file {path} is damaged: remove {path.parent}") from None
    if array.shape != shape or array.dtype != np.uint8:
        raise DataError(f"cache file {path} is not what its manifest says: remove {path.parent}")
    return array


def cached(
    clips: Sequence[Clip],
    cache: Path | str | None = None,
    *,
    downscale: int = 1,
    progress: bool = True,
) -> list[Clip]:
    """Give the same clips mapped from the decoded cache; what is missing or out of date is decoded first.

    Several processes may call this at once: one decodes a sequence, the others wait for it.

    Args:
        clips: sequences of `open_clips`. Those that are in memory or mapped already stay as they are; of pairs,
            both are mapped.
        cache: folder of the cache; None: see `cache_folders`.
        downscale: shrink frames by this whole factor, averaging over squares (rows and columns that do not
            fill a square are cut off at the bottom and the right).
        progress: show a progress bar on standard error while decoding.

    Raises:
        ConfigError: downscale below 1.
        DataError: a frame that is missing, damaged or of another size, or no room for the cache.
    """
    if downscale < 1:
        raise ConfigError(f"data.downscale={downscale} must be a whole number from 1 up")
    if any(isinstance(clip, PairedClip) for clip in clips):
        halves = [half for clip in clips for half in halves_of(clip)]
        mapped = iter(cached(halves, cache, downscale=downscale, progress=progress))
        return [each_half(clip, lambda half: next(mapped)) for clip in clips]
    caches = [Cache(clip, cache, downscale) for clip in clips]
    found = [c.find() for c in caches]
    missing = [c for c, clip in zip(caches, found) if clip is None]
    if missing:
        check_room(missing)
        frames = sum(len(c.clip) for c in missing)
        with frame_progress("decoding into the cache", frames, shown=progress) as advance:
            stored = iter([c.store(advance) for c in missing])
        return [next(stored) if clip is None else clip for clip in found]
    return [clip for clip in found if clip is not None]


def cache_folders(root: Path, given: Path | str | None = None) -> list[Path]:
    """List the folders to look for a data set's cache in; new files go to the first.

    Args:
        root: the data set's folder.
        given: use this folder and no other.

    Returns:
        `given`; else `<root>/.stan-cache` and `<root's name>-<hash of its path>` in the user's cache folder
        (`$XDG_CACHE_HOME/stan` or `~/.cache/stan` on Linux), the second first where the root is read-only (also by its
        mode alone: root may write anywhere, but should not).
    """
    if given is not None:
        return [Path(given).expanduser()]
    beside = root / FOLDER_NAME
    resolved = root.resolve()
    mark = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    user = user_cache_path("stan", appauthor=False) / f"{_slug(resolved.name)}-{mark}"
    place = beside if beside.is_dir() else root
    writable = os.access(place, os.W_OK) and place.stat().st_mode & 0o222
    return [beside, user] if writable else [user, beside]


class Cache:
    """The cache file of a sequence.

    Args:
        clip: the sequence.
        given: folder of the cache; None: see `cache_folders`.
        downscale: whole factor by which its frames are shrunk.
    """

    def __init__(self, clip: Clip, given: Path | str | None = None, downscale: int = 1) -> None:
        self.clip, self.downscale = clip, downscale
        self.folders = cache_folders(clip.root, given) if clip.root is not None else []

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the decoded frames, `(T, 3, H, W)`."""
        height, width = (side // self.downscale for side in self.clip.size)
        return len(self.clip), 3, height, width

    def find(self, *, verify: bool = False) -> Clip | None:
        """The sequence mapped from a cache file that is complete and up to date, or None.

        A sequence that has no files comes back as it is, or shrunk in memory.

        Args:
            verify: read the file and compare its checksum, too.
        """
        if not self.clip.files:
            return self._shrunk_in_memory() if self.downscale > 1 else self.clip
        stem = self._stem()
        for folder in self.folders:
            path = folder / f"{stem}.npy"
            manifest = _read_manifest(path.with_suffix(".json"))
            if manifest is None or not path.is_file() or path.stat().st_size != manifest["bytes"]:
                continue
            if verify and _payload_digest(path) != manifest["sha256"]:
                continue
            return MappedClip(self.clip.name, path, tuple(manifest["shape"]), manifest["fps"])
        return None

    def store(self, advance: Callable[[int], None] = lambda frames: None, *, again: bool = False) -> Clip:
        """Decode the sequence into its cache file, unless another process has just done so, and map it.

        Args:
            advance: told how many frames have been done since the last call.
            again: decode even if there is a file already.

        Raises:
            DataError: a damaged frame (JPEG data is checked twice, see `read_frame`), a frame of another
                size, files that changed meanwhile, or a folder that cannot be written.
        """
        folder, stem = self.folders[0], self._stem()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{stem}.lock") as alone:
                if not again and (done := self.find()) is not None:
                    advance(len(self.clip))
                    return done
                if alone:
                    for leftover in folder.glob(f"{stem}.*.tmp"):
                        leftover.unlink(missing_ok=True)
                self._write(folder / f"{stem}.npy", advance)
                if alone:
                    self._remove_outdated(folder, keep=stem)
        except PermissionError as error:
            raise DataError(
                f"the cache {folder} cannot be written ({error.strerror}): set data.cache to another folder"
            ) from None
        except IsADirectoryError as error:
            raise DataError(
                f"{error.filename2 or error.filename} is a folder where the cache keeps a file: remove it"
            ) from None
        if (done := self.find()) is None:
            raise DataError(
                f"the files of sequence {self.clip.name!r} changed while they were read: try again"
            )
        return done

    def _write(self, path: Path, advance: Callable[[int], None]) -> None:
        clip, shape = self.clip, self.shape
        if not (shape[2] and shape[3]):
            raise DataError(
                f"data.downscale={self.downscale} leaves nothing of sequence {clip.name!r}, "
                f"{clip.size[1]}x{clip.size[0]}"
            )
        digest = hashlib.sha256()
        # Plain writes, not a map: a full disk is then an error that can be told, not a bus error.
        with _temporary(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in clip.decode():  # (H, W, 3)
                planes = np.ascontiguousarray(shrink(image, self.downscale).transpose(2, 0, 1)).data
                digest.update(planes)
                file.write(planes)
                advance(1)
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "format": _FORMAT,
            "name": clip.name,
            "fps": clip.fps,
            "shape": shape,
            "downscale": self.downscale,
            "sha256": digest.hexdigest(),
            "bytes": path.stat().st_size,
            "source": str(_source(clip)),
            "files": _fingerprint(clip),
            "opencv": cv2.__version__,
        }
        with _temporary(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(manifest))

    def _stem(self) -> str:
        text = json.dumps([_FORMAT, self.clip.name, self.downscale, _fingerprint(self.clip)])
        return f"{_slug(self.clip.name)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _remove_outdated(self, folder: Path, keep: str) -> None:
        """Remove files made from an earlier state of the same source. Processes that map them keep them."""
        for path in folder.glob(f"{_slug(self.clip.name)}-*.json"):
            manifest = _read_manifest(path)
            if manifest is None or path.stem == keep:
                continue
            if manifest["source"] == str(_source(self.clip)) and manifest["downscale"] == self.downscale:
                for suffix in (".json", ".npy", ".lock"):
                    path.with_suffix(suffix).unlink(missing_ok=True)

    def _shrunk_in_memory(self) -> Clip:
        frames = [shrink(image, self.downscale).transpose(2, 0, 1) for image in self.clip.decode()]
        return TensorClip(self.clip.name, torch.from_numpy(np.stack(frames)), self.clip.fps)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average `(H, W, 3)` uint8 over squares of factor x factor; what does not fill a square is cut off."""
    if factor == 1:
        return image
    height, width = (side // factor for side in image.shape[:2])
    whole = image[: height * factor, : width * factor]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def check_room(caches: Sequence[Cache]) -> None:
    """Raise a DataError if the decoded frames do not fit on the disk of their caches."""
    needs: Counter[Path] = Counter()
    for cache in caches:
        needs[cache.folders[0]] += math.prod(cache.shape)
    for folder, need in needs.items():
        if need > (free := free_space(folder)):
            raise DataError(
                f"the decoded cache needs {need / 1e9:.2f} GB in {folder}, with {free / 1e9:.2f} GB free: "
                "make room, or set data.cache to a folder elsewhere"
            )


def _fingerprint(clip: Clip) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for path in clip.files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"frame {path} cannot be read: {error.strerror}") from None
        rows.append([path.name, status.st_size, status.st_mtime_ns])
    return rows


def _source(clip: Clip) -> Path:
    return (clip.files[0].parent if len(clip.files) > 1 else clip.files[0]).resolve()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:80]


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(manifest, dict) and manifest.get("format") == _FORMAT and manifest.keys() >= _NEEDED
    return manifest if whole else None


def _payload_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; renamed to it at the end, removed on error."""
    temporary = path.with_name(f"{path.stem}.{socket.gethostname()}-{os.getpid()}{path.suffix}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock; yields False on a file system without locks, where processes may repeat work."""
    with ExitStack() as held:
        alone = True
        try:
            held.enter_context(filelock.FileLock(path))
        except PermissionError:
            raise
        except (NotImplementedError, OSError):
            alone = False
        yield alone
