"""Looking in cleaned frames, merging noisy ones: where the time of a two-pass network pays."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan import ops
from stan.flow import FlowPair

GRID = 2
"""Pixels between queries: each 2x2 block moves as one and has one set of weights."""

LEAST_VARIANCE = 1e-6
"""Added to the noise variance (values in [0, 1]), so that a level of zero divides nothing by zero."""

MOST_MISFIT = 10.0
"""Misfits are cut here before the network sees them: beyond, a match is simply wrong."""


class Merged(NamedTuple):
    """What the aligned frames give, at full resolution and on the grid of queries (h = H/2, w = W/2).

    Attributes:
        noisy: `(B, T, 3, H, W)`, the weighted mean of the aligned noisy frames.
        cleaned: `(B, T, 3, H, W)`, the same of the cleaned ones.
        remaining: `(B, T, 1, h, w)`, standard deviation of the noise that `noisy` still has, known from the
            weights, in units of the video.
        evidence: `(B, T, 3, h, w)`: log(1 + misfit) of the best match in another frame, the same of the weighted
            mean, and the weight of the frame itself.
        weights: `(B, T, K, h, w)`, of the frame itself (first) and its matches; they sum to one.
        offsets: `(B, T, h, w, K, 2)`, (x, y) in pixels of the video.
        frames: `(B, T, h, w, K)` int32; -1 where there is no such frame.
    """

    noisy: Tensor
    cleaned: Tensor
    remaining: Tensor
    evidence: Tensor
    weights: Tensor
    offsets: Tensor
    frames: Tensor


class Merge(nn.Module):
    """Average each frame with its matches in the frames around it, by how much each can be trusted.

    1. The Shifted Non-Local Search finds one match in each searched frame, in *cleaned* frames: matches chosen
       among noisy candidates are biased, the closest share the query's noise.
    2. A match is worth what its error leaves of it. Noise of variance v keeps a share r of it under bilinear
       sampling, r = ((1-fx)^2 + fx^2) ((1-fy)^2 + fy^2) at fraction (fx, fy); a match that is not the same thing
       adds its misfit m, the mean squared difference of the cleaned patches over v. An average is best with
       weights in proportion to 1 / variance: 1 / (r + a m), with a learned, and corrected by a small learned
       term.
    3. The noise of the weighted mean is then known: its variance is v * sum(w^2 r).

    A clip of fewer than W_t frames is merged with the frames it has; a single frame is returned as it is.

    Args:
        temporal_window: wt, frames each side (with `causal`, only before).
        window: ws, side of the search window, in steps of `key_stride` pixels around where the flow points.
        patch: ps, side of the compared patches.
        key_stride: distance of the candidates, in pixels.
        causal: no frame looks ahead.
        hidden: channels inside the learned correction of the weights; 0 is none.
    """

    EVIDENCE = 3

    def __init__(
        self,
        *,
        temporal_window: int,
        window: int,
        patch: int,
        key_stride: float = 1.0,
        causal: bool = False,
        hidden: int = 8,
    ) -> None:
        super().__init__()
        self.slots = temporal_window + 1 if causal else 2 * temporal_window + 1
        self.patch = patch
        self.search = ops.ShiftedNLS(
            window=window,
            temporal_window=temporal_window,
            topk=1,
            patch=patch,
            stride=GRID,
            key_stride=key_stride,
            select="each",
            causal=causal,
        )
        self.follow = ops.SearchFlow(temporal_window=temporal_window, causal=causal)
        self.trust = nn.Parameter(torch.tensor(1.0))
        self.correction: nn.Sequential | None = None
        if hidden:
            last = nn.Conv2d(hidden, 1, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.correction = nn.Sequential(nn.Conv2d(3, hidden, 3, padding=1), nn.ReLU(inplace=True), last)

    def forward(self, noisy: Tensor, cleaned: Tensor, level: Tensor, flow: FlowPair) -> Merged:
        """Merge a clip.

        Args:
            noisy: `(B, T, 3, H, W)`, H and W even.
            cleaned: the same, with most of the noise gone. It gets no gradient.
            level: `(B, T, 1, h, w)`, standard deviation of the noise in units of the video.
            flow: displacements between neighbouring frames, at full resolution.
        """
        with torch.autocast(noisy.device.type, enabled=False):
            cleaned = cleaned.detach().float()
            t = noisy.shape[1]
            if t == 1:
                return alone(noisy, cleaned, level)
            order = [*range(t), *[t - 1] * (self.slots - t)]  # a short clip is filled up; copies are not used
            if len(order) > t:
                noisy, cleaned, level = (x[:, order] for x in (noisy, cleaned, level))
                flow = FlowPair(*(f[:, order] for f in flow))
            merged = self._merge(noisy, cleaned, level, flow, t)
            return Merged(*(x[:, :t] for x in merged)) if len(order) > t else merged

    def _merge(self, noisy: Tensor, cleaned: Tensor, level: Tensor, flow: FlowPair, real: int) -> Merged:
        """`forward` of a clip of at least `slots` frames, of which the first `real` may be matches."""
        with torch.no_grad():
            half = [f[..., ::GRID, ::GRID] / GRID for f in flow]  # followed on the grid, in its own pixels
            displacement = self.follow(*half) * GRID  # (B, T, W_t-1, 2, h, w)
            matches = self.search(cleaned, cleaned, displacement)
            offsets, frames = (
                matches.offsets[:, 0],
                matches.frames[:, 0],
            )  # (B, T, h, w, K, 2), (B, T, h, w, K)
            frames = torch.where(frames < real, frames, -1)
            frames[..., 0] = frames[..., 0].clamp_min(0)  # the frame itself is always there
            missing = (frames < 0).movedim(-1, 2)  # (B, T, K, h, w)
            variance = level.square() + LEAST_VARIANCE  # (B, T, 1, h, w)
            distance = -matches.scores[:, 0].movedim(-1, 2) / (noisy.shape[2] * self.patch**2)
            misfit = (distance / variance).clamp(0, 1e4)  # (B, T, K, h, w)
            fraction = offsets - offsets.floor()
            kept = ((1 - fraction).square() + fraction.square()).prod(-1).movedim(-1, 2)  # r: (B, T, K, h, w)

        weights = self._weights(misfit, kept, level, missing)  # (B, T, K, h, w)
        both = torch.cat([noisy.float(), cleaned], 2)  # (B, T, 6, H, W)
        mean = ops.gather(
            both,
            full(weights).movedim(2, -1)[:, None],  # (B, 1, T, H, W, K)
            full(offsets.movedim((4, 5), (2, 3)).flatten(2, 3))
            .unflatten(2, (-1, 2))
            .movedim((2, 3), (4, 5))[:, None],
            full(frames.movedim(-1, 2)).movedim(2, -1)[:, None],
        )
        known = misfit.clamp(max=MOST_MISFIT)
        evidence = torch.cat(
            [
                known[:, :, 1:].masked_fill(missing[:, :, 1:], MOST_MISFIT).amin(2, keepdim=True).log1p(),
                (weights * known).sum(2, keepdim=True).log1p(),
                weights[:, :, :1],
            ],
            2,
        )  # (B, T, 3, h, w)
        remaining = level * (weights.square() * kept).sum(2, keepdim=True).sqrt()
        return Merged(mean[:, :, :3], mean[:, :, 3:], remaining, evidence, weights, offsets, frames)

    def _weights(self, misfit: Tensor, kept: Tensor, level: Tensor, missing: Tensor) -> Tensor:
        """One weight for the frame itself and each match, `(B, T, K, h, w)`."""
        logits = -torch.log(kept + 2 * F.softplus(self.trust) * misfit)
        if self.correction is not None:
            seen = torch.stack([(10 * misfit).log1p(), kept, (10 * level).expand_as(kept)], 3)
            logits = logits + 3 * self.correction(seen.flatten(0, 2)).reshape(logits.shape)
        logits = torch.cat([torch.zeros_like(logits[:, :, :1]), logits[:, :, 1:]], 2)
        return logits.masked_fill(missing, -torch.inf).softmax(2)


def alone(noisy: Tensor, cleaned: Tensor, level: Tensor) -> Merged:
    """The `Merged` of single frames: themselves, with all of their noise."""
    b, t, _, h, w = level.shape
    nothing, one = torch.zeros_like(level), torch.ones_like(level)
    evidence = torch.cat([torch.full_like(level, MOST_MISFIT).log1p(), nothing, one], 2)
    offsets = level.new_zeros(b, t, h, w, 1, 2)
    frames = torch.arange(t, dtype=torch.int32, device=level.device).view(1, t, 1, 1, 1).expand(b, t, h, w, 1)
    return Merged(noisy, cleaned, level, evidence, one, offsets, frames)


def full(x: Tensor) -> Tensor:
    """`(B, T, C, h, w)` on the grid to full resolution, each value for its 2x2 block."""
    return x.repeat_interleave(GRID, -1).repeat_interleave(GRID, -2)
