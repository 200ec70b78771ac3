"""Brightness that changes from frame to frame, in fades, flicker and smoke: what averaging frames must not lose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.models.cells import BLOCK, smoothed

SIDE = 8
"""Side of the smallest squares, in pixels, whose brightness is looked at."""

TIMES = (4, 2, 1)
"""Sides of the squares, from the coarsest down, in smallest ones. Each brightness is a mean over 3x3 squares."""

DOUBT = 3.0
"""A difference is believed as far as its square is more than this many times the variance of its noise."""

COLOURS = (
    (3**-0.5, 3**-0.5, 3**-0.5),  # grey
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)
"""Rows are orthonormal: white noise stays white, and that of video files, whose colour is coarse, comes apart."""

MEDIAN = 0.4549
"""Median of the square of a normal variable of variance 1."""


def own_brightness(departs: Tensor, variance: Tensor) -> Tensor:
    """What a mean of frames lacks of the brightness of the frame itself, as far as that is certain: `(B, T, 3, H, W)`.

    The frame is noisy, but over a square of many pixels it tells its brightness well: the mean of n pixels has the n-th
    part of the variance of white noise. So differences d of large squares are believed first, by d (1 - 3 var / d^2)
    where that is positive (as the estimator of James and Stein), then what smaller ones have beside; d^2 is a mean over
    3x3 squares. Where noise is coarser than white, as in video files, `var` is larger: by how much is seen in the
    smallest squares, which it makes differ from their neighbours, while brightness changes over larger areas.

    Args:
        departs: `(B, T, 3, H, W)`, the noisy frame minus the mean.
        variance: `(B, T, 1, h, w)`, that of its noise if that were white, by block.
    """
    clips, size = departs.shape[:2], departs.shape[-2:]
    colours = departs.new_tensor(COLOURS)
    sums = torch.einsum("cd,ndhw->nchw", colours, total(departs.flatten(0, 1), SIDE))  # (N, 3, h8, w8)
    count = total(torch.ones_like(departs[:1, 0, :1]), SIDE)  # (1, 1, h8, w8), pixels
    with torch.no_grad():
        white = BLOCK**2 * total(variance.flatten(0, 1), SIDE // BLOCK)  # (N, 1, h8, w8), of the sums
        noise = white * coarseness(sums / count, white / count.square())  # (N, 3, h8, w8)
    lacks = torch.zeros_like(sums)
    for times in TIMES:
        pixels = around(count, times)
        mean = around(sums - lacks * count, times) / pixels
        with torch.no_grad():
            strange = mean.square() * pixels.square() / around(noise, times).clamp_(min=1e-12)
            certain = 1 - DOUBT / smoothed(strange, 3).clamp_(min=DOUBT)
        lacks = lacks + enlarged(mean * certain, times, lacks.shape[-2:])
    lacks = torch.einsum("cd,nchw->ndhw", colours, lacks)
    return enlarged(lacks, SIDE, size).unflatten(0, clips)


def coarseness(means: Tensor, variance: Tensor) -> Tensor:
    """How many times `variance` the means of the smallest squares have, at least once: `(N, 3, 1, 1)`.

    It shows in the steps between neighbours, of which the median is taken, which few edges do not change.
    """
    ratios = [means.new_full((*means.shape[:2], 1), MEDIAN)]
    for dim in (-1, -2):
        last = means.shape[dim] - 1
        step, both = (
            means.narrow(dim, 1, last) - means.narrow(dim, 0, last),
            variance.narrow(dim, 1, last) + variance.narrow(dim, 0, last),
        )
        ratios.append((step.square() / both.clamp(min=1e-12)).flatten(2))
    return (torch.cat(ratios, 2).median(2).values / MEDIAN).clamp_(min=1)[..., None, None]


def total(x: Tensor, side: int) -> Tensor:
    """`(N, C, h, w)` added up over squares of `side`, those at the border over what there is."""
    return F.avg_pool2d(x, side, ceil_mode=True, divisor_override=1)


def around(x: Tensor, side: int) -> Tensor:
    """`(N, C, h, w)` added up over the 3x3 squares of `side` around each square."""
    return F.avg_pool2d(total(x, side), 3, stride=1, padding=1, divisor_override=1)


def enlarged(x: Tensor, times: int, size: torch.Size) -> Tensor:
    """`(N, C, h, w)` enlarged bilinearly, cut to `size` (H, W)."""
    if times > 1:
        planes = x.flatten(0, 1).unsqueeze(
            1
        )  # of few channels PyTorch makes others in memory first, for twice the time
        x = F.interpolate(planes, scale_factor=times, mode="bilinear").view(
            *x.shape[:2], -1, times * x.shape[3]
        )
    return x[..., : size[0], : size[1]]
