"""Where the search looks, for the reference: searched frames, anchors, windows and bilinear taps.

Coordinates are pixels, one axis at a time; all functions work on tensors of any shape. `stan/ops/csrc/geometry.h`
holds the same arithmetic for the native kernels: positions agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1 << 28  # more steps than any window holds; keeps the conversion to int defined for tiny key strides


def slot_frames(frames: int, temporal_window: int, causal: bool) -> list[list[int]]:
    """Frames searched from each frame t, by slot: t, t+1, ..., then t-1, t-2, ...; -1 where there is none.

    At the ends of the clip the range slides inwards, so that 2*temporal_window + 1 distinct frames are searched.
    Causal: t, t-1, ..., t-temporal_window.
    """
    if causal:
        return [[max(t - n, -1) for n in range(temporal_window + 1)] for t in range(frames)]
    rows = []
    for t in range(frames):
        first = min(max(t - temporal_window, 0), frames - 2 * temporal_window - 1)
        rows.append([*range(t, first + 2 * temporal_window + 1), *range(t - 1, first - 1, -1)])
    return rows


def anchor(start: Tensor, shift: Tensor, length: int) -> Tensor:
    """start + shift, reflected once at the border, then clamped; a NaN or infinite shift counts as zero.

    d(anchor)/d(shift) is 1, -1 where reflected, 0 where clamped or replaced.
    """
    last = length - 1
    v = start + torch.where(shift.isfinite(), shift, 0.0)
    v = torch.where(v < 0, -v, torch.where(v > last, 2 * last - v, v))
    # Not clamp: its gradient on the border itself is 1 in some torch versions and 0 in others.
    return torch.where(v < 0, 0.0, torch.where(v > last, float(last), v))


def window_of(
    anchor: Tensor, step: float, window: int, length: int, slide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The window of `window` grid steps around each anchor, along one axis: begin, low and high.

    Candidates lie at anchor + step * k, k whole, from `begin`; those in [low, high] are inside the image. The steps
    that fit on each side of the anchor are counted, so that validity never hangs on the rounding of a position. With
    `slide` the window moves by whole steps until it lies inside the image; where it is longer than the image, it begins
    at the lowest step and its tail is invalid.
    """
    # The divisor is a tensor, since CUDA divides by a number through its reciprocal.
    divisor = torch.full_like(anchor[:1], step)
    low = -(anchor / divisor).floor().clamp(max=STEPS).long()
    high = ((length - 1 - anchor) / divisor).floor().clamp(max=STEPS).long()
    begin = torch.full_like(low, -((window - 1) // 2))
    if slide:
        begin = torch.maximum(torch.minimum(begin, high - (window - 1)), low)
    return begin, low, high


def reflect_index(index: Tensor, length: int) -> Tensor:
    """Bring whole coordinates inside the image: reflected once, then clamped."""
    last = length - 1
    index = torch.where(index < 0, -index, torch.where(index > last, 2 * last - index, index))
    return index.clamp(0, last)


def bilinear_taps(
    x: Tensor, y: Tensor, width: int, height: int, shift: tuple[int, int] = (0, 0), tight: bool = False
) -> tuple[Tensor, Tensor]:
    """Bilinear taps of the positions (x, y) + shift; x and y broadcast, the image extends by reflection.

    Returns the four pixels y * width + x around each position, and their weights, on a last axis of 4.

    Along each axis the taps are floor and floor + 1, so that the weights carry the right-hand derivative at
    whole positions. With `tight` the second tap of a whole position, which has weight 0, is the first
    again: what lies there (a NaN) then cannot leak into the result.
    """
    x0, y0 = x.detach().floor(), y.detach().floor()
    fx, fy = x - x0, y - y0
    ix, iy = x0.long() + shift[0], y0.long() + shift[1]
    one_x, one_y = ((fx > 0).long(), (fy > 0).long()) if tight else (1, 1)
    columns = (reflect_index(ix, width), reflect_index(ix + one_x, width))
    rows = (reflect_index(iy, height) * width, reflect_index(iy + one_y, height) * width)
    weights_x, weights_y = (1 - fx, fx), (1 - fy, fy)
    index = torch.stack([r + c for r in rows for c in columns], dim=-1)  # (..., 4)
    weight = torch.stack([v * u for v in weights_y for u in weights_x], dim=-1)  # (..., 4)
    return index, weight
