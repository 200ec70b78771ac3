"""The native kernels as a backend: the functions that `backend.py` describes, on top of the ops in `torch.ops.stan`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import registration  # noqa: F401  (tells torch how the ops behave)
from .softmax import weights as softmax_weights
from .types import GatherSpec, Matches, RefineSpec, SearchSpec, score_dtype


def search(query: Tensor, key: Tensor, flow: Tensor | None, spec: SearchSpec) -> Matches:
    """See `stan.ops.shifted_nls`."""
    return Matches(
        *torch.ops.stan.search(
            query, key, flow, spec.window, spec.temporal_window, spec.topk, spec.heads, spec.patch, spec.dilation,
            spec.stride, spec.key_stride, spec.metric, spec.select, spec.self_match, spec.slide, spec.causal,
        )
    )  # fmt: skip


def refine(query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, spec: RefineSpec) -> Matches:
    """See `stan.ops.refine`."""
    scores, offsets, frames, _ = torch.ops.stan.refine(
        query, key, offsets, frames, spec.window, spec.topk, spec.patch, spec.dilation, spec.stride, spec.key_stride,
        spec.metric, spec.slide,
    )  # fmt: skip
    return Matches(scores, offsets, frames)


def search_flow(forward: Tensor, backward: Tensor, temporal_window: int, stride: int, causal: bool) -> Tensor:
    """See `stan.ops.search_flow`."""
    return torch.ops.stan.search_flow(forward, backward, temporal_window, stride, causal)


def gather(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather`."""
    dtype = score_dtype(value)
    weights, offsets = weights.to(dtype), offsets.to(dtype)
    return torch.ops.stan.gather(value, weights, offsets, frames, spec.patch, spec.dilation, spec.stride)


def gather_stack(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather_stack`."""
    dtype = score_dtype(value)
    return torch.ops.stan.gather_stack(value, weights.to(dtype), offsets.to(dtype), frames, spec.stride)


def scatter(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, size: tuple[int, int], spec: GatherSpec
) -> Tensor:
    """See `stan.ops.scatter`."""
    dtype = score_dtype(source)
    weights, offsets = weights.to(dtype), offsets.to(dtype)
    return torch.ops.stan.scatter(
        source, weights, offsets, frames, *size, spec.patch, spec.dilation, spec.stride
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, flow: Tensor | None, scale: float | Tensor, spec: SearchSpec
) -> Tensor:
    """See `stan.ops.shifted_attention`."""
    matches = search(query, key, flow, spec)
    weights = softmax_weights(matches.scores, scale)
    pixels = GatherSpec(heads=spec.heads, patch=1, dilation=1, stride=spec.stride)
    return gather(value, weights, matches.offsets, matches.frames, pixels)
