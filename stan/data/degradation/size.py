"""Smaller and larger frames, by the cubic filter that super-resolution is measured with (a = -0.5, antialiased)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def shrink(video: Tensor, scale: int) -> Tensor:
    """Float frames `(..., C, H, W)` with sides `scale` times smaller, rounded up: the last pixels are repeated."""
    height, width = video.shape[-2:]
    frames = F.pad(_frames(video), (0, -width % scale, 0, -height % scale), mode="replicate")
    small = _resized(frames, -(-height // scale), -(-width // scale))
    return small.reshape(*video.shape[:-2], *small.shape[-2:])


def enlarge(video: Tensor, scale: int) -> Tensor:
    """Float frames `(..., C, H, W)` with sides `scale` times larger."""
    height, width = video.shape[-2:]
    large = _resized(_frames(video), height * scale, width * scale)
    return large.reshape(*video.shape[:-2], *large.shape[-2:])


def _frames(video: Tensor) -> Tensor:
    return video.reshape(-1, *video.shape[-3:])  # (N, C, H, W)


def _resized(frames: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)
