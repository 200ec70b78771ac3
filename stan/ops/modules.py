"""The functions of `stan.ops` as `nn.Module`s: settings are given once and checked at once.

Each module documents only what differs from its function; arguments mean the same.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import checks, functional, inputs
from .types import GatherSpec, Matches, RefineSpec, SearchSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .types import SearchSettings, WindowSettings


class _Function(nn.Module):
    """A function of `stan.ops` whose settings were given before; its subclasses call it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def extra_repr(self) -> str:
        """The settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items() if name != "backend")


class ShiftedNLS(_Function):
    """`shifted_nls` as a module."""

    def __init__(self, *, backend: str | None = None, **settings: Unpack[SearchSettings]) -> None:
        self.spec = SearchSpec(**settings)
        super().__init__(backend=backend, **self.spec.settings())

    def forward(
        self, query: Tensor, key: Tensor, flow: Tensor | None = None, start: int | None = None
    ) -> Matches:
        """(B, T, HD*C, H, W) features and (B, T, W_t-1, 2, Hq, Wq) flow to `Matches`; `start` of this call, if it is
        not that of the module."""
        settings = self.settings if start is None else {**self.settings, "start": start}
        return functional.shifted_nls(query, key, flow, **settings)

    def extra_repr(self) -> str:
        """Settings that are not the default."""
        changed = [f for f in fields(self.spec) if getattr(self.spec, f.name) != f.default]
        return ", ".join(f"{f.name}={getattr(self.spec, f.name)!r}" for f in changed)


class Refine(_Function):
    """`refine` as a module."""

    def __init__(
        self,
        *,
        topk: int | None = None,
        heads: int | None = None,
        backend: str | None = None,
        **settings: Unpack[WindowSettings],
    ) -> None:
        kept = 1 if topk is None else topk
        RefineSpec(incoming=kept, topk=kept, heads=1 if heads is None else heads, **settings)  # only to check
        super().__init__(topk=topk, heads=heads, backend=backend, **settings)

    def forward(self, query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor) -> Matches:
        """(B, T, HD*C, H, W) features and earlier matches to `Matches`."""
        return functional.refine(query, key, offsets, frames, **self.settings)


class SearchFlow(_Function):
    """`search_flow` as a module."""

    def __init__(
        self, *, temporal_window: int = 1, stride: int = 1, causal: bool = False, backend: str | None = None
    ) -> None:
        inputs.flow_settings(temporal_window, stride, causal)
        super().__init__(temporal_window=temporal_window, stride=stride, causal=causal, backend=backend)

    # `forward` is the name that nn.Module wants; its arguments are the flows forward and backward in time
    def forward(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Two (B, T, 2, H, W) one-step flows to (B, T, W_t-1, 2, Hq, Wq)."""
        return functional.search_flow(forward, backward, **self.settings)


class RescaleFlow(_Function):
    """`rescale_flow` as a module."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size=inputs.size_of(size))

    def forward(self, flow: Tensor) -> Tensor:
        """(..., 2, H, W) to (..., 2, *size)."""
        return functional.rescale_flow(flow, **self.settings)


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
        self.start = checks.positive("scale", scale)
        start = torch.full((checks.whole("heads", heads, 1),), self.start).log()
        self.log_scale = nn.Parameter(start) if checks.flag("learned", learned) else None

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


class Gather(_Function):
    """`gather` as a module."""

    def __init__(
        self,
        *,
        heads: int | None = None,
        patch: int = 1,
        dilation: int = 1,
        stride: int = 1,
        block: int = 1,
        backend: str | None = None,
    ) -> None:
        GatherSpec(1 if heads is None else heads, patch, dilation, stride, block)  # only to check
        spec = {"heads": heads, "patch": patch, "dilation": dilation, "stride": stride, "block": block}
        super().__init__(**spec, backend=backend)

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """(B, T, HD*C, H, W) values and weighted matches to (B, T, HD*C, Hq, Wq)."""
        return functional.gather(value, weights, offsets, frames, **self.settings)


class GatherStack(Gather):
    """`gather_stack` as a module."""

    def __init__(
        self, *, heads: int | None = None, stride: int = 1, block: int = 1, backend: str | None = None
    ) -> None:
        super().__init__(heads=heads, stride=stride, block=block, backend=backend)
        del self.settings["patch"], self.settings["dilation"]

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """(B, T, HD*C, H, W) values and weighted matches to (B, HD, K, T, C, Hq, Wq)."""
        return functional.gather_stack(value, weights, offsets, frames, **self.settings)


class Scatter(Gather):
    """`scatter` as a module, with the settings of `Gather` less `block`."""

    def __init__(
        self,
        *,
        heads: int | None = None,
        patch: int = 1,
        dilation: int = 1,
        stride: int = 1,
        backend: str | None = None,
    ) -> None:
        super().__init__(heads=heads, patch=patch, dilation=dilation, stride=stride, backend=backend)
        del self.settings["block"]

    def forward(  # type: ignore[override]  # it takes a size besides
        self, source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(B, T, HD*C, Hq, Wq) and weighted matches to (B, T, HD*C, *size)."""
        matches = (weights, offsets, frames)
        return functional.scatter(source, *matches, size=size, **self.settings)


class ShiftedAttention(nn.Module):
    """`shifted_attention` as a module.

    Args:
        scale, learned: as in `Weights`; a learned scale is one for each head.
        settings: those of `ShiftedNLS`.
    """

    def __init__(
        self,
        *,
        scale: float = 10.0,
        learned: bool = False,
        backend: str | None = None,
        **settings: Unpack[SearchSettings],
    ) -> None:
        super().__init__()
        self.search = ShiftedNLS(backend=backend, **settings)
        self.weights = Weights(scale, heads=self.search.spec.heads, learned=learned)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, flow: Tensor | None = None) -> Tensor:
        """(B, T, HD*C, H, W) query, key and value to (B, T, HD*Cv, Hq, Wq)."""
        scale, how = self.weights.scale, self.search.settings
        return functional.shifted_attention(query, key, value, flow, scale=scale, **how)
