"""ST-RRED: spatio-temporal reduced-reference entropic differences, a measure of video quality.

R. Soundararajan and A. C. Bovik, "Video quality assessment by reduced reference spatio-temporal entropic
differencing", IEEE Trans. Circuits and Systems for Video Technology 23(4), 2013. Lower is better; 0 is
identical.

What is computed, for the pairs of frames (0, 1), (2, 3), ... of both videos:

1. One subband y of the luma: the fourth level of a steerable pyramid with six orientations (Simoncelli &
   Freeman, ICIP 1995; Karasaridis & Simoncelli, ICASSP 1996), in the orientation that answers to horizontal
   edges. The band of the frame difference is the difference of the bands.
2. A Gaussian scale mixture for 3x3 blocks of the band: a block is s·u with u ~ N(0, K). K is the covariance
   of all overlapping blocks, with eigenvalues λ; s² = xᵀ K⁻¹ x / 9 for each block x of a 3x3 tiling.
3. The entropy of each block given s, under neural noise of variance σ² = 0.1: h = Σ log2(s² λ + σ²) +
   9 ln(2πe), weighted by what draws attention: log2(1 + s²) for the frame (the pair's first), and
   log2(1 + s²) log2(1 + s_d²) for the difference band with its own h_d.
4. The spatial and the temporal term are the mean absolute differences of the weighted entropies between the
   two videos, over blocks and pairs. ST-RRED is their product.

Published figures come from software that departs from the letter of the paper, and this module follows it so
that figures can be compared: no factor 1/2 on the entropy and a natural logarithm in its constant (both in
step 3). The noise variance 0.1 belongs to luma in [0, 255]; ``peak=1`` gives the much smaller figures of
papers that measured video in [0, 1]. On DAVIS frames with noise, scores are 1 to 4 % below those of
scikit-video 1.1.11 at either peak: step 1 uses a closed form of the filters' response (see ``HARMONICS``),
not their taps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

NEURAL_NOISE = 0.1
BLOCK = 3
LEVELS = 4
HARMONICS = {
    1: (1.5352, 1.1142, 0.6000, 3.3902),
    3: (5.9594, 2.8448, 0.4557, 2.7232),
    5: (0.7042, 3.7363, 0.5497, 4.5375),
}
"""The band's frequency response: a sum over n of gain · r^rise · exp(-(r/cutoff)^fall) · cos(nθ).

