"""The noise level of a video, estimated from the video itself.

Per frame by the DCT method of N. Ponomarenko, V. Lukin, M. Zriakhov, A. Kaarna and J. Astola, "An Automatic
Approach to Lossy Compression of AVIRIS Images", IGARSS 2007, as analysed by M. Colom and A. Buades, "Analysis
and Extension of the Ponomarenko et al. Method, Estimating a Noise Curve from a Single Image", IPOL 3, 2013.
Of all small blocks those with the least energy at low frequencies are taken for flat, and what they have at
high frequencies for noise. White noise at low and at high frequencies is independent, so the choice brings no
bias.

Two things are our own. Blocks are chosen among those whose mean is far from black and white in every channel,
so that noise which was clipped to [0, 255] is measured where it was not. And the noise is measured in the
luminance: video files store colour at half the resolution, which leaves little of the noise there. The level
returned is that of white noise in R, G and B with the same noise in luminance. ``docs/inference.md`` has the
errors on real clips, and those of other methods.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.errors import StanError

SIDE = 8
"""Side of the blocks, pixels; a frame must have at least this height and width."""

BLOCKS = 40_000
"""Blocks looked at in a frame, about."""

FLAT_PART, FLAT_LEAST = 0.02, 200
"""The part of the blocks that is taken for flat, and how many at least."""

INSIDE_PART = 0.2
"""The part of the blocks, those farthest from black and white, that noise is sought among at least."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luminance (ITU-R BT.601)."""

LOW, HIGH = 5, 9
"""Horizontal and vertical frequency (0 to 7 each) sum to at most LOW where structure shows, to at least HIGH
where noise is measured."""


def frame_sigma(frame: Tensor) -> float:
    """The noise level of one frame: standard deviation in 8-bit units.

    Args:
        frame: `(3, H, W)`, uint8 or float in about [0, 1].

    Raises:
        StanError: if the frame is smaller than 8 x 8.
    """
    height, width = frame.shape[1:]
    if min(height, width) < SIDE:
        raise StanError(
            f"frames of {height}x{width} are too small to estimate their noise; give sigma as a number"
        )
    scale = 1.0 if frame.dtype == torch.uint8 else 255.0
    gain = math.hypot(*LUMINANCE)
    luminance = sum(plane.float() * (weight * scale / gain) for plane, weight in zip(frame, LUMINANCE))
    assert isinstance(luminance, Tensor)
    blocks = _blocks(luminance).reshape(-1, SIDE * SIDE)  # (N, 64)
    low, high = _bases()
    structure = (blocks @ low).square_().sum(1)  # (N,)
    means = F.avg_pool2d(frame.float()[None], SIDE, _stride(height, width))[0].flatten(1) * scale  # (3, N)
    distance = torch.minimum(means, 255 - means).amin(0)  # to black or white

    sigma = _high_deviation(blocks, structure, high)
    inside = distance >= 2 * sigma + 2
    least = max(FLAT_LEAST, int(INSIDE_PART * len(blocks)))
    if int(inside.sum()) < least:
        inside = torch.zeros_like(inside)
        inside[_least(-distance, least)] = True
    return _high_deviation(blocks, structure.where(inside, torch.inf), high, int(inside.sum()))


def _blocks(plane: Tensor) -> Tensor:
    """Blocks of a plane `(H, W)` on a grid, `(rows, columns, 8, 8)`, a view."""
    stride = _stride(*plane.shape)
    return plane.unfold(0, SIDE, stride).unfold(1, SIDE, stride)


def _stride(height: int, width: int) -> int:
    """Pixels between neighbouring blocks."""
    return max(1, math.isqrt(height * width // BLOCKS))


def _bases() -> tuple[Tensor, Tensor]:
    """The low and the high frequencies of the orthonormal 2-D DCT, as columns: `(64, low)`, `(64, high)`."""
    k = torch.arange(SIDE, dtype=torch.float64)
    cosines = torch.cos(math.pi / SIDE * k[:, None] * (k + 0.5)) * math.sqrt(2 / SIDE)
    cosines[0] /= math.sqrt(2)
    waves = torch.einsum("ui,vj->uvij", cosines, cosines).reshape(SIDE, SIDE, -1).float()
    order = (k[:, None] + k).long()
    return waves[(order > 0) & (order <= LOW)].T.contiguous(), waves[order >= HIGH].T.contiguous()


def _high_deviation(blocks: Tensor, structure: Tensor, high: Tensor, count: int | None = None) -> float:
    """Standard deviation at high frequencies of those blocks `(N, 64)` that have the least structure, of which there
    are `count`."""
    count = len(blocks) if count is None else count
    flat = _least(structure, min(count, max(FLAT_LEAST, int(FLAT_PART * count))))
    return float((blocks[flat] @ high).square_().mean().sqrt())


def _least(values: Tensor, count: int) -> Tensor:
    """Where the `count` least of `values` (N,) are; of equal ones the first. Ten times as fast as sorting them."""
    count = min(count, len(values))
    limit = values.kthvalue(count).values
    below, equal = (values < limit).nonzero()[:, 0], (values == limit).nonzero()[:, 0]
    return torch.cat([below, equal[: count - len(below)]])


class NoiseTracker:
    """The noise level of a stream, frame by frame: the median of the last few frames' estimates.

    Args:
        memory: frames that the median goes over.
    """

    def __init__(self, memory: int = 9) -> None:
        self._recent: deque[float] = deque(maxlen=memory)

    def update(self, frame: Tensor, begins_scene: bool = False) -> float:
        """The level of the next frame `(3, H, W)`, 8-bit units; the start of a scene forgets what was
        before."""
        if begins_scene:
            self._recent.clear()
        self._recent.append(frame_sigma(frame))
        return float(torch.tensor(list(self._recent)).median())


def estimate_sigma(video: Tensor | Iterable[Tensor]) -> float:
    """The noise level of a whole video: the median over its frames.

    Args:
        video: `(T, 3, H, W)` or its frames; uint8 or float in about [0, 1].

    Returns:
        standard deviation in 8-bit units.

    Raises:
        StanError: if there are no frames, or they are smaller than 8 x 8.
    """
    levels = [frame_sigma(frame) for frame in video]
    if not levels:
        raise StanError("cannot estimate the noise of a video without frames")
    return float(torch.tensor(levels).median())
