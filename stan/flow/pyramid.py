"""Offsets without a flow library: the Shifted Non-Local Search itself, from coarse frames to fine ones."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stan import ops
from stan.flow.base import FlowPair, OffsetSource, bordered, grey
from stan.registry import sources
from stan.settings import ODD, Natural, above, between, named

LEVEL = 2
"""How much smaller each level is than the next finer one."""

FINER = 2
"""Enlargement of the finest level for the sub-pixel fit, whose 3 x 3 scores are then half a pixel apart. Scores a whole
pixel apart lie on no paraboloid: with them even a still picture seems to move, by up to half a pixel. Searched in whole
steps of enlarged frames they come four times as fast as in half steps."""

MOST_CORRECTION = 0.75
"""Pixels of the finest level by which the fit may move a match: beyond the scores that it sees it knows nothing."""

MOST_SKEW = 0.95
"""Largest share of mixed curvature in a fit: keeps the paraboloid bounded."""

_search = functools.partial(ops.ShiftedNLS, temporal_window=1, causal=True, select="each")
"""A search in the frame before each frame (and, in slot 0, in the frame itself)."""


@sources.register("pyramid")
class PyramidFlow(OffsetSource):
    """The search itself, from reduced frames to finer ones, on the video's device: no flow library.

    At the coarsest level a wide window around no displacement is searched for each query; each finer level searches
    a small window around the enlarged result of the level before. After every step a median over neighbouring
    queries takes out single wrong matches. At the finest level a paraboloid is fitted to the 3 x 3 scores around each
    match. The paraboloids of neighbouring queries are added before the best displacement is solved for, as
    Lucas and Kanade (IJCAI 1981) add gradients: a query on an edge knows the motion across it only, and gets the
    rest from its neighbours. All queries, frames and clips of a batch are handled at once, and the same result
    comes out every time. It carries no gradient.

    Args:
        coarsest: reduction of the coarsest level; motion of up to about coarsest * (coarsest_window - 1) / 2 pixels
            is found.
        finest: reduction of the finest level.
        stride: pixels of a level between its queries; the flow of the finest is known every finest * stride pixels
            and enlarged bilinearly.
        coarsest_window: side of the search window at the coarsest level, in its pixels.
        window: side of the search window at the other levels.
        patch: side of the compared patches, in pixels of a level.
        medians: medians of 3 x 3 queries after each step; 0 is no smoothing.
        subpixel: side of the square of queries whose paraboloids are added; 0: whole pixels of the finest level only.
        steadiness: error of grey values, in [0, 1], that the fit takes for noise: the larger, the less it corrects.
    """

    def __init__(
        self,
        *,
        coarsest: Literal[4, 8, 16, 32] = 16,
        finest: Literal[1, 2, 4] = 2,
        stride: Annotated[int, between(1, 65536)] = 2,
        coarsest_window: Annotated[int, ODD, between(1, 16383)] = 7,
        window: Annotated[int, ODD, between(1, 16383)] = 3,
        patch: Annotated[int, ODD, between(1, 255)] = 7,
        medians: Natural = 2,
        subpixel: Literal[0, 1, 3, 5, 7] = 5,
        steadiness: Annotated[float, above(0)] = 0.01,
    ) -> None:
        super().__init__(**named(locals()))
        self.coarsest, self.finest, self.stride = coarsest, finest, stride
        self.medians, self.subpixel, self.steadiness = medians, subpixel, steadiness
        self.wide, self.narrow = (
            _search(window=side, topk=1, patch=patch, stride=stride) for side in (coarsest_window, window)
        )
        # all nine scores
        self.scores = _search(window=3, topk=9, patch=patch, stride=stride * FINER, dilation=FINER)

    @torch.no_grad()
    def estimate(self, video: Tensor) -> FlowPair:
        """Match each frame with the one before, in the clip and in the clip reversed."""
        b, t, _, h, w = video.shape
        flow: Tensor | None = None
        with torch.autocast(video.device.type, enabled=False):
            for frames in self._levels(video):  # (2B, T, 1, h, w), coarse to fine
                size = [-(-side // self.stride) for side in frames.shape[3:]]
                if flow is None:
                    flow = self._matched(self.wide, frames, frames.new_zeros(2 * b, t, 2, *size))
                else:
                    first = -1 / (2 * LEVEL * self.stride)
                    flow = LEVEL * resampled(flow, *size, step=1 / LEVEL, first=first)
                    flow = self._matched(self.narrow, frames, flow)
            assert flow is not None
            if self.subpixel:
                flow = self._fitted(frames, flow)
            apart = self.finest * self.stride
            first = (0.5 / self.finest - 0.5) / self.stride
            flow = self.finest * resampled(flow, h, w, step=1 / apart, first=first)
        backward, forward = flow[:b], flow[b:].flip(1)
        backward[:, 0], forward[:, -1] = 0, 0
        return FlowPair(forward, backward)

    def _levels(self, video: Tensor) -> list[Tensor]:
        """The grey clips and the same reversed, `(2B, T, 1, h, w)`, from the coarsest level to the finest."""
        luma = grey(video).unsqueeze(2)  # (B, T, 1, H, W)
        # All levels are whole then, and the finest holds the 3 x 3 of a fit.
        frames = bordered(luma.flatten(0, 1), self.coarsest, 3 * self.finest)
        levels = [F.avg_pool2d(frames, self.finest)]
        for _ in range((self.coarsest // self.finest).bit_length() - 1):
            levels.append(F.avg_pool2d(levels[-1], LEVEL))
        clips = [level.unflatten(0, luma.shape[:2]) for level in levels[::-1]]
        return [torch.cat([clip, clip.flip(1)]) for clip in clips]

    def _matched(self, search: ops.ShiftedNLS, frames: Tensor, flow: Tensor) -> Tensor:
        """The best displacement to the frame before in the window around `flow`, `(2B, T, 2, hq, wq)`."""
        offsets = search(frames, frames, flow[:, :, None]).offsets  # (2B, 1, T, hq, wq, 2 slots, 2)
        return self._smooth(offsets[:, 0, ..., 1, :].movedim(-1, 2))

    def _smooth(self, flow: Tensor) -> Tensor:
        for _ in range(self.medians):
            flow = median(flow)
        return flow

    def _fitted(self, frames: Tensor, flow: Tensor) -> Tensor:
        """`flow` moved to the maximum of the paraboloids of each neighbourhood of queries."""
        h, w = frames.shape[3:]
        large = resampled(frames, FINER * h, FINER * w, step=1 / FINER, first=0.0)
        matches = self.scores(large, large, (FINER * flow)[:, :, None])
        scores = matches.scores[:, 0, ..., 9:]  # of slot 1
        offsets = matches.offsets[:, 0, ..., 9:, :]
        there = scores.isfinite()  # the first frame has none before it
        scores = torch.where(there, scores, 0.0) * FINER**2 / self.scores.spec.patch**2
        middle = offsets.mean(-2)  # a window at the border is not centred on `flow`
        x, y = (offsets - middle.unsqueeze(-2)).unbind(-1)  # -1, 0, 1 in some order
        # Least squares of a paraboloid on the 3 x 3 grid; minus its second derivatives, at least zero.
        xx, yy = ((-scores * (v.square() - 2 / 3)).sum(-1).clamp(min=0) for v in (x, y))
        xy = -(scores * x * y).sum(-1) / 4
        bound = MOST_SKEW * (xx * yy).sqrt()
        xy = torch.maximum(torch.minimum(xy, bound), -bound)
        right, down = ((scores * v).sum(-1) / (6 * FINER) for v in (x, y))
        along, across = (middle / FINER).unbind(-1)
        fit = torch.stack([xx, yy, xy, xx * along + xy * across + right, xy * along + yy * across + down], 2)
        near, clips = self.subpixel, fit.shape[:2]
        fit = F.avg_pool2d(fit.flatten(0, 1), near, 1, near // 2, count_include_pad=False)
        xx, yy, xy, right, down = fit.unflatten(0, clips).unbind(2)  # each (2B, T, hq, wq)
        hold = self.steadiness**2
        xx, yy = xx + hold, yy + hold
        right, down = right + hold * flow[:, :, 0], down + hold * flow[:, :, 1]
        best = torch.stack([yy * right - xy * down, xx * down - xy * right], 2)
        best = best / (xx * yy - xy * xy).unsqueeze(2)
        return self._smooth(flow + (best - flow).clamp(-MOST_CORRECTION, MOST_CORRECTION))


def resampled(x: Tensor, height: int, width: int, *, step: float, first: float) -> Tensor:
    """`x` `(..., h, w)` read bilinearly at first + step * n along both axes, (..., height, width); edges repeat."""
    lower, upper, share = _taps(width, step, first, x.shape[-1], x.device)
    x = torch.lerp(x.index_select(-1, lower), x.index_select(-1, upper), share)
    lower, upper, share = _taps(height, step, first, x.shape[-2], x.device)
    return torch.lerp(x.index_select(-2, lower), x.index_select(-2, upper), share[:, None])


def _taps(
    count: int, step: float, first: float, length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The two neighbours of each position, and the weight of the second."""
    places = (torch.arange(count, device=device) * step + first).clamp(0, length - 1)
    lower = places.floor().long()
    return lower, (lower + 1).clamp(max=length - 1), places - lower


# Exchanges that leave the median of nine in the middle (Smith, "Implementing median filters in XC4000E FPGAs", 1996).
_EXCHANGES = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def median(x: Tensor) -> Tensor:
    """`(N, T, C, h, w)`, each value replaced by the median of the 3 x 3 around it; edges repeat."""
    h, w = x.shape[-2:]
    padded = F.pad(x.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    nine = [padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)]
    for low, high in _EXCHANGES:
        nine[low], nine[high] = torch.minimum(nine[low], nine[high]), torch.maximum(nine[low], nine[high])
    return nine[4].unflatten(0, x.shape[:2])
