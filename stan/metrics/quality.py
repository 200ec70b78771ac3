"""Measures of a denoised video against the clean one, as plain functions on (T, 3, H, W) videos in [0, 1].

Each returns one figure per frame (or per pair of neighbouring frames) as a float64 tensor on the CPU,
computed in float64; averages are taken by whoever reports them. All but `psnr_raw` clamp the output to [0, 1]
first, as the protocols say: a denoiser is neither rewarded nor punished for values that no display shows.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SSIM_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2

_Array = NDArray[np.float64]


def psnr(clean: Tensor, output: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, dB, over all its pixels and channels, with peak 1.

    Args:
        clean: (T, C, H, W) in [0, 1].
        output: same shape; clamped to [0, 1], not rounded.

    Returns:
        (T,); infinite where the frames are equal.
    """
    return _psnr(clean, output, rounded=False)


def psnr_rounded(clean: Tensor, output: Tensor) -> Tensor:
    """:func:`psnr` of the output as an 8-bit file stores it: clamped, then rounded to whole steps of 1/255."""
    return _psnr(clean, output, rounded=True)


def psnr_raw(clean: Tensor, output: Tensor) -> Tensor:
    """:func:`psnr` of a video as it is, not clamped: of a noisy one 20 log10(255 / sigma) for white Gaussian noise.

    It is what papers call the PSNR of the noisy input, and it shows that the noise has the level it should
    have.
    """
    errors = [float((b.double() - a.double()).square().mean()) for a, b in _frames(clean, output)]
    values = [-10 * math.log10(error) if error > 0 else math.inf for error in errors]
    return torch.tensor(values, dtype=torch.float64)


def ssim(clean: Tensor, output: Tensor) -> Tensor:
    """Structural similarity of each frame, mean over channels (Wang et al., IEEE TIP 2004).

    The definition is scikit-image's default with ``data_range=1``, channel by channel: a flat 7x7 window,
    sample covariance (divided by n - 1), K1 = 0.01, K2 = 0.03, averaged over the windows that lie inside the
    frame.

    Args:
        clean: (T, C, H, W) in [0, 1], H and W at least 7.
        output: same shape; clamped to [0, 1].

    Returns:
        (T,), at most 1.
    """
    height, width = clean.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"ssim needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {width}x{height}"
        )
    frames = [
        np.mean([_ssim_channel(x, y) for x, y in zip(_array(a), np.clip(_array(b), 0, 1))])
        for a, b in _frames(clean, output)
    ]
    return torch.tensor(np.array(frames))


def flicker(clean: Tensor, output: Tensor) -> Tensor:
    """Temporal flicker of the error, for each pair of neighbouring frames, in 8-bit units.

    With e = output - clean, it is the root mean square over pixels and channels of e(t+1) - e(t), times 255.
    An error that stays on the spot (blur of a still scene, a colour cast) has none; independent noise of
    standard deviation s has √2·s. Methods of equal PSNR can differ widely in it, and the eye sees it.

    Returns:
        (T - 1,): empty for a single frame. For a video in pieces, let each begin with the last frame of the
        one before.
    """
    before: _Array | None = None
    result = []
    for a, b in _frames(clean, output):
        error = np.clip(_array(b), 0, 1) - _array(a)
        if before is not None:
            result.append(255 * np.sqrt(_mean_square(error - before)))
        before = error
    return torch.tensor(np.array(result, dtype=np.float64))


def _psnr(clean: Tensor, output: Tensor, rounded: bool) -> Tensor:
    errors = []
    for a, b in _frames(clean, output):
        frame = np.clip(_array(b), 0, 1)
        if rounded:
            frame = np.round(frame * 255) / 255
        errors.append(_mean_square(frame - _array(a)))
    return -10 * torch.log10(torch.tensor(np.array(errors)))


def _ssim_channel(x: _Array, y: _Array) -> float:
    """SSIM of two (H, W) planes; OpenCV's box filter is several times faster than the alternatives."""
    inside = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))

    def mean(plane: _Array) -> _Array:
        blurred: Any = cv2.blur(plane, (SSIM_WINDOW, SSIM_WINDOW))
        return blurred[inside, inside]

    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_x, mean_y = mean(x), mean(y)
    product = mean_x * mean_y
    squares = mean_x * mean_x + mean_y * mean_y
    variances = unbiased * (mean(x * x + y * y) - squares)  # of x and of y together: only their sum is needed
    covariance = unbiased * (mean(x * y) - product)
    similarity = (2 * product + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))
    return float(similarity.mean())


def _mean_square(difference: _Array) -> float:
    return float(np.square(difference).mean())


def _array(frame: Tensor) -> _Array:
    return frame.detach().cpu().numpy().astype(np.float64)


def _frames(clean: Tensor, output: Tensor) -> zip[tuple[Tensor, Tensor]]:
    """The pairs of frames of two videos that can be compared."""
    if clean.shape != output.shape or clean.ndim != 4:
        raise ValueError(
            f"expected two videos of one shape (T, C, H, W), got {(*clean.shape,)} and {(*output.shape,)}"
        )
    if not (clean.is_floating_point() and output.is_floating_point()):
        raise TypeError(f"expected float videos in [0, 1], got {clean.dtype} and {output.dtype}")
    return zip(clean, output)
