"""Cutting a video into chunks and tiles that overlap, and the weights that put it together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from stan.errors import ConfigError


@dataclass(frozen=True)
class TilePlan:
    """How a video is cut: into chunks of frames, and each chunk into tiles.

    Tiles start at multiples of ``model.multiple``, so that the network's strided stages and windows lie as
    they would on the whole frame; sizes are rounded up to such multiples. Tiles are spread evenly over the
    frame and may be smaller than asked, never larger. Every output pixel is a weighted mean of the tiles over
    it, with weights that sum to one, and that are zero in the outer quarter of each overlap, where a tile
    lacks context.

    Attributes:
        frames: frames per chunk.
        frame_overlap: frames that a chunk shares with the one before it.
        height: rows per tile; None is the whole frame.
        width: columns per tile; None is the whole frame.
        overlap: rows and columns (at least) that neighbouring tiles share.

    Raises:
        ConfigError: for a size that is not positive, or an overlap that leaves no progress.
    """

    frames: int = 16
    frame_overlap: int = 4
    height: int | None = None
    width: int | None = None
    overlap: int = 64

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"tiles: frames={self.frames} must be at least 1")
        if not 0 <= self.frame_overlap < self.frames:
            raise ConfigError(
                f"tiles: frame_overlap={self.frame_overlap} must be at least 0 and below frames={self.frames}"
            )
        if self.overlap < 0:
            raise ConfigError(f"tiles: overlap={self.overlap} must be at least 0")
        for side, size in (("height", self.height), ("width", self.width)):
            if size is not None and size < 1:
                raise ConfigError(f"tiles: {side}={size} must be at least 1")
            if size is not None and size <= self.overlap:
                raise ConfigError(f"tiles: {side}={size} must be above overlap={self.overlap}")

    def spans(self, height: int, width: int, multiple: int = 1) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """The rows and the columns of the tiles over a frame of `height` x `width`."""
        return (
            spans(height, self.height, self.overlap, multiple),
            spans(width, self.width, self.overlap, multiple),
        )

    def tile(self, height: int, width: int, multiple: int = 1) -> tuple[int, int]:
        """Height and width of the largest tile on a frame of `height` x `width`."""
        rows, columns = self.spans(height, width, multiple)
        return max(b - a for a, b in rows), max(b - a for a, b in columns)

    def work(self, height: int, width: int, multiple: int = 1, frames: int | None = None) -> float:
        """Pixels computed per pixel given out, at least 1; `frames` is the video's length, if known."""
        rows, columns = self.spans(height, width, multiple)
        space = sum(b - a for a, b in rows) * sum(b - a for a, b in columns) / (height * width)
        fresh = self.frames - self.frame_overlap
        if frames is None:
            return space * self.frames / fresh
        if frames <= self.frames:
            return space
        chunks = -(-(frames - self.frames) // fresh) + 1
        return space * chunks * self.frames / frames

    def halved(self, height: int, width: int, multiple: int = 1) -> TilePlan | None:
        """The next smaller plan, for when memory ran out: the tile's longer side is halved, down to twice the
        overlap; then the overlap is, down to one `multiple`; then the chunk. None when nothing is left to
        halve."""
        tile_h, tile_w = self.tile(height, width, multiple)
        longer = max(tile_h, tile_w)
        half = round_up(-(-longer // 2), multiple)
        if half < longer and half >= 2 * self.overlap:
            if tile_h == longer:
                return replace(self, height=half)
            return replace(self, width=half)
        overlap = round_up(self.overlap // 2, multiple)
        if overlap < self.overlap and half < longer:
            return replace(self, overlap=overlap).halved(height, width, multiple)
        frames = max(-(-self.frames // 2), self.frame_overlap + 1)
        if frames < self.frames:
            return replace(self, frames=frames)
        return None

    def describe(self, height: int, width: int, multiple: int = 1) -> str:
        """One phrase for a log or a report: ``chunks of 16 frames (4 shared), 2 x 3 tiles of 288x352 (64
        shared)``."""
        rows, columns = self.spans(height, width, multiple)
        chunks = f"chunks of {self.frames} frames ({self.frame_overlap} shared)"
        if len(rows) * len(columns) == 1:
            return f"{chunks}, whole frames"
        tile_h, tile_w = self.tile(height, width, multiple)
        return f"{chunks}, {len(rows)} x {len(columns)} tiles of {tile_h}x{tile_w} ({self.overlap} shared)"


Span = tuple[int, int]
"""First position and the one after the last."""


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@lru_cache(maxsize=4096)
def spans(length: int, tile: int | None, overlap: int, multiple: int = 1) -> tuple[Span, ...]:
    """Cover [0, length) by as few tiles of at most `tile` positions as the overlap allows.

    Args:
        length: positions to cover.
        tile: largest tile, rounded up to a multiple of `multiple` (and to one more than the overlap needs);
            None is `length`.
        overlap: positions that neighbours share at least.
        multiple: tiles start at multiples of it.

    Returns:
        the tiles from left to right, evenly spread and no larger than their number requires. All are of one
        size, but for the last, which ends at `length` and may be up to ``multiple - 1`` shorter.
    """
    if tile is None:
        return ((0, length),)
    tile = max(round_up(tile, multiple), round_up(overlap, multiple) + multiple)
    if tile >= length:
        return ((0, length),)
    step = (tile - overlap) // multiple * multiple
    count = -(-(length - tile) // step) + 1
    while True:  # a smaller tile, while the same number of them still covers everything
        step = (tile - multiple - overlap) // multiple * multiple
        if step < multiple or (count - 1) * step + tile - multiple < length:
            break
        tile -= multiple
    last = round_up(length - tile, multiple)
    starts = [last * i // (count - 1) // multiple * multiple for i in range(count)]
    return tuple((start, min(start + tile, length)) for start in starts)


def ramp(length: int) -> Tensor:
    """Weights of the later of two tiles over `length` shared positions, rising from 0 to 1.

    They are 0 in the first quarter and 1 in the last, where the later and the earlier tile, respectively,
    lack context; in between they rise linearly, so that what still differs between the tiles makes no edge.
    """
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / max(length, 1)
    return ((position - 0.25) * 2).clamp_(0, 1)


def blend_weights(tiles: Sequence[Span]) -> list[Tensor]:
    """For each of some overlapping `spans`, its weights: float32 vectors that sum to one at every position.

    The tiles are laid one after the other, each over what lies there with its own opacity (`ramp`); so the
    weights sum to one by construction, however many tiles overlap.
    """
    length = tiles[-1][1]
    weights: list[Tensor] = []
    for i, (start, stop) in enumerate(tiles):
        opacity = torch.ones(stop - start, dtype=torch.float64)
        if i > 0:
            shared = tiles[i - 1][1] - start
            opacity[:shared] = ramp(shared)
        cover = torch.zeros(length, dtype=torch.float64)
        cover[start:stop] = opacity
        weights = [w * (1 - cover) for w in weights]
        weights.append(cover)
    return [w[start:stop].float() for w, (start, stop) in zip(weights, tiles)]
