"""YUV and RGB: the matrices, code ranges and chroma grids of video files, invertible to less than one code value.

All values are unclipped float32: nominal RGB and Y' lie in [0, 1], Cb and Cr in [-0.5, 0.5]. A camera's code
values may lie outside the RGB cube (noise often does); they are carried through, not cut, so that going to
RGB and back changes nothing.

Chroma of 4:2:0 and 4:2:2 video is brought to the luma grid and back by a biorthogonal pair of short filters,
so that ``decimate(interpolate(c))`` is ``c`` itself and a network that changes nothing leaves the file
unchanged: the LeGall 5/3 pair (Le Gall & Tabatabai, ICASSP 1988) where chroma sits on luma samples, the CDF
1/3 pair (Cohen, Daubechies & Feauveau, 1992; a linear reconstruction that keeps the cell mean) where it sits
between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stan.reflection import reflect

LIMITED, FULL = 1, 2  # AVColorRange
UNSPECIFIED = 2  # in AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic

# AVColorSpace -> (Kr, Kb), ITU-T H.273 table 4
_LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
    10: (0.2627, 0.0593),  # BT.2020, constant luminance: treated as the above
}


@dataclass(frozen=True)
class Colour:
    """The colour tags of a video stream, as FFmpeg numbers them (ITU-T H.273); 0 or 2 is unspecified.

    ``centred`` says that chroma samples lie midway between luma columns (JPEG, MPEG-1) instead of on them
    (MPEG-2 and later).
    """

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    centred: bool = False

    def luma_weights(self, height: int, width: int) -> tuple[float, float]:
        """(Kr, Kb) of the matrix; untagged is BT.709 from 720p up and BT.601 below, as players take it."""
        if self.matrix in _LUMA_WEIGHTS:
            return _LUMA_WEIGHTS[self.matrix]
        if self.matrix in (0, UNSPECIFIED):
            return _LUMA_WEIGHTS[1 if width >= 1280 or height > 576 else 6]
        return _LUMA_WEIGHTS[1]  # YCgCo, ICtCp ...: any invertible matrix returns the same codes

    @property
    def full_range(self) -> bool:
        """Whether codes use the whole range; untagged YUV does not."""
        return self.range == FULL


BT709_LIMITED = Colour(matrix=1, range=LIMITED, primaries=1, transfer=1)


def code_scales(bits: int, full_range: bool) -> tuple[float, float, float, float]:
    """(luma offset, luma scale, chroma offset, chroma scale): code = offset + scale * value."""
    unit = float(1 << (bits - 8))
    if full_range:
        peak = float((1 << bits) - 1)
        return 0.0, peak, 128.0 * unit, peak
    return 16.0 * unit, 219.0 * unit, 128.0 * unit, 224.0 * unit


def rgb_from_yuv(y: Tensor, cb: Tensor, cr: Tensor, weights: tuple[float, float]) -> Tensor:
    """RGB (3, H, W) from Y', Cb, Cr, each (H, W), with luma weights (Kr, Kb)."""
    kr, kb = weights
    kg = 1.0 - kr - kb
    red = y + (2.0 * (1.0 - kr)) * cr
    blue = y + (2.0 * (1.0 - kb)) * cb
    green = y - (2.0 * kr * (1.0 - kr) / kg) * cr - (2.0 * kb * (1.0 - kb) / kg) * cb
    return torch.stack((red, green, blue))  # (3, H, W)


def yuv_from_rgb(rgb: Tensor, weights: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Y', Cb, Cr, each (H, W), from RGB (3, H, W); the inverse of `rgb_from_yuv`."""
    kr, kb = weights
    red, green, blue = rgb
    y = kr * red + (1.0 - kr - kb) * green + kb * blue
    return y, (blue - y) / (2.0 * (1.0 - kb)), (red - y) / (2.0 * (1.0 - kr))


def interpolate(x: Tensor, dim: int, size: int, centred: bool) -> Tensor:
    """Double the n samples of ``x`` along ``dim`` to ``size`` (2n or 2n-1).

    ``centred``: a sample lies midway between the two made of it, else on the first.
    """
    n = x.shape[dim]
    following = x.index_select(dim, _clamped(n, 1, x.device))
    if centred:
        slope = (following - x.index_select(dim, _clamped(n, -1, x.device))) / 8.0
        if size < 2 * n:  # the last sample stands alone in its cell
            slope.select(dim, n - 1).zero_()
        even, odd = x - slope, x + slope
    else:
        even, odd = x, (x + following) / 2.0
    return torch.stack((even, odd), dim=dim + 1).flatten(dim, dim + 1).narrow(dim, 0, size)


def decimate(x: Tensor, dim: int, centred: bool) -> Tensor:
    """Halve the samples of ``x`` along ``dim`` (n of 2n or 2n-1); the exact left inverse of `interpolate`."""
    size = x.shape[dim]
    if centred:
        even = torch.arange(0, size, 2, device=x.device)
        return (x.index_select(dim, even) + x.index_select(dim, (even + 1).clamp(max=size - 1))) / 2.0
    taps = {k: x.index_select(dim, _reflected(size, k).to(x.device)) for k in (-2, -1, 0, 1, 2)}
    return 0.75 * taps[0] + 0.25 * (taps[-1] + taps[1]) - 0.125 * (taps[-2] + taps[2])


def chroma_to_luma_grid(c: Tensor, height: int, width: int, centred: bool) -> Tensor:
    """Chroma (..., h, w) on the luma grid (height, width): each side is halved 0, 1 or 2 times in ``c``."""
    for dim, size, middle in ((c.ndim - 2, height, True), (c.ndim - 1, width, centred)):
        steps = [size]
        while steps[-1] > c.shape[dim]:
            steps.append((steps[-1] + 1) // 2)
        for target in reversed(steps[:-1]):
            c = interpolate(c, dim, target, middle)
    return c  # (..., height, width)


def chroma_from_luma_grid(c: Tensor, height: int, width: int, centred: bool) -> Tensor:
    """Chroma on the luma grid brought to (height, width); the left inverse of `chroma_to_luma_grid`."""
    for dim, size, middle in ((0, height, True), (1, width, centred)):
        while c.shape[dim] > size:
            c = decimate(c, dim, middle)
    return c  # (height, width)


def _clamped(n: int, step: int, device: torch.device) -> Tensor:
    return (torch.arange(n, device=device) + step).clamp(0, n - 1)


@lru_cache(maxsize=64)
def _reflected(size: int, step: int) -> Tensor:
    """The even positions below ``size``, moved by ``step`` and reflected about the first and last sample."""
    return torch.tensor(reflect(range(step, size + step, 2), size))
