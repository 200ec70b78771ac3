"""Pixels as rows of a table, queries as numbers, work in chunks: what the reference is made of.

Channels are brought last, so that a video is a table of pixels by channels. A bilinear sample is then a
weighted sum of four rows, which is what `torch.nn.functional.embedding_bag` computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .geometry import bilinear_taps, reflect_index
from .types import score_dtype

CHUNK = 1 << 21  # numbers handled at once

Shift = tuple[int, int]  # (x, y) of a patch pixel from the centre of its patch, or of one query from another


@dataclass(frozen=True)
class Grid:
    """The queries, numbered in the order of (B, HD, T, Hq, Wq)."""

    batch: int
    heads: int
    frames: int
    height: int
    width: int
    stride: int

    @classmethod
    def of_query(cls, query: Tensor, heads: int, stride: int) -> Grid:
        """The queries of a video (B, T, HD*C, H, W)."""
        batch, frames, _, height, width = query.shape
        return cls(batch, heads, frames, (height - 1) // stride + 1, (width - 1) // stride + 1, stride)

    @classmethod
    def of_matches(cls, frames: Tensor, stride: int) -> Grid:
        """The queries that have matches (B, HD, T, Hq, Wq, K)."""
        batch, heads, time, height, width, _ = frames.shape
        return cls(batch, heads, time, height, width, stride)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, HD, T, Hq, Wq)."""
        return (self.batch, self.heads, self.frames, self.height, self.width)

    def locate(self, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image number (b*HD + h)*T + t, and pixel coordinates x and y, of each query."""
        x = number % self.width * self.stride
        y = number // self.width % self.height * self.stride
        return number // (self.width * self.height), x, y

    def searched(self, image: Tensor, frame: Tensor, frames: int) -> Tensor:
        """Image number of a frame of the same clip and head, which has so many `frames` where it is looked up; one
        outside the clip is brought inside."""
        return image // self.frames * frames + frame.clamp(0, frames - 1)


@dataclass(frozen=True)
class Images:
    """Images as a table of pixels by channels; image number (b*HD + h)*T + t."""

    rows: Tensor  # (B*HD*T*H*W, C)
    height: int
    width: int

    @classmethod
    def of(cls, video: Tensor, heads: int) -> Images:
        """The frames of a video (B, T, HD*C, H, W), in the type of the scores."""
        batch, frames, channels, height, width = video.shape
        split = video.reshape(batch, frames, heads, channels // heads, height, width)
        rows = split.permute(0, 2, 1, 4, 5, 3).to(score_dtype(video))  # (B, HD, T, H, W, C)
        return cls(rows.reshape(-1, channels // heads), height, width)

    def read(self, image: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Channels (n, C) at whole positions (n,), reflected at the border."""
        pixel = reflect_index(y, self.height) * self.width + reflect_index(x, self.width)
        return self.rows.index_select(0, image * (self.height * self.width) + pixel)

    def taps(
        self,
        image: Tensor,
        x: Tensor,
        y: Tensor,
        shift: Shift,
        tight: bool = False,
        empty: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Row numbers and bilinear weights (..., 4) of the positions (x, y) moved by a patch pixel.

        A NaN or an infinity at a tap of weight 0 can leak neither into the sum nor into a gradient: the tap is
        then as with `tight`. Nor can one under an `empty` match (...), whose sum nobody uses.
        """
        pixel, weight = bilinear_taps(x, y, self.width, self.height, shift, tight)
        first = image[..., None] * (self.height * self.width)
        index = first + pixel
        if not tight:
            instead = first + bilinear_taps(x, y, self.width, self.height, shift, True)[0]
            index = torch.where((weight == 0) & self.spoilt[index], instead, index)
        if empty is not None:
            index = torch.where(empty[..., None] & self.spoilt[index], self.unspoilt, index)
        return index, weight

    @functools.cached_property
    def spoilt(self) -> Tensor:
        """Which rows hold a number that is not finite, (B*HD*T*H*W,)."""
        low, high = self.rows.detach().aminmax(dim=1)
        return ~(low.isfinite() & high.isfinite())

    @functools.cached_property
    def unspoilt(self) -> Tensor:
        """Number of a row that is not spoilt, if there is one; 0 where there are no rows."""
        return self.spoilt.byte().argmin() if len(self.rows) else self.rows.new_zeros((), dtype=torch.long)

    def sums(self, index: Tensor, weight: Tensor) -> Tensor:
        """Weighted sums of rows: index and weight (..., J) give (..., C)."""
        if self.rows.shape[0] < 2**31:
            index = index.int()  # embedding_bag is several times faster with int32
        bags = (index.reshape(-1, index.shape[-1]), weight.reshape(-1, index.shape[-1]))
        summed = F.embedding_bag(bags[0], self.rows, mode="sum", per_sample_weights=bags[1])
        return summed.reshape(*index.shape[:-1], self.rows.shape[1])


def as_video(rows: Tensor, grid: Grid) -> Tensor:
    """(B*HD*T*Hq*Wq, C) as (B, T, HD*C, Hq, Wq)."""
    split = rows.reshape(*grid.shape, rows.shape[1]).permute(0, 2, 1, 5, 3, 4)  # (B, T, HD, C, Hq, Wq)
    return split.reshape(grid.batch, grid.frames, grid.heads * rows.shape[1], grid.height, grid.width)


def by_query(*tensors: Tensor) -> list[Tensor]:
    """(B, HD, T, Hq, Wq, ...) as (N, ...)."""
    return [tensor.flatten(0, 4) for tensor in tensors]


def chunks_of(per_query: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split (N, ...) tensors into chunks of at most `CHUNK` numbers, each preceded by its query numbers."""
    numbers = torch.arange(tensors[0].shape[0], device=tensors[0].device)
    size = max(1, CHUNK // per_query)
    return zip(*(tensor.split(size) for tensor in (numbers, *tensors)))


def recomputed(fn: Callable[..., Any], chunks: Iterator[tuple[Tensor, ...]]) -> list[Any]:
    """fn of every chunk; what it computes on the way is not stored for backward but computed again."""
    if not torch.is_grad_enabled():
        return [fn(*chunk) for chunk in chunks]
    return [checkpoint(fn, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]


def patch_pixels(patch: int, dilation: int) -> list[Shift]:
    """Displacements (x, y) of a patch's pixels from its centre, row by row."""
    reach = range(-(patch // 2) * dilation, patch // 2 * dilation + 1, dilation)
    return [(u, v) for v in reach for u in reach]
