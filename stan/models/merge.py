"""Looking in cleaned frames, merging noisy ones: where the time of a two-pass network pays."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan import ops
from stan.flow import FlowPair
from stan.flow.base import smoothed
from stan.models.brightness import own_brightness
from stan.models.cells import BLOCK, CELL, CELL_BLOCKS, by_cell, coarse, detail, spread
from stan.models.convolutions import added, conv_relu

LEAST_VARIANCE = 1e-6
"""Added to the noise variance (values in [0, 1]), so that a level of zero divides nothing by zero."""

MOST_MISFIT = 10.0
"""Misfits are cut here before the network sees them: beyond, a match is simply wrong."""

SIGNIFICANT = 0.1
"""The search corrects the flow only where the mean squared difference of the patches falls by more than this part of
the noise variance: what is left of the noise in cleaned frames makes some candidate a little better by chance, and
without this test the search makes good flow worse (docs/results.md)."""

SUPPORT = 3
"""Side of the square, in cells, over which misfits are averaged."""


class Merged(NamedTuple):
    """What the aligned frames give, at full resolution, by block (h = H/2, w = W/2) and by cell (h', w').

    Attributes:
        noisy: `(B, T, 3, H, W)`, the weighted mean of the aligned noisy frames.
        cleaned: `(B, T, 3, H, W)`, the same of the cleaned ones.
        features: `(B, T, F, h, w)`, the same of the features.
        remaining: `(B, T, 1, h, w)`, standard deviation of the noise that `noisy` still has, known from the
            weights, in units of the video.
        evidence: `(B, T, 3, h, w)`: log(1 + misfit) of the best match in another frame, the same of the weighted
            mean, and the weight of the frame itself.
        weights: `(B, T, K, h', w')`, of the frame itself (first) and its matches; they sum to one.
        offsets: `(B, T, K-1, 2, h', w')` of the matches, (x, y) in pixels of the video.
        frames: `(B, T, K-1, h', w')` int32, those of the matches; -1 where there is no such frame.
    """

    noisy: Tensor
    cleaned: Tensor
    features: Tensor
    remaining: Tensor
    evidence: Tensor
    weights: Tensor
    offsets: Tensor
    frames: Tensor

    def places(self) -> tuple[Tensor, Tensor]:
        """Where `weights` apply, the frame itself included, if a whole clip was merged: offsets `(B, T, h', w', K, 2)`
        and frames `(B, T, h', w', K)`."""
        offsets, frames = self.offsets.movedim((2, 3), (4, 5)), self.frames.movedim(2, -1)
        this = torch.arange(frames.shape[1], dtype=frames.dtype, device=frames.device).view(1, -1, 1, 1, 1)
        this = this.expand(*frames.shape[:-1], 1)
        return F.pad(offsets, (0, 0, 1, 0)), torch.cat([this, frames], -1)


class Found(NamedTuple):
    """Where the matches of some frames of a clip are, `n` from number `begin` on, with one match in each other searched
    frame, and what they are taken from. At full resolution H x W, by block (h, w), and by cell (h', w').
    Only offsets may have a gradient."""

    begin: int
    offsets: Tensor  # (B, n, K-1, 2, h', w'), pixels of the video: where flow points, corrected by the search
    frames: Tensor  # (B, n, K-1, h', w') int32; -1 where there is no such frame
    misfit: Tensor  # (B, n, K-1, h', w'), mean squared difference of the patches over the noise variance
    both: Tensor  # (B, T, 6, H, W), noisy and cleaned frames
    small: Tensor  # (B, T, 6, h, w), the same by block


class Merge(nn.Module):
    """Average each frame with its matches in the frames around it, by how much each can be trusted.

    1. The Shifted Non-Local Search finds one match in each searched frame, in the brightness of *cleaned* frames:
       matches chosen among noisy candidates are biased, the closest share the query's noise. It corrects the flow
       square by square, where the correction is significant.
    2. A match is worth what its error leaves of it. Noise of variance v keeps a share r of it under bilinear
       sampling, r = ((1-fx)^2 + fx^2) ((1-fy)^2 + fy^2) at fraction (fx, fy). A match that is not the same thing
       adds its misfit m, the mean squared difference of the cleaned frames over v, measured twice: over the
       patches of the search, and over a wider square in colour, at half resolution. An average is best with weights in
       proportion to 1 / variance: 1 / (r + a1 m1 + a2 m2), with a learned, and corrected by a small learned term,
       see `Correction`.
    3. The noise of the weighted mean is then known: its variance is v * sum(w^2 r).

    What is merged passes its gradient on to where it is taken from, and so to a flow that learns. The search's
    correction, the misfits and the noise that remains are constants to it.

    A clip of fewer than W_t frames is merged with the frames it has; a single frame is returned as it is.

    Args:
        temporal_window: wt, frames each side (with `causal`, only before).
        window: ws, side of the search window, in steps of `key_stride` pixels around where the flow points.
        patch: ps, side of the compared patches.
        key_stride: distance of the candidates, in pixels.
        causal: no frame looks ahead.
        hidden: channels inside the learned correction of the weights; 0 is none.
        brightness: the mean keeps the brightness of the frame itself, see `own_brightness`.
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
        brightness: bool = True,
    ) -> None:
        super().__init__()
        self.temporal_window = temporal_window
        self.slots = temporal_window + 1 if causal else 2 * temporal_window + 1
        self.patch, self.brightness = patch, brightness
        self.search = ops.ShiftedNLS(  # of each slot: where flow points, and the best beside it
            window=window,
            temporal_window=temporal_window,
            topk=min(2, window**2),
            patch=patch,
            stride=CELL,
            key_stride=key_stride,
            select="each",
            self_match="anchors",
            causal=causal,
        )
        self.follow = ops.SearchFlow(temporal_window=temporal_window, stride=CELL, causal=causal)
        self.trust = nn.Parameter(torch.zeros(2))
        self.correction = Correction(hidden) if hidden else None

    def forward(
        self, noisy: Tensor, cleaned: Tensor, features: Tensor, level: Tensor, flow: FlowPair
    ) -> Merged:
        """Merge a clip: `average` what `look` finds, for all its frames.

        Args:
            noisy: `(B, T, 3, H, W)`, H and W even.
            cleaned: the same, with most of the noise gone. It gets no gradient.
            features: `(B, T, F, h, w)`, what else is to be merged in the same way; F may be 0.
            level: `(B, T, 1, h, w)`, standard deviation of the noise in units of the video.
            flow: displacements between neighbouring frames, at full resolution.
        """
        return self.average(self.look(noisy, cleaned, level, flow), features, level)

    def look(
        self,
        noisy: Tensor,
        cleaned: Tensor,
        level: Tensor,
        flow: FlowPair,
        part: slice = slice(None),
    ) -> Found:
        """Where the match of each frame of `part` is in each of the others. Arguments as of `forward`."""
        t = noisy.shape[1]
        order = [*range(t), *[t - 1] * (self.slots - t)]  # a short clip is filled up; copies are not used
        if len(order) > t:
            flow = FlowPair(*(f[:, order] for f in flow))
        part = slice(*part.indices(t)[:2])
        displacement = self.follow(*(f.float() for f in flow))[:, part]  # (B, n, K-1, 2, h', w')
        correction, frames, misfit = self._corrected(cleaned.float(), level, displacement, order, part)
        with torch.no_grad():
            both = torch.cat([noisy.float(), cleaned.float()], 2)  # (B, T, 6, H, W)
            means = F.interpolate(both.flatten(0, 1), scale_factor=1 / BLOCK, mode="bilinear")  # of 2x2, fast
            small = means.unflatten(0, both.shape[:2])  # (B, T, 6, h, w)
        return Found(part.start, displacement + correction, frames, misfit, both, small)

    @torch.no_grad()
    def _corrected(
        self, cleaned: Tensor, level: Tensor, displacement: Tensor, order: list[int], part: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search around `displacement`, of the frames `part`, in the frames `order` of a clip, those that fill it up
        behind its own: the correction of the displacement, and the frames and misfits of `Found`."""
        t = cleaned.shape[1]
        brightness = cleaned.mean(2, keepdim=True)  # three times as fast as in colour, and worth as much
        searched = brightness if len(order) == t else brightness[:, order]
        matches = self.search(searched[:, part], searched, displacement, start=part.start)
        each = (self.slots, matches.scores.shape[-1] // self.slots)  # places: (slot, best first)
        scores = matches.scores[:, 0].unflatten(-1, each)[..., 1:, :]  # (B, n, h', w', K-1, 1 or 2)
        misfits = (-scores / self.patch**2).clamp(0, 1e4)  # 1e4 where there is none
        here, near = (misfits[..., n].movedim(-1, 2) for n in (0, -1))  # each (B, n, K-1, h', w')
        best = matches.offsets[:, 0].unflatten(-2, each)[..., 1:, -1, :]  # (B, n, h', w', K-1, 2)
        moved = best.movedim((4, 5), (2, 3)) - displacement  # (B, n, K-1, 2, h', w')
        variance = by_cell(level[:, part]).square() + LEAST_VARIANCE
        better = here - near > SIGNIFICANT * variance
        frames = matches.frames[:, 0].unflatten(-1, each)[..., 1:, 0].movedim(-1, 2)
        misfit = (torch.where(better, near, here) / variance).clamp_(max=1e4)
        return moved * better.unsqueeze(3), torch.where(frames < t, frames, -1), misfit

    def average(self, found: Found, features: Tensor, level: Tensor, part: slice | None = None) -> Merged:
        """Average some frames of a clip with their matches.

        Args:
            found: what `look` gave for these frames, and maybe for others.
            features: as of `forward`, of the whole clip.
            level: the same.
            part: the frames of the clip for which the result is wanted, first and end; None: all of `found`.
        """
        if part is None:
            part = slice(found.begin, found.begin + found.frames.shape[1])
        these = slice(part.start - found.begin, part.stop - found.begin)
        offsets = found.offsets[:, these]  # (B, n, K-1, 2, h', w')
        features = features.float()
        with torch.no_grad():
            level, own_features = level[:, part], features[:, part]
            near, frames = found.misfit[:, these], found.frames[:, these]  # each (B, n, K-1, h', w')
            missing = frames < 0
            kept = share_kept(offsets)
            nearby = self._searched(part, found.both.shape[1])
        each = as_matches(offsets), as_matches(frames - nearby.start)
        with torch.no_grad():
            wide, strange = self._differences(found.small, level, offsets, part, nearby, each)

        trust = 2 * F.softplus(self.trust)
        logits = -torch.log(kept + trust[0] * near + trust[1] * wide)  # (B, n, K-1, h', w')
        if self.correction is not None:
            this = torch.arange(part.start, part.stop, device=frames.device).view(1, -1, 1, 1, 1)
            steps = offsets.detach() / 8
            seen = [
                (10 * near).log1p(),
                (10 * wide).log1p(),
                strange,
                coarse(strange),
                kept,
                (10 * by_cell(level)).expand_as(near),
                ((frames - this).abs().float() - 1).clamp(0, 4),
                torch.hypot(*steps.unbind(3)).log1p(),
                by_cell(detail(found.both[:, part, 3:])).expand_as(near),
            ]
            logits = logits + self.correction(torch.stack(seen, 3))
        logits = logits.masked_fill(missing, -torch.inf)
        weights = torch.cat([torch.zeros_like(logits[:, :, :1]), logits], 2).softmax(2)  # (B, n, K, h', w')
        own, others = weights[:, :, :1], weights[:, :, 1:]

        weigh = as_matches(others)
        mean = ops.gather(found.both[:, nearby], weigh, *each, block=CELL)
        mean = torch.addcmul(mean, spread(own, CELL, mean), found.both[:, part])  # (B, n, 6, H, W)
        if features.shape[2]:
            gathered = ops.gather(features[:, nearby], weigh, each[0] / BLOCK, each[1], block=CELL_BLOCKS)
            by_block = spread(own, CELL_BLOCKS, gathered)
            own_features = torch.addcmul(gathered, by_block, own_features)  # (B, n, F, h, w)
        known = (near + wide).clamp(max=MOST_MISFIT)
        best = known.masked_fill(missing, MOST_MISFIT).amin(2, keepdim=True)
        evidence = torch.cat([best.log1p(), (others * known).sum(2, keepdim=True).log1p(), own], 2)
        remaining = (own.square() + (others.square() * kept).sum(2, keepdim=True)).sqrt()
        means = list(mean.split(3, 2))
        if self.brightness:
            departs = found.both[:, part, :3] - means[0]
            variance = level.square() * spread(remaining.square() + 1 - 2 * own, CELL_BLOCKS, level)
            lacks = own_brightness(departs, variance)
            means = [added(m, lacks) for m in means]
        return Merged(
            means[0],
            means[1],
            own_features,
            level * spread(remaining, CELL_BLOCKS, level),
            spread(evidence, CELL_BLOCKS, level),
            weights,
            offsets,
            frames,
        )

    def _searched(self, part: slice, length: int) -> slice:
        """The frames of a clip that those of `part` have matches in: the temporal windows of its first and last."""
        before = self.temporal_window
        begin, end = (
            max(0, min(t - before, length - self.slots)) for t in (part.start, max(part.start, part.stop - 1))
        )
        return slice(begin, min(length, end + self.slots))

    @staticmethod
    def _differences(
        small: Tensor,
        level: Tensor,
        offsets: Tensor,
        part: slice,
        nearby: slice,
        each: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """How far the aligned frames differ, at half resolution: the misfit of the cleaned ones, and by how much the
        noisy ones differ more than their noise explains, both averaged over a small square, in units of the noise
        variance, `(B, n, K-1, h', w')`."""
        ones = torch.ones_like(each[1], dtype=torch.float32)
        aligned = ops.gather_stack(small[:, nearby], ones, each[0] / BLOCK, each[1], block=CELL_BLOCKS)
        squares = aligned[:, 0].sub_(small[:, None, part]).square_()  # (B, K-1, n, 6, h, w)
        squares = squares.transpose(1, 2)
        variance = level.square() + LEAST_VARIANCE  # (B, n, 1, h, w)
        strange, wide = squares[:, :, :, :3].mean(3), squares[:, :, :, 3:].mean(3)  # each (B, n, K-1, h, w)
        strange = by_cell(strange.mul_(BLOCK**2).div_(variance).clamp_(max=10))
        wide = by_cell(wide.div_(variance).clamp_(max=1e4))
        strange = strange.sub_(1 + share_kept(offsets / BLOCK))
        return smoothed(wide, SUPPORT), smoothed(strange, SUPPORT).clamp_(-1, 4)


class Correction(nn.Module):
    """Corrects the logarithms of the weights of matches by what else is known of them.

    Its inputs, by cell and match: the misfit over the patches of the search and over a square; by how much the
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
        first, second, last = (layer for layer in self.layers if isinstance(layer, nn.Conv2d))  # ReLU: fused
        x = last(conv_relu(second, conv_relu(first, x)))  # (B*T*K, 1, h, w)
        return 3 * x.float().reshape(*seen.shape[:3], *seen.shape[4:])


def alone(noisy: Tensor, cleaned: Tensor, features: Tensor, level: Tensor) -> Merged:
    """The `Merged` of single frames: themselves, with all of their noise."""
    nothing, one = torch.zeros_like(level), torch.ones_like(level)
    evidence = torch.cat([torch.full_like(level, MOST_MISFIT).log1p(), nothing, one], 2)
    weights = one[..., ::CELL_BLOCKS, ::CELL_BLOCKS]  # (B, T, 1, h', w')
    frames = weights[:, :, :0].int()
    offsets = weights.new_empty(*weights.shape[:2], 0, 2, *weights.shape[3:])
    return Merged(noisy, cleaned, features, level, evidence, weights, offsets, frames)


def as_matches(x: Tensor) -> Tensor:
    """Values of matches `(B, T, K, [2,] h, w)` in the order that `ops.gather` takes, `(B, 1, T, h, w, K[, 2])`."""
    x = x.movedim(2, -1) if x.ndim == 5 else x.movedim((2, 3), (4, 5))
    return x[:, None].contiguous()


def share_kept(offsets: Tensor) -> Tensor:
    """The share r of independent noise that bilinear sampling at `offsets` (B, T, K, 2, h, w) leaves."""
    fraction = offsets.frac().abs_()  # or one minus that, which is the same below
    each = torch.addcmul(fraction.new_ones(()), fraction, fraction - 1, value=2)  # (1 - f)^2 + f^2
    return each[:, :, :, 0] * each[:, :, :, 1]