Fitted by least squares to the response that the filters of the original software have through all levels
("sp5" filters, known by their response only); the fit leaves 0.07 % of the energy.
"""
LUMA = (0.299, 0.587, 0.114)
"""Rec. 601 weights of R, G and B: the luma of 8-bit standard-definition video."""

_STEP = 2 ** (LEVELS - 1)
_MARGIN = 8 * _STEP
"""Mirrored pixels around the frame, so that the far side does not leak in through the periodic transform."""
_SMALLEST = BLOCK * _STEP


class Terms(NamedTuple):
    """The two factors of ST-RRED for each pair of frames, float64 (pairs,)."""

    spatial: Tensor
    temporal: Tensor


def strred(clean: Tensor, output: Tensor, peak: float = 255.0) -> float:
    """ST-RRED of a video against its reference; see the module's text for what is computed.

    Args:
        clean: reference, (T, 3, H, W) in [0, 1].
        output: the video to judge, same shape; clamped to [0, 1].
        peak: luma is scaled to [0, peak] before it is measured. 255 is the scale the method was made for.

    Returns:
        The score; NaN when there are fewer than two frames, the frames are smaller than 24x24, or a value
        is NaN.
    """
    return combine(strred_terms(clean, output, (peak,))[0])


def combine(terms: Terms) -> float:
    """The score of a video from the terms of all its pairs: the product of the two means."""
    return float(terms.spatial.mean() * terms.temporal.mean()) if len(terms.spatial) else math.nan


def strred_terms(clean: Tensor, output: Tensor, peaks: tuple[float, ...] = (255.0,)) -> list[Terms]:
    """The spatial and temporal terms of every pair of frames, for each luma scale in ``peaks``.

    A video may be measured in pieces of an even number of frames; the pieces' terms are then concatenated.
    """
    if clean.shape != output.shape or clean.ndim != 4 or clean.shape[1] != 3:
        raise ValueError(
            f"strred needs two (T, 3, H, W) videos of one shape, got {(*clean.shape,)} and {(*output.shape,)}"
        )
    pairs = clean.shape[0] // 2
    if pairs == 0 or min(clean.shape[-2:]) < _SMALLEST:
        empty = torch.empty(0, dtype=torch.float64)
        return [Terms(empty, empty) for _ in peaks]
    maps = []
    unknown = torch.zeros(pairs, dtype=torch.bool)
    for video in (clean, output):
        luma = _luma(video[: 2 * pairs])
        unknown |= luma.isnan().flatten(1).any(1).view(pairs, 2).any(1).cpu()
        band = subband(luma.nan_to_num())  # (2 * pairs, h, w)
        maps.append((_mixture(band[0::2]), _mixture(band[0::2] - band[1::2])))
    result = []
    for peak in peaks:
        (spatial, temporal), (spatial_out, temporal_out) = (_information(*pair, peak) for pair in maps)
        differences = (
            (a - b).abs().mean(-1).cpu() for a, b in ((spatial, spatial_out), (temporal, temporal_out))
        )
        result.append(Terms(*(d.masked_fill(unknown, math.nan) for d in differences)))
    return result


def subband(frames: Tensor) -> Tensor:
    """The fourth-level band that answers to horizontal edges, computed in the Fourier domain.

    Frames are mirrored about their border pixels.

    Args:
        frames: (N, H, W), float64.

    Returns:
        (N, ceil(H/8), ceil(W/8)): one coefficient for every eighth pixel in each direction, from pixel 0 on.
    """
    height, width = frames.shape[-2:]
    rows = _mirror(height, frames.device)
    columns = _mirror(width, frames.device)
    padded = frames[:, rows][:, :, columns]  # (N, P, Q)
    size = (len(rows) // _STEP, len(columns) // _STEP)
    spectrum = torch.fft.rfft2(padded)
    # Only frequencies below pi/8 pass, so keeping the centre of the spectrum is the decimation by 8.
    half = size[0] // 2
    low = torch.cat([spectrum[:, : size[0] - half], spectrum[:, -half:]], 1)[:, :, : size[1] // 2 + 1]
    band = torch.fft.irfft2(low * _response(size, frames.device), s=size) / _STEP**2  # (N, P/8, Q/8)
    start = _MARGIN // _STEP
    return band[:, start : start + -(-height // _STEP), start : start + -(-width // _STEP)]


def _response(size: tuple[int, int], device: torch.device) -> Tensor:
    """Frequency response of the band, finer levels included, on the decimated grid: imaginary and odd in y."""
    fy = torch.fft.fftfreq(size[0], dtype=torch.float64, device=device)[:, None] * 2
    fx = torch.fft.rfftfreq(size[1], dtype=torch.float64, device=device)[None, :] * 2
    radius = torch.hypot(fy, fx)  # 1 is the highest frequency along an axis of the decimated grid
    angle = torch.atan2(fx, fy)  # 0 is the vertical frequency axis
    response = torch.zeros_like(radius)
    for harmonic, (gain, rise, cutoff, fall) in HARMONICS.items():
        radial = gain * radius**rise * torch.exp(-((radius / cutoff) ** fall))
        response += radial * torch.cos(harmonic * angle)
    return 1j * _STEP * response


def _mirror(length: int, device: torch.device) -> Tensor:
    """Indices of a line of pixels with its mirror image (about the border pixel) on both sides; the count suits the
    transform."""
    total = length + 2 * _MARGIN
    total = next(n for n in range(-(-total // 16) * 16, 2 * total + 16, 16) if _smooth(n))
    index = (torch.arange(total, device=device) - _MARGIN) % (2 * length - 2)
    return torch.where(index < length, index, 2 * length - 2 - index)


def _smooth(number: int) -> bool:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number == 1


def _luma(video: Tensor) -> Tensor:
    """(T, 3, H, W) -> (T, H, W) float64 in [0, 1]."""
    video = video.cpu() if video.device.type == "mps" else video  # which has no float64
    weights = torch.tensor(LUMA, dtype=torch.float64, device=video.device)
    return torch.einsum("tchw,c->thw", video.to(torch.float64).clamp(0, 1), weights)


def _mixture(band: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the Gaussian scale mixture to each band: s² of every block (N, blocks), eigenvalues of K (N, 9)."""
    rows, columns = (BLOCK * (length // BLOCK) for length in band.shape[-2:])
    band = band[:, :rows, :columns]
    windows = band.unfold(1, BLOCK, 1).unfold(2, BLOCK, 1)  # (N, h, w, 3, 3)
    overlapping = windows.reshape(len(band), -1, BLOCK**2)  # (N, h * w, 9)
    tiling = windows[:, ::BLOCK, ::BLOCK].reshape(len(band), -1, BLOCK**2)  # (N, blocks, 9)
    centred = overlapping - overlapping.mean(1, keepdim=True)
    covariance = centred.mT @ centred / overlapping.shape[1]  # (N, 9, 9)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    # Directions without variance hold rounding noise only (flat frames): they say nothing about s.
    usable = values > 1e-10 * values[:, -1:].clamp_min(1e-12)
    inverse = torch.where(usable, 1 / values.clamp_min(1e-300), torch.zeros_like(values))
    scale = ((tiling @ vectors) ** 2 * inverse[:, None]).sum(-1) / BLOCK**2  # (N, blocks)
    return scale, values


def _information(
    frame: tuple[Tensor, Tensor], difference: tuple[Tensor, Tensor], peak: float
) -> tuple[Tensor, Tensor]:
    """The weighted entropies of every block of a frame and of the frame difference, (N, blocks) each."""
    scale, values = frame
    scale_d, values_d = difference
    attention = torch.log2(1 + scale)
    spatial = attention * _entropy(scale, values, peak)
    temporal = attention * torch.log2(1 + scale_d) * _entropy(scale_d, values_d, peak)
    return spatial, temporal


def _entropy(scale: Tensor, values: Tensor, peak: float) -> Tensor:
    variance = scale[..., None] * values[:, None] * peak**2 + NEURAL_NOISE  # (N, blocks, 9)
    return torch.log2(variance).sum(-1) + BLOCK**2 * math.log(2 * math.pi * math.e)
