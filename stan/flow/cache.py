"""A disk cache of flow that knows what each entry was computed from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stan.errors import ConfigError, DataError
from stan.files import replacing
from stan.flow.base import FlowPair, OffsetSource

MAGIC = b"stan flow 1\n"
SUFFIX = ".flow"
NO_INFLUENCE = ("threads",)
"""Settings that change how fast a flow is computed, not what comes out."""


class CacheSize(NamedTuple):
    """How much a cache holds."""

    entries: int
    bytes: int


class CachedFlow(OffsetSource):
    """An offset source whose results are kept in files and read back when the same flow is asked for again.

    An entry belongs to one clip. Its name is the SHA-256 of the clip's frames (values, type, size), of the
    source's name and settings, and of the version of the library that computes it, so that an entry is never
    used for anything but the very same computation. A file holds the flow as float32 after a line with its
    own SHA-256; damaged files are computed anew. Files appear under their final name only when complete, so
    that several processes may share a folder.

    Args:
        source: where missing flow comes from. A source that learns cannot be cached.
        folder: where the files are kept; made when needed. Put it next to the data.

    Raises:
        ConfigError: for a source with parameters that learn.
    """

    name = "cached"
    torch_only = False

    def __init__(self, source: OffsetSource, folder: str | Path) -> None:
        if source.trainable:
            raise ConfigError(f"offset source {source.name!r} learns; its flow cannot be cached")
        super().__init__()
        self.settings = {"source": source.name, "folder": str(folder), **source.settings}
        self.source = source
        self.folder = Path(folder)

    @property
    def version(self) -> str:
        """The version of the wrapped source."""
        return self.source.version

    def key(self, clip: Tensor) -> str:
        """The name of the entry of one clip `(T, 3, H, W)`, 64 hexadecimal digits."""
        recipe = {
            "source": self.source.name,
            "settings": {k: v for k, v in self.source.settings.items() if k not in NO_INFLUENCE},
            "version": self.source.version,
            "type": str(clip.dtype),
            "shape": list(clip.shape),
        }
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        digest.update(clip.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def estimate(self, video: Tensor) -> FlowPair:
        """Read the clips that are there, compute the others together, keep those."""
        keys = [self.key(clip) for clip in video]
        t, _, h, w = video.shape[1:]
        found = [self._read(key, (2, t, 2, h, w)) for key in keys]
        missing = [i for i, flow in enumerate(found) if flow is None]
        if missing:
            fresh = torch.stack(list(self.source.estimate(video[missing])), dim=1)  # (M, 2, T, 2, H, W)
            for i, flow in zip(missing, fresh):
                found[i] = kept = flow.cpu()
                self._write(keys[i], kept)
        pair = torch.stack([flow for flow in found if flow is not None]).to(video.device)
        return FlowPair(pair[:, 0], pair[:, 1])  # each (B, T, 2, H, W)

    def size(self) -> CacheSize:
        """Entries in the folder and the bytes they take."""
        sizes = []
        for path in self._entries():
            with contextlib.suppress(FileNotFoundError):  # another process may clear the folder
                sizes.append(path.stat().st_size)
        return CacheSize(len(sizes), sum(sizes))

    def report(self) -> str:
        """The size in one line for people."""
        size = self.size()
        return f"flow cache {self.folder}: {size.entries} clips, {size.bytes / 2**20:.1f} MiB"

    def clear(self) -> None:
        """Delete all entries."""
        for path in self._entries():
            path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[Path]:
        return self.folder.glob(f"??/*{SUFFIX}")

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _read(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """The flow `shape` of an entry; None where there is none, or a damaged one."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        header = len(MAGIC) + 64 + 1
        body = content[header:]
        if content[:header] != MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
            return None
        if len(body) != 4 * int(np.prod(shape)):
            return None
        return torch.from_numpy(np.frombuffer(body, "<f4").reshape(shape).copy())

    def _write(self, key: str, flow: Tensor) -> None:
        body = flow.numpy().astype("<f4").tobytes()
        try:
            with replacing(self._path(key), durable=False) as file:
                file.write(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except OSError as error:
            raise DataError(f"cannot write flow cache {self.folder}: {error.strerror or error}") from error
