"""Looking in cleaned frames, merging noisy ones: where the time of a two-pass network pays."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan import ops
from stan.flow import FlowPair

GRID = 2
"""Side of the blocks of pixels that move as one and have one set of weights."""

SEARCH_GRID = 4
"""Pixels between the queries of the search; what it corrects holds for a block of this side."""

LEAST_VARIANCE = 1e-6
"""Added to the noise variance (values in [0, 1]), so that a level of zero divides nothing by zero."""

MOST_MISFIT = 10.0
"""Misfits are cut here before the network sees them: beyond, a match is simply wrong."""

SIGNIFICANT = 0.1
"""The search corrects the flow only where the mean squared difference of the patches falls by more than this part of
the noise variance: what is left of the noise in cleaned frames makes some candidate a little better by chance, and
without this test the search makes good flow worse (docs/results.md)."""

SUPPORT = 5
"""Side of the square, in blocks, over which misfits are averaged."""

FAR = 4
"""Blocks along each side of the cells, 3x3 of which the surplus of the noisy difference is averaged over as well: a
small square says where a match fails, a large one says it with more certainty."""


class Merged(NamedTuple):
    """What the aligned frames give, at full resolution and by block (h = H/2, w = W/2).

    Attributes:
        noisy: `(B, T, 3, H, W)`, the weighted mean of the aligned noisy frames.
        cleaned: `(B, T, 3, H, W)`, the same of the cleaned ones.
        features: `(B, T, F, h, w)`, the same of the features.
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
    features: Tensor
    remaining: Tensor
    evidence: Tensor
    weights: Tensor
    offsets: Tensor
    frames: Tensor


