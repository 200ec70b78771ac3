"""The native kernels as a backend: the functions that `backend.py` describes, on top of the ops in `torch.ops.stan`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import registration  # noqa: F401  (tells torch how the ops behave)
from .types import GatherSpec, Matches, RefineSpec, SearchSpec


def search(query: Tensor, key: Tensor, flow: Tensor | None, spec: SearchSpec) -> Matches:
    """See `stan.ops.shifted_nls`."""
    return Matches(*torch.ops.stan.search(query, key, flow, **spec.settings()))


def refine(query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, spec: RefineSpec) -> Matches:
    """See `stan.ops.refine`."""
    return Matches(*torch.ops.stan.refine(query, key, offsets, frames, **spec.settings())[:3])


def search_flow(forward: Tensor, backward: Tensor, temporal_window: int, stride: int, causal: bool) -> Tensor:
    """See `stan.ops.search_flow`."""
    return torch.ops.stan.search_flow(forward, backward, temporal_window, stride, causal)


def gather(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather`."""
    settings = (spec.patch, spec.dilation, spec.stride, spec.block, False)
    return torch.ops.stan.gather(value, weights, offsets, frames, *settings)


def gather_stack(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather_stack`."""
    return torch.ops.stan.gather(value, weights, offsets, frames, 1, 1, spec.stride, spec.block, True)


def scatter(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, size: tuple[int, int], spec: GatherSpec
) -> Tensor:
    """See `stan.ops.scatter`."""
    settings = (spec.patch, spec.dilation, spec.stride)
    return torch.ops.stan.scatter(source, weights, offsets, frames, *size, *settings)
