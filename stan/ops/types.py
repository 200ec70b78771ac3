"""What the operator returns, and the settings that `functional` hands to a backend.

Shape letters: B batch, T frames, HD heads, C channels per head, H x W pixels, Hq x Wq queries, K matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import checks

Metric = Literal["l2", "dot"]
Select = Literal["all", "each"]
SelfMatch = Literal["keep", "first", "exclude"]

METRICS = ("l2", "dot")
SELECTIONS = ("all", "each")
SELF_MATCHES = ("keep", "first", "exclude")


def score_dtype(tensor: Tensor) -> torch.dtype:
    """Type of scores, offsets and sums for features of this type: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class Matches(NamedTuple):
    """The K best matches of every query, best first.

    A place that no valid candidate could fill holds score -inf, offset (0, 0) and frame -1. Such an empty
    match gets weight 0 from `weights`, adds nothing in `gather`, stays empty in `refine` and has no
    gradient.
    """

    scores: Tensor  # (B, HD, T, Hq, Wq, K) float32, or float64 for float64 inputs; higher is better
    offsets: Tensor  # (B, HD, T, Hq, Wq, K, 2) same type; (dx, dy) = match position - query position, pixels
    frames: Tensor  # (B, HD, T, Hq, Wq, K) int32; frame index of the match, -1 if empty


@dataclass(frozen=True)
class SearchSpec:
    """Settings of `shifted_nls`, whose docstring tells their meaning. One that exists is valid.

    Raises:
        TypeError, ValueError: a setting has the wrong type or value, or `topk` is above the number of
            candidates.
    """

    window: int
    temporal_window: int
    topk: int
    heads: int
    patch: int
    dilation: int
    stride: int
    key_stride: float
    metric: Metric
    select: Select
    self_match: SelfMatch
    slide: bool
    causal: bool

    def __post_init__(self) -> None:
        checks.whole("window", self.window, 1)
        checks.whole("temporal_window", self.temporal_window, 0)
        checks.whole("topk", self.topk, 1)
        checks.whole("heads", self.heads, 1)
        checks.odd("patch", self.patch)
        checks.whole("dilation", self.dilation, 1)
        checks.whole("stride", self.stride, 1)
        checks.positive("key_stride", self.key_stride)
        checks.choice("metric", self.metric, METRICS)
        checks.choice("select", self.select, SELECTIONS)
        checks.choice("self_match", self.self_match, SELF_MATCHES)
        checks.flag("slide", self.slide)
        checks.flag("causal", self.causal)
        frames = self.slots if self.select == "all" else 1
        exclude = self.self_match == "exclude"
        origin = f"{frames} frame(s) of {self.window} x {self.window}" + " less the query itself" * exclude
        checks.at_most_candidates(self.topk, frames * self.window**2 - exclude, origin)

    @property
    def slots(self) -> int:
        """Searched frames W_t: 2*wt+1, or wt+1 when causal."""
        return self.temporal_window + 1 if self.causal else 2 * self.temporal_window + 1

    @property
    def matches(self) -> int:
        """Places K in the result: `topk`, or `topk` for each searched frame."""
        return self.topk * self.slots if self.select == "each" else self.topk


@dataclass(frozen=True)
class RefineSpec:
    """Settings of `refine` for `incoming` matches a query. One that exists is valid."""

    incoming: int

    window: int
    topk: int
    heads: int
    patch: int
    dilation: int
    stride: int
    key_stride: float
    metric: Metric
    slide: bool

    def __post_init__(self) -> None:
        checks.whole("window", self.window, 1)
        checks.whole("topk", self.topk, 1)
        checks.whole("heads", self.heads, 1)
        checks.odd("patch", self.patch)
        checks.whole("dilation", self.dilation, 1)
        checks.whole("stride", self.stride, 1)
        checks.positive("key_stride", self.key_stride)
        checks.choice("metric", self.metric, METRICS)
        checks.flag("slide", self.slide)
        origin = f"{self.incoming} match(es) of {self.window} x {self.window}"
        checks.at_most_candidates(self.topk, self.incoming * self.window**2, origin)


@dataclass(frozen=True)
class GatherSpec:
    """Settings of `gather`, `scatter` and (patch 1) `gather_stack`. One that exists is valid."""

    heads: int
    patch: int
    dilation: int
    stride: int

    def __post_init__(self) -> None:
        checks.whole("heads", self.heads, 1)
        checks.odd("patch", self.patch)
        checks.whole("dilation", self.dilation, 1)
        checks.whole("stride", self.stride, 1)