class Merge(nn.Module):
    """Average each frame with its matches in the frames around it, by how much each can be trusted.

    1. The Shifted Non-Local Search finds one match in each searched frame, in *cleaned* frames: matches chosen
       among noisy candidates are biased, the closest share the query's noise. It corrects the flow block by block,
       where the correction is significant.
    2. A match is worth what its error leaves of it. Noise of variance v keeps a share r of it under bilinear
       sampling, r = ((1-fx)^2 + fx^2) ((1-fy)^2 + fy^2) at fraction (fx, fy). A match that is not the same thing
       adds its misfit m, the mean squared difference of the cleaned frames over v, measured twice: over the
       patches of the search, and over a wider square at half resolution. An average is best with weights in
       proportion to 1 / variance: 1 / (r + a1 m1 + a2 m2), with a learned, and corrected by a small learned term,
       see `Correction`.
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
        hidden: int = 16,
    ) -> None:
        super().__init__()
        self.slots = temporal_window + 1 if causal else 2 * temporal_window + 1
        self.patch = patch
        self.search, self.stay = (
            ops.ShiftedNLS(
                window=side,
                temporal_window=temporal_window,
                topk=1,
                patch=patch,
                stride=SEARCH_GRID,
                key_stride=key_stride,
                select="each",
                causal=causal,
            )
            for side in (window, 1)
        )
        self.follow = ops.SearchFlow(temporal_window=temporal_window, causal=causal)
        self.trust = nn.Parameter(torch.zeros(2))
        self.correction = Correction(hidden) if hidden else None

    def forward(
        self, noisy: Tensor, cleaned: Tensor, features: Tensor, level: Tensor, flow: FlowPair
    ) -> Merged:
        """Merge a clip.

        Args:
            noisy: `(B, T, 3, H, W)`, H and W even.
            cleaned: the same, with most of the noise gone. It gets no gradient.
            features: `(B, T, F, h, w)`, what else is to be merged in the same way; F may be 0.
            level: `(B, T, 1, h, w)`, standard deviation of the noise in units of the video.
            flow: displacements between neighbouring frames, at full resolution.
        """
        kind = noisy.device.type
        cast = (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        )  # for the correction only
        with torch.autocast(kind, enabled=False):
            noisy, cleaned = noisy.float(), cleaned.detach().float()
            t = noisy.shape[1]
            if t == 1:
                return alone(noisy, cleaned, features, level)
            order = [*range(t), *[t - 1] * (self.slots - t)]  # a short clip is filled up; copies are not used
            if len(order) > t:
                noisy, cleaned, features, level = (x[:, order] for x in (noisy, cleaned, features, level))
                flow = FlowPair(*(f[:, order] for f in flow))
            merged = self._merge(noisy, cleaned, features.float(), level, flow, t, cast)
            return Merged(*(x[:, :t] for x in merged)) if len(order) > t else merged

    def _merge(
        self,
        noisy: Tensor,
        cleaned: Tensor,
        features: Tensor,
        level: Tensor,
        flow: FlowPair,
        real: int,
        cast: torch.dtype | None,
    ) -> Merged:
        """`forward` of a clip of at least `slots` frames, of which the first `real` may be matches; the learned
        correction runs under autocast to `cast`."""
        with torch.no_grad():
            variance = level.square() + LEAST_VARIANCE  # (B, T, 1, h, w)
            offsets, frames, found = self._matches(
                cleaned, flow, variance
            )  # of the other frames: K-1 of each
            missing = ((frames < 0) | (frames >= real)).movedim(-1, 2)  # (B, T, K-1, h, w)
            frames = torch.where(missing.movedim(2, -1), -1, frames)
            fraction = offsets - offsets.floor()
            kept = (
                ((1 - fraction).square() + fraction.square()).prod(-1).movedim(-1, 2)
            )  # r: (B, T, K-1, h, w)
            near = (found / variance).clamp(max=1e4)
            wide, strange, far = self._differences(noisy, cleaned, offsets, frames, variance)

        trust = 2 * F.softplus(self.trust)
        logits = -torch.log(kept + trust[0] * near + trust[1] * wide)  # (B, T, K-1, h, w)
        if self.correction is not None:
            this = torch.arange(noisy.shape[1], device=frames.device).view(1, -1, 1, 1, 1)
            seen = [
                (10 * near).log1p(),
                (10 * wide).log1p(),
                strange,
                far,
                kept,
                (10 * level).expand_as(kept),
                ((frames.movedim(-1, 2) - this).abs().float() - 1).clamp(0, 4),
                (torch.hypot(*offsets.unbind(-1)) / 8).log1p().movedim(-1, 2),
                detail(cleaned).expand_as(kept),
            ]
            with torch.autocast(noisy.device.type, dtype=cast, enabled=cast is not None):
                logits = logits + self.correction(torch.stack(seen, 3))
        logits = logits.masked_fill(missing, -torch.inf)
        weights = torch.cat([torch.zeros_like(level), logits], 2).softmax(2)  # (B, T, K, h, w)
        own, others = weights[:, :, :1], weights[:, :, 1:]

        both = torch.cat([noisy, cleaned], 2)  # (B, T, 6, H, W)
        this = torch.arange(noisy.shape[1], dtype=frames.dtype, device=frames.device)
        this = this.view(1, -1, 1, 1, 1).expand_as(frames[..., :1])
        all_frames = torch.cat([this, frames], -1)  # (B, T, h, w, K), the frame itself first
        all_offsets = torch.cat([torch.zeros_like(offsets[..., :1, :]), offsets], -2)
        by_block = weights.movedim(2, -1)[:, None], all_offsets[:, None], all_frames[:, None]
        mean = ops.gather(both, *by_block, block=GRID)
        if features.shape[2]:
            there = others.movedim(2, -1)[:, None], (offsets / GRID)[:, None], frames[:, None]
            features = own * features + ops.gather(features, *there)  # (B, T, F, h, w)
        known = (near + wide).clamp(max=MOST_MISFIT)
        best = known.masked_fill(missing, MOST_MISFIT).amin(2, keepdim=True)
        evidence = torch.cat([best.log1p(), (others * known).sum(2, keepdim=True).log1p(), own], 2)
        remaining = level * (own.square() + (others.square() * kept).sum(2, keepdim=True)).sqrt()
        mean_noisy, mean_cleaned = mean[:, :, :3], mean[:, :, 3:]
        return Merged(
            mean_noisy, mean_cleaned, features, remaining, evidence, weights, all_offsets, all_frames
        )

    def _matches(self, cleaned: Tensor, flow: FlowPair, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One match in each other searched frame: offsets `(B, T, h, w, K-1, 2)`, frames `(B, T, h, w, K-1)`, and
        the mean squared differences of the patches `(B, T, K-1, h, w)`."""
        h, w = cleaned.shape[3] // GRID, cleaned.shape[4] // GRID
        by_block = [f[..., ::GRID, ::GRID] / GRID for f in flow]  # followed block by block, in blocks
        displacement = self.follow(*by_block) * GRID  # (B, T, K-1, 2, h, w)
        every = SEARCH_GRID // GRID
        start = displacement[..., ::every, ::every]
        found, stayed = (search(cleaned, cleaned, start) for search in (self.search, self.stay))
        pixels = cleaned.shape[2] * self.patch**2
        near, here = (
            (-matches.scores[:, 0, ..., 1:].movedim(-1, 2) / pixels).clamp(0, 1e4)  # 1e4 where there is none
            for matches in (found, stayed)
        )  # each (B, T, K-1, h', w')
        moved = found.offsets[:, 0, ..., 1:, :].movedim((4, 5), (2, 3)) - start  # (B, T, K-1, 2, h', w')
        better = here - near > SIGNIFICANT * variance[..., ::every, ::every]
        correction = moved * better.unsqueeze(3)
        offsets = displacement + repeated(correction, every)[..., :h, :w]
        frames = repeated(found.frames[:, 0, ..., 1:].movedim(-1, 2), every)[..., :h, :w]
        distance = repeated(torch.where(better, near, here), every)[..., :h, :w]
        return offsets.movedim((2, 3), (4, 5)), frames.movedim(2, -1), distance

    @staticmethod
    def _differences(
        noisy: Tensor, cleaned: Tensor, offsets: Tensor, frames: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How far the aligned frames differ, at half resolution: the misfit of the cleaned ones, and by how much the
        noisy ones differ more than their noise explains, over a small square and over a large one, all in units of
        the noise variance, `(B, T, K-1, h, w)`."""
        small = F.avg_pool2d(torch.cat([noisy, cleaned], 2).flatten(0, 1), GRID)
        small = small.unflatten(0, noisy.shape[:2])  # (B, T, 6, h, w)
        ones = torch.ones_like(frames, dtype=torch.float32)
        moved = offsets / GRID
        there = ops.gather_stack(small, ones[:, None], moved[:, None], frames[:, None])[:, 0]
        squares = (there.transpose(1, 2) - small[:, :, None]).square()  # (B, T, K-1, 6, h, w)
        fraction = moved - moved.floor()
        kept = ((1 - fraction).square() + fraction.square()).prod(-1).movedim(-1, 2)
        pixels = GRID**2  # the noise of their mean has this part of the variance
        strange = squares[:, :, :, :3].mean(3) * pixels / variance - (1 + kept)
        wide = squares[:, :, :, 3:].mean(3) / variance
        wide, strange = (average(x, SUPPORT) for x in (wide.clamp(max=1e4), strange.clamp(max=10)))
        strange = strange.clamp(-1, 4)
        return wide, strange, coarse(strange)


class Correction(nn.Module):
    """Corrects the logarithms of the weights of matches by what else is known of them.

    Its inputs, by block and match: the misfit over the patches of the search and over a square; by how much the
    *noisy* frames differ more than their noise explains, over a small square and a large one (only that notices
    where cleaning has removed the texture that a wrong match would smear); the share of noise that sampling leaves;
    the noise level; the distance in time; the length of the motion; and how much detail the frame has there.

    Args:
        hidden: channels of its two hidden layers.
    """

    INPUTS = 9

    def __init__(self, hidden: int) -> None:
        super().__init__()
        last = nn.Conv2d(hidden, 1, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)  # it starts by correcting nothing
        self.layers = nn.Sequential(
            nn.Conv2d(self.INPUTS, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, seen: Tensor) -> Tensor:
        """`(B, T, K, 9, h, w)` to `(B, T, K, h, w)`."""
        x = seen.flatten(0, 2).contiguous(memory_format=torch.channels_last)  # (B*T*K, 9, h, w)
        return 3 * self.layers(x).float().reshape(*seen.shape[:3], *seen.shape[4:])


def alone(noisy: Tensor, cleaned: Tensor, features: Tensor, level: Tensor) -> Merged:
    """The `Merged` of single frames: themselves, with all of their noise."""
    b, t, _, h, w = level.shape
    nothing, one = torch.zeros_like(level), torch.ones_like(level)
    evidence = torch.cat([torch.full_like(level, MOST_MISFIT).log1p(), nothing, one], 2)
    offsets = level.new_zeros(b, t, h, w, 1, 2)
    frames = torch.arange(t, dtype=torch.int32, device=level.device).view(1, t, 1, 1, 1).expand(b, t, h, w, 1)
    return Merged(noisy, cleaned, features, level, evidence, one, offsets, frames)


def repeated(x: Tensor, times: int) -> Tensor:
    """`(..., h, w)` with each value `times` times along both axes."""
    return x.repeat_interleave(times, -1).repeat_interleave(times, -2)


def coarse(x: Tensor) -> Tensor:
    """`(B, T, K, h, w)`, each value replaced by the mean over the 3x3 cells of `FAR` x `FAR` blocks around it."""
    cells = F.avg_pool2d(x.flatten(0, 1), FAR, ceil_mode=True, count_include_pad=False)
    cells = F.avg_pool2d(cells, 3, 1, 1, count_include_pad=False)
    return repeated(cells, FAR)[..., : x.shape[3], : x.shape[4]].unflatten(0, x.shape[:2])


def detail(cleaned: Tensor) -> Tensor:
    """How much a frame `(B, T, 3, H, W)` departs from its mean over 5x5 pixels, by block: `(B, T, 1, h, w)`."""
    grey = cleaned.mean(2)
    departs = (grey - F.avg_pool2d(grey, 5, 1, 2, count_include_pad=False)).abs()
    return 20 * F.avg_pool2d(departs, GRID).unsqueeze(2)


def average(x: Tensor, side: int) -> Tensor:
    """`(B, T, K, h, w)`, each value replaced by the mean over the square of `side` around it, inside the frame."""
    return F.avg_pool2d(x.flatten(0, 1), side, 1, side // 2, count_include_pad=False).unflatten(
        0, x.shape[:2]
    )
