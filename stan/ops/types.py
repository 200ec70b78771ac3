"""What the operator returns, and its settings: spelled here, and handed on as one frozen record.

Shape letters: B batch, T frames, HD heads, C channels per head, H x W pixels, Hq x Wq queries, K matches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import InitVar, dataclass, fields
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, get_args

import torch
from torch import Tensor

from . import checks

Metric = Literal["l2", "dot"]
Select = Literal["all", "each"]
SelfMatch = Literal["keep", "first", "exclude", "anchors"]

METRICS, SELECTIONS, SELF_MATCHES = get_args(Metric), get_args(Select), get_args(SelfMatch)

Function = TypeVar("Function", bound=Callable[..., Any])


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


class WindowSettings(TypedDict, total=False):
    """Names and types of the settings that every search shares, for type checkers; see `WindowSpec`."""

    window: int
    patch: int
    dilation: int
    stride: int
    key_stride: float
    metric: Metric
    slide: bool


class SearchSettings(WindowSettings, total=False):
    """Names and types of the settings of `shifted_nls`, for type checkers; see `SearchSpec`."""

    topk: int
    heads: int
    temporal_window: int
    select: Select
    self_match: SelfMatch
    causal: bool
    start: int


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Settings of a search in windows, around whatever anchors. One that exists is valid.

    A new setting is a field here or in `SearchSpec`; csrc/settings.h takes it over by its name.

    Args:
        window: side of the search window, in grid steps. An even window reaches one step further right and
            down.
        topk: matches kept.
        heads: number HD of heads.
        patch: side ps of the compared patches, odd. Pixels outside the image are reflected.
        dilation: distance between patch pixels.
        stride: distance between queries; they lie at pixels 0, stride, 2*stride, ...
        key_stride: distance s_k between candidates, in pixels; may be fractional.
        metric: "l2", minus the sum of squared differences, or "dot", the sum of products; over patch and
            channels.
        slide: move each window in whole grid steps so that it stays inside the image, as far as it fits.
            Candidates outside the image are invalid.

    Raises:
        TypeError, ValueError: a setting has the wrong type or value, or `topk` is above the number of
            candidates.
    """

    window: int
    topk: int
    heads: int = 1
    patch: int = 1
    dilation: int = 1
    stride: int = 1
    key_stride: float = 1.0
    metric: Metric = "l2"
    slide: bool = True

    def check(self) -> None:
        """Raise unless every setting is valid by itself."""
        checks.whole("window", self.window, 1, checks.LARGEST_WINDOW)
        for name in ("topk", "heads", "stride"):
            checks.whole(name, getattr(self, name), 1)
        checks.patch_of(self.patch, self.dilation)
        if checks.positive("key_stride", self.key_stride) > checks.LARGEST:
            raise ValueError(f"key_stride: expected at most {checks.LARGEST}, got {self.key_stride}")
        checks.choice("metric", self.metric, METRICS)
        checks.flag("slide", self.slide)

    def settings(self) -> dict[str, Any]:
        """The settings by name, as the native ops take them."""
        return {
            f.name: getattr(self, f.name) for f in fields(self)
        }  # torch.compile does not know __dict__ of these


@dataclass(frozen=True, kw_only=True)
class SearchSpec(WindowSpec):
    """Settings of `shifted_nls`: those of `WindowSpec` and, for a search in time,

    Args:
        temporal_window: frames wt searched on each side. W_t = 2*wt + 1 frames are searched: slot 0 is the
            query's own frame t, then t+1, t+2, ..., then t-1, t-2, ...; at the ends of the clip the range
            slides inwards.
        select: "all" keeps the best over all searched frames; "each" keeps `topk` for every slot, in slot
            order, so that K = topk * W_t.
        self_match: what becomes of the query's own position (the centre of slot 0): "keep" treats it as any
            other, "first" puts it in place 0 whatever its score, "exclude" leaves it out. "anchors" puts the
            candidate where flow points (the anchor) in place 0 of every slot, whatever its score; it needs
            select="each".
        causal: search frames t, t-1, ..., t-wt (W_t = wt + 1), for streaming. Frames before the clip hold no
            valid candidates.
        start: frame of the clip, which is the key's, that the query begins with: the query may be some frames of
            the clip only, and gets what it would get in the whole.
    """

    window: int = 9
    topk: int = 10
    temporal_window: int = 1
    select: Select = "all"
    self_match: SelfMatch = "keep"
    causal: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        self.check()
        checks.whole("temporal_window", self.temporal_window, 0)
        checks.choice("select", self.select, SELECTIONS)
        checks.choice("self_match", self.self_match, SELF_MATCHES)
        checks.flag("causal", self.causal)
        checks.whole("start", self.start, 0)
        if self.self_match == "anchors" and self.select != "each":
            raise ValueError(f"self_match: 'anchors' needs select='each', got select={self.select!r}")
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


@dataclass(frozen=True, kw_only=True)
class RefineSpec(WindowSpec):
    """Settings of `refine` for `incoming` matches a query: those of `WindowSpec`."""

    window: int = 1
    incoming: InitVar[int]

    def __post_init__(self, incoming: int) -> None:
        self.check()
        origin = f"{incoming} match(es) of {self.window} x {self.window}"
        checks.at_most_candidates(self.topk, incoming * self.window**2, origin)


@dataclass(frozen=True)
class GatherSpec:
    """Settings of `gather`, `scatter` (block 1) and `gather_stack` (patch 1). One that exists is valid."""

    heads: int
    patch: int = 1
    dilation: int = 1
    stride: int = 1
    block: int = 1

    def __post_init__(self) -> None:
        for name in ("heads", "stride", "block"):
            checks.whole(name, getattr(self, name), 1)
        checks.patch_of(self.patch, self.dilation)

    def blocks_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of blocks on the query grid of a video of `size` (H, W)."""
        height, width = (((side - 1) // self.stride) // self.block + 1 for side in size)
        return height, width


def takes_settings(spec: type[WindowSpec]) -> Callable[[Function], Function]:
    """Let `help()` and `inspect.signature()` show the settings of `spec`, with their defaults, as arguments."""

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        settings = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields(spec)
            if f.name not in signature.parameters
        ]
        first = next((n for n, p in enumerate(own) if p.kind is inspect.Parameter.KEYWORD_ONLY), len(own))
        shown = signature.replace(parameters=[*own[:first], *settings, *own[first:]])
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return show
