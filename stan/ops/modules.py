"""The functions of `stan.ops` as `nn.Module`s: settings are given once and checked at once.

Each module documents only what differs from its function; arguments mean the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, functional, inputs
from .types import GatherSpec, Matches, Metric, RefineSpec, SearchSpec, Select, SelfMatch


class ShiftedNLS(nn.Module):
    """`shifted_nls` as a module."""

    def __init__(
        self,
        *,
        window: int = 9,
        temporal_window: int = 1,
        topk: int = 10,
        heads: int = 1,
        patch: int = 1,
        dilation: int = 1,
        stride: int = 1,
        key_stride: float = 1.0,
        metric: Metric = "l2",
        select: Select = "all",
        self_match: SelfMatch = "keep",
        slide: bool = True,
        causal: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.spec = SearchSpec(
            window=window,
            temporal_window=temporal_window,
            topk=topk,
            heads=heads,
            patch=patch,
            dilation=dilation,
            stride=stride,
            key_stride=key_stride,
            metric=metric,
            select=select,
            self_match=self_match,
            slide=slide,
            causal=causal,
        )

    def forward(self, query: Tensor, key: Tensor, flow: Tensor | None = None) -> Matches:
        """(B, T, HD*C, H, W) features and (B, T, W_t-1, 2, Hq, Wq) flow to `Matches`."""
        return functional.search(query, key, flow, self.spec, self.backend)

    def extra_repr(self) -> str:
        """Settings that are not the default."""
        return _changed(self.spec, SearchSpec(9, 1, 10, 1, 1, 1, 1, 1.0, "l2", "all", "keep", True, False))


class Refine(nn.Module):
    """`refine` as a module."""

    def __init__(
        self,
        *,
        window: int = 1,
        topk: int | None = None,
        heads: int | None = None,
        patch: int = 1,
        dilation: int = 1,
        stride: int = 1,
        key_stride: float = 1.0,
        metric: Metric = "l2",
        slide: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        kept = 1 if topk is None else topk
        RefineSpec(kept, window, kept, 1, patch, dilation, stride, key_stride, metric, slide)  # only to check
        self.heads = None if heads is None else checks.whole("heads", heads, 1)
        self.window, self.topk, self.patch, self.dilation, self.stride = window, topk, patch, dilation, stride
        self.key_stride, self.metric, self.slide, self.backend = key_stride, metric, slide, backend

    def forward(self, query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor) -> Matches:
        """(B, T, HD*C, H, W) features and earlier matches to `Matches`."""
        return functional.refine(
            query,
            key,
            offsets,
            frames,
            window=self.window,
            topk=self.topk,
            heads=self.heads,
            patch=self.patch,
            dilation=self.dilation,
            stride=self.stride,
            key_stride=self.key_stride,
            metric=self.metric,
            slide=self.slide,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The main settings."""
        return f"window={self.window}, topk={self.topk}, metric={self.metric!r}"


