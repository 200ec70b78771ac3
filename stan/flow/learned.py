"""Offsets that are learned: a small network that matches features from coarse to fine, trained with the denoiser."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan import ops
from stan.flow.base import FlowPair, OffsetSource, bordered, enlarged, smoothed
from stan.registry import sources
from stan.settings import ODD, Count, between, named

LOCAL = 5
"""Side of the square over which features are standardised, and neighbouring matchings averaged."""

SHARPNESS = 10.0
"""Factor on the mean squared difference of standardised patches in the softmax, where learning starts. Patches that
have nothing in common differ by about 2."""

LEAST_SPREAD = 0.1
"""Added to the variance of a matching, in squared pixels of its level, before its weight is taken from it."""

SPEED = 10.0
"""Factor on the trust in a matching: from nothing to all takes so many times fewer steps than other weights would."""

LEAST_POWER = 1e-6
"""Added to the local variance of features: even places stay even."""


@sources.register("learned")
class LearnedFlow(OffsetSource):
    """A small network that matches features from coarse to fine and learns with the denoiser it serves.

    The gradient is that of the search with respect to its flow. Frames become features of a few sizes. At each
    level, from the coarsest on, the search scores all places of a small window in the other frame around the flow so
    far; a softmax of the scores makes them a mean displacement. The flow follows it as far as the level trusts its
    matching, and convolutions add a correction. Trust and correction start at zero, so a fresh source says zero.

    Args:
        channels: features of each level.
        levels: sizes at which it matches, each half the one before.
        finest: reduction of the finest level; the flow is enlarged bilinearly from there.
        window: side of the search window at each level; motion of up to about (window - 1) / 2 * finest *
            (2^levels - 1) pixels can be followed.
        patch: side of the compared patches, in pixels of a level.
    """

    trainable = True
    needs_training = True
    pairwise = True

    def __init__(
        self,
        *,
        channels: Count = 24,
        levels: Annotated[int, between(1, 6)] = 3,
        finest: Literal[1, 2, 4, 8] = 4,
        window: Annotated[int, ODD, between(1, 15)] = 5,
        patch: Annotated[int, ODD, between(1, 255)] = 3,
    ) -> None:
        super().__init__(**named(locals()))
        self.finest = finest
        self.multiple = finest * 2 ** (levels - 1)
        # The other weights of a network are drawn as they would be beside a source without weights.
        with torch.random.fork_rng(devices=[]):
            self.enter = nn.Sequential(
                nn.Conv2d(3 * finest**2, channels, 3, padding=1),
                nn.LeakyReLU(0.1),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            self.downs = nn.ModuleList(
                nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(channels, channels, 4, stride=2, padding=1))
                for _ in range(levels - 1)
            )
            self.steps = nn.ModuleList(Step(channels, window, patch) for _ in range(levels))

    def estimate(self, video: Tensor) -> FlowPair:
        """Match each frame with the one before, in the clip and in the clip reversed."""
        b, t, _, h, w = video.shape
        with torch.autocast(video.device.type, enabled=False):
            frames = video.to(next(self.parameters()).dtype).nan_to_num(0.0, 1.0, 0.0).clamp(-1, 2)
            frames = bordered(frames.flatten(0, 1), self.multiple)
            levels = [self.enter(F.pixel_unshuffle(frames, self.finest))]
            for down in self.downs:
                levels.append(down(levels[-1]))
            flow: Tensor | None = None
            for step, x in zip(self.steps, reversed(levels)):
                clip = x.unflatten(0, (b, t))
                both = torch.cat([clip, clip.flip(1)])  # (2B, T, C, h, w)
                flow = step(both, None if flow is None else enlarged(flow, 2))
            assert flow is not None
            moved = enlarged(flow, self.finest)[:, 1:, :, :h, :w]  # the first frame has none before it
        still = moved.new_zeros(b, 1, 2, h, w)
        return FlowPair(torch.cat([moved[b:].flip(1), still], 1), torch.cat([still, moved[:b]], 1))


class Step(nn.Module):
    """One level: match each frame of a clip with the one before it, around the flow so far."""

    SEEN = 6
    """What the correction sees beside the features: both means of the displacement, its variance, the best score."""

    def __init__(self, channels: int, window: int, patch: int) -> None:
        super().__init__()
        self.places = window**2
        self.search = ops.ShiftedNLS(
            window=window, topk=window**2, patch=patch, temporal_window=1, causal=True, select="each"
        )
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        self.trust = nn.Parameter(torch.zeros(()))
        last = nn.Conv2d(channels, 2, 1)
        for weight in last.parameters():
            nn.init.zeros_(weight)
        self.correct = nn.Sequential(
            nn.Conv2d(channels + self.SEEN, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            last,
        )

    def forward(self, clip: Tensor, flow: Tensor | None) -> Tensor:
        """Features `(N, T, C, h, w)` and the flow so far, or None, to the flow `(N, T, 2, h, w)`."""
        n, t, _, h, w = clip.shape
        start = clip.new_zeros(n, t, 2, h, w) if flow is None else flow
        alike = standardised(clip.flatten(0, 1)).unflatten(0, (n, t))
        found = self.search(alike, alike, start.unsqueeze(2))
        scores = found.scores[:, 0, ..., self.places :]  # of slot 1, (N, T, h, w, places)
        moved = found.offsets[:, 0, ..., self.places :, :] - start.movedim(2, -1).unsqueeze(-2)
        there = scores.isfinite()
        scores = torch.where(there, scores, 0.0) / self.search.spec.patch**2
        logits = self.sharpness.exp() * scores
        logits = logits.masked_fill(~there, -1e4)  # all alike where there is no frame
        share = logits.softmax(-1).unsqueeze(-1)
        moved = torch.where(there.unsqueeze(-1), moved, 0.0)
        mean = (share * moved).sum(-2)  # (N, T, h, w, 2)
        spread = (share * (moved - mean.unsqueeze(-2)).square()).sum((-2, -1))  # (N, T, h, w)
        best = (share[..., 0] * scores).sum(-1)
        weight = 1 / (spread + LEAST_SPREAD)
        mean, spread, best, weight = (
            x.flatten(0, 1)
            for x in (mean.movedim(-1, 2), spread[:, :, None], best[:, :, None], weight[:, :, None])
        )
        agreed = smoothed(weight * mean, LOCAL) / smoothed(weight, LOCAL)
        seen = torch.cat([clip.flatten(0, 1), mean, agreed, spread, best], 1)
        change = SPEED * self.trust * agreed + self.correct(seen)
        return start + change.unflatten(0, (n, t))


def standardised(x: Tensor) -> Tensor:
    """Features `(N, C, h, w)` without their local mean, divided so that their squares add up to about one."""
    x = x - smoothed(x, LOCAL)
    power = smoothed(x.square().sum(1, keepdim=True), LOCAL)
    return x / (power + LEAST_POWER).sqrt()
