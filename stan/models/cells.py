"""The two grids of the merge: blocks of pixels, and cells of blocks, which move as one; means over their squares."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stan.flow.base import smoothed

BLOCK = 2
"""Side of the blocks: squares of pixels that are moved into the channels; the network works at half resolution."""

CELL = 4
"""Side of the cells: squares of pixels that move as one, with one query of the search and one set of weights."""

CELL_BLOCKS = CELL // BLOCK
"""The same in blocks."""

FAR = 2
"""Cells along each side of the squares, 3x3 of which the surplus of the noisy difference is averaged over as well: a
small square says where a match fails, a large one says it with more certainty."""


def spread(x: Tensor, times: int, over: Tensor) -> Tensor:
    """`(..., h, w)` with each value `times` times along both axes, cut to the height and width of `over`."""
    *lead, h, w = x.shape
    x = x[..., :, None, :, None].expand(*lead, h, times, w, times).reshape(*lead, h * times, w * times)
    return x[..., : over.shape[-2], : over.shape[-1]]


def by_cell(x: Tensor) -> Tensor:
    """`(B, T, K, h, w)` averaged over cells, `(B, T, K, h', w')`."""
    return pooled(x, CELL_BLOCKS)


def coarse(x: Tensor) -> Tensor:
    """`(B, T, K, h', w')`, each value replaced by the mean over the 3x3 squares of `FAR` x `FAR` around it."""
    return spread(smoothed(pooled(x, FAR), 3), FAR, x)


def pooled(x: Tensor, side: int) -> Tensor:
    """Means over squares of `side`, those at the border over what there is."""
    small = F.avg_pool2d(x.flatten(0, 1), side, ceil_mode=True, count_include_pad=False)
    return small.unflatten(0, x.shape[:2])


def detail(cleaned: Tensor) -> Tensor:
    """How much a frame `(B, T, 3, H, W)` departs from its mean over 5x5 pixels, by block: `(B, T, 1, h, w)`."""
    grey = cleaned.mean(2)
    departs = (grey - smoothed(grey, 5)).abs_()
    return 20 * F.avg_pool2d(departs, BLOCK).unsqueeze(2)