class SearchFlow(nn.Module):
    """`search_flow` as a module."""

    def __init__(
        self, *, temporal_window: int = 1, stride: int = 1, causal: bool = False, backend: str | None = None
    ) -> None:
        super().__init__()
        self.temporal_window = checks.whole("temporal_window", temporal_window, 0)
        self.stride = checks.whole("stride", stride, 1)
        self.causal = checks.flag("causal", causal)
        self.backend = backend

    # `forward` is the name that nn.Module wants; its arguments are the flows forward and backward in time
    def forward(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Two (B, T, 2, H, W) one-step flows to (B, T, W_t-1, 2, Hq, Wq)."""
        return functional.search_flow(
            forward,
            backward,
            temporal_window=self.temporal_window,
            stride=self.stride,
            causal=self.causal,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The settings."""
        return f"temporal_window={self.temporal_window}, stride={self.stride}, causal={self.causal}"


class RescaleFlow(nn.Module):
    """`rescale_flow` as a module."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = inputs.size_of(size)

    def forward(self, flow: Tensor) -> Tensor:
        """(..., 2, H, W) to (..., 2, *size)."""
        return functional.rescale_flow(flow, self.size)

    def extra_repr(self) -> str:
        """The settings."""
        return f"size={self.size}"


class Weights(nn.Module):
    """`weights` as a module, whose scale may be learned.

    Args:
        scale: inverse temperature at the start, above 0.
        heads: with `learned`, one scale for each of so many heads.
        learned: train the scale. Its logarithm is the parameter, so that it stays above 0 and a step of the
            optimiser changes it by a proportion.
    """

    def __init__(self, scale: float = 10.0, *, heads: int = 1, learned: bool = False) -> None:
        super().__init__()
        start = math.log(checks.positive("scale", scale))
        checks.whole("heads", heads, 1)
        self.start = float(scale)
        self.log_scale = (
            nn.Parameter(torch.full((heads,), start)) if checks.flag("learned", learned) else None
        )

    @property
    def scale(self) -> float | Tensor:
        """The present scale: a number, or (HD,) if learned."""
        return self.start if self.log_scale is None else self.log_scale.exp()

    def forward(self, scores: Tensor) -> Tensor:
        """(B, HD, T, Hq, Wq, K) scores to weights."""
        return functional.weights(scores, self.scale)

    def extra_repr(self) -> str:
        """The settings."""
        return f"scale={self.start}, learned={self.log_scale is not None}"


class _OverMatches(nn.Module):
    """Settings that `Gather`, `GatherStack` and `Scatter` share."""

    def __init__(
        self, heads: int | None, patch: int, dilation: int, stride: int, backend: str | None
    ) -> None:
        super().__init__()
        GatherSpec(heads=1 if heads is None else heads, patch=patch, dilation=dilation, stride=stride)
        self.heads, self.patch, self.dilation, self.stride = heads, patch, dilation, stride
        self.backend = backend

    def extra_repr(self) -> str:
        """The settings."""
        return f"patch={self.patch}, dilation={self.dilation}, stride={self.stride}"


class Gather(_OverMatches):
    """`gather` as a module."""

    def __init__(
        self,
        *,
        heads: int | None = None,
        patch: int = 1,
        dilation: int = 1,
        stride: int = 1,
        backend: str | None = None,
    ) -> None:
        super().__init__(heads, patch, dilation, stride, backend)

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """(B, T, HD*C, H, W) values and weighted matches to (B, T, HD*C, Hq, Wq)."""
        return functional.gather(
            value,
            weights,
            offsets,
            frames,
            heads=self.heads,
            patch=self.patch,
            dilation=self.dilation,
            stride=self.stride,
            backend=self.backend,
        )


class GatherStack(_OverMatches):
    """`gather_stack` as a module."""

    def __init__(self, *, heads: int | None = None, stride: int = 1, backend: str | None = None) -> None:
        super().__init__(heads, 1, 1, stride, backend)

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """(B, T, HD*C, H, W) values and weighted matches to (B, HD, K, T, C, Hq, Wq)."""
        return functional.gather_stack(
            value, weights, offsets, frames, heads=self.heads, stride=self.stride, backend=self.backend
        )


class Scatter(_OverMatches):
    """`scatter` as a module."""

    def __init__(
        self,
        *,
        heads: int | None = None,
        patch: int = 1,
        dilation: int = 1,
        stride: int = 1,
        backend: str | None = None,
    ) -> None:
        super().__init__(heads, patch, dilation, stride, backend)

    def forward(
        self, source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(B, T, HD*C, Hq, Wq) and weighted matches to (B, T, HD*C, *size)."""
        return functional.scatter(
            source,
            weights,
            offsets,
            frames,
            size=size,
            heads=self.heads,
            patch=self.patch,
            dilation=self.dilation,
            stride=self.stride,
            backend=self.backend,
        )


class ShiftedAttention(nn.Module):
    """`shifted_attention` as a module.

    Args:
        scale, learned: as in `Weights`; a learned scale is one for each head.
        settings: those of `ShiftedNLS`.
    """

    def __init__(self, *, scale: float = 10.0, learned: bool = False, **settings: Any) -> None:
        super().__init__()
        self.search = ShiftedNLS(**settings)
        self.weights = Weights(scale, heads=self.search.spec.heads, learned=learned)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, flow: Tensor | None = None) -> Tensor:
        """(B, T, HD*C, H, W) query, key and value to (B, T, HD*Cv, Hq, Wq)."""
        search = self.search
        return functional.attend(query, key, value, flow, self.weights.scale, search.spec, search.backend)


def _changed(spec: SearchSpec, default: SearchSpec) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in vars(spec).items() if v != getattr(default, k))
