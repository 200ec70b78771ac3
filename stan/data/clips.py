"""Clips: one sequence of frames, wherever it comes from, read as uint8 tensors."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from stan.data.frames import read_frame
from stan.errors import DataError


class Clip(ABC):
    """One sequence of equally sized RGB frames.

    Attributes:
        name: the sequence's name; evaluation noise is drawn from it.
        fps: frames per second, or None where the source does not say (folders of images).
        root: folder of the data set that it belongs to, or None for a clip that is not read from files.
        files: the files that it is decoded from; none for a clip that is in memory or mapped already.

    Args:
        frames: how many there are.
        size: their height and width.
    """

    def __init__(
        self,
        name: str,
        frames: int,
        size: tuple[int, int] | None,
        fps: float | None = None,
        root: Path | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self.name, self.fps, self.root = name, fps, root
        self.files = list(files)
        self._frames, self._size = frames, size

    def __len__(self) -> int:
        return self._frames

    @property
    def size(self) -> tuple[int, int]:
        """The frames' height and width."""
        assert self._size is not None
        return self._size

    def decode(self) -> Iterator[np.ndarray]:
        """Decode all frames in order, `(H, W, 3)` uint8 each, with all checks that the source has.

        Raises:
            DataError: a frame that is missing, damaged or of another size; names the file.
        """
        for start in range(0, len(self), 8):
            for frame in self.read(start, min(start + 8, len(self))):
                yield frame.permute(1, 2, 0).numpy()

    @abstractmethod
    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> torch.Tensor:
        """Read a box of frames `start` to `stop`, which has been checked, `start < stop`."""

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read frames `start` to `stop` (exclusive; None: to the end).

        Returns:
            `(stop - start, 3, H, W)` uint8, the caller's own to change.

        Raises:
            IndexError: not `0 <= start <= stop <= len(clip)`.
            DataError: a frame that is missing, damaged or of another size; names the file.
        """
        return self.crop(start, self._check(start, stop), 0, 0, *self.size)

    def crop(self, start: int, stop: int, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """Read a box of space and time: `(stop - start, 3, height, width)` uint8, the caller's own to change.

        Raises:
            IndexError: a box that is not inside the clip.
        """
        self._check(start, stop)
        full_height, full_width = self.size
        if not (0 <= top <= top + height <= full_height and 0 <= left <= left + width <= full_width):
            raise IndexError(
                f"crop {width}x{height} at ({left}, {top}) is not inside clip {self.name!r} "
                f"of {full_width}x{full_height}"
            )
        if start == stop:
            return torch.empty((0, 3, height, width), dtype=torch.uint8)
        return self._read(start, stop, slice(top, top + height), slice(left, left + width))

    def _check(self, start: int, stop: int | None) -> int:
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise IndexError(
                f"frames {start} to {stop} are not inside clip {self.name!r} of {len(self)} frames"
            )
        return stop

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} frames)"


class FrameClip(Clip):
    """A sequence of image files.

    Args:
        paths: the frames in order, at least one.
        root: folder of the data set; None: the frames' own folder.
    """

    def __init__(self, name: str, paths: Sequence[Path], root: Path | None = None) -> None:
        if not paths:
            raise DataError(f"sequence {name!r} has no frames")
        super().__init__(name, len(paths), None, root=root or paths[0].parent, files=paths)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the first frame."""
        if self._size is None:
            self._size = read_frame(self.files[0]).shape[:2]
        return self._size

    def frame(self, index: int, *, strict: bool = False) -> np.ndarray:
        """Decode one frame, `(H, W, 3)` uint8 RGB, and check that it has the first one's size.

        Args:
            index: which frame.
            strict: look for damage inside JPEG data too; see `stan.data.frames.read_frame`.
        """
        image = read_frame(self.files[index], strict=strict)
        height, width = self.size
        if image.shape[:2] != (height, width):
            raise DataError(
                f"frame {self.files[index]} is {image.shape[1]}x{image.shape[0]}, but sequence {self.name!r} "
                f"begins with {width}x{height}: all frames of a sequence must have one size"
            )
        return image

    def decode(self) -> Iterator[np.ndarray]:
        """Decode all frames with a few threads, JPEG data checked twice; see `Clip.decode`."""
        _ = self.size  # before the threads
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(self), 4 * workers):
                some = range(start, min(start + 4 * workers, len(self)))
                yield from pool.map(lambda i: self.frame(i, strict=True), some)

    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> torch.Tensor:
        out = np.empty((stop - start, 3, rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        for i in range(start, stop):
            out[i - start] = self.frame(i)[rows, columns].transpose(2, 0, 1)
        return torch.from_numpy(out)


class TensorClip(Clip):
    """A sequence that is in memory already.

    Args:
        frames: `(T, 3, H, W)` uint8, T at least 1; not copied.
    """

    def __init__(self, name: str, frames: torch.Tensor, fps: float | None = None) -> None:
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1] != 3 or not len(frames):
            raise DataError(
                f"clip {name!r} needs uint8 frames (T, 3, H, W) with T >= 1, "
                f"got {frames.dtype} {tuple(frames.shape)}"
            )
        super().__init__(name, len(frames), (frames.shape[-2], frames.shape[-1]), fps)
        self.frames = frames

    def _read(self, start: int, stop: int, rows: slice, columns: slice) -> torch.Tensor:
        return self.frames[start:stop, :, rows, columns].clone()
