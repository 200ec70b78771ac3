"""The Shifted Non-Local Search and its companions, as functions.

Each function checks its arguments once, brings them into one form and hands them to a backend (`backend.py`).
What is computed is fixed in docs/operator.md; the idea is from "Space-Time Attention with Shifted Non-Local
Search" (arXiv 2309.16849).

Shape letters: B batch, T frames, HD heads, C channels per head, H x W pixels, Hq x Wq queries
(Hq = (H-1) // stride + 1), K matches, W_t searched frames. Displacements are (x, y) in pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend as backends
from . import checks, inputs
from .types import GatherSpec, Matches, RefineSpec, SearchSpec, score_dtype, takes_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .types import SearchSettings, WindowSettings


@takes_settings(SearchSpec)
def shifted_nls(
    query: Tensor,  # (B, T, HD*C, H, W)
    key: Tensor,  # (B, T, HD*C, Hk, Wk)
    flow: Tensor | None = None,  # (B, T, W_t-1, 2, Hq, Wq) or (B, HD, T, W_t-1, 2, Hq, Wq)
    *,
    backend: str | None = None,
    **settings: Unpack[SearchSettings],
) -> Matches:
    """Find the most similar key patches of every query, in small windows centred where the flow points.

    Differentiable in query, key and flow, once and backward (no second derivatives, no forward mode). The choice
    of the matches and the slide of the windows are constants to the gradient.

    Args:
        query: features that search, (B, T, HD*C, H, W), float16, bfloat16, float32 or float64; heads are
            split from the channels, head-major.
        key: features that are searched, same type, B and channels; Hk x Wk may differ from H x W. A
            position (x, y) means the same pixel coordinates in both. It has the query's T frames, or more, of
            which the query is those from `start` on.
        flow: displacement (dx, dy) in key pixels from each query to each other searched frame, in slot order;
            fractional. None is zero flow, as is any component that is NaN or infinite. Use ``flow.round()``
            for a search without interpolation.
        backend: "reference", "native", or None for the best one here.
        settings: `window`, `temporal_window`, `topk`, `heads`, ...: those of `SearchSpec`, which tells their
            meaning and defaults.

    Returns:
        `Matches` (scores, offsets, frames), best first. Ties go to the lower candidate index (slot, row,
        column). NaN scores come after all numbers, then places that no valid candidate could fill.

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device.
    """
    spec = SearchSpec(**settings)
    flow = inputs.search_inputs(query, key, flow, spec)
    return backends.resolve(backend, query, key).search(query, key, flow, spec)


@takes_settings(RefineSpec)
def refine(
    query: Tensor,  # (B, T, HD*C, H, W)
    key: Tensor,  # (B, T, HD*C, Hk, Wk)
    offsets: Tensor,  # (B, HD, T, Hq, Wq, K, 2)
    frames: Tensor,  # (B, HD, T, Hq, Wq, K)
    *,
    topk: int | None = None,
    heads: int | None = None,
    backend: str | None = None,
    **settings: Unpack[WindowSettings],
) -> Matches:
    """Search again in a small window around each match of an earlier search; window=1 only scores anew.

    Differentiable in query, key and offsets. Where the windows of two matches overlap, a position is a
    candidate twice and may be kept twice.

    Args:
        query, key, backend: as in `shifted_nls`.
        offsets: (dx, dy) of the earlier matches in pixels.
        frames: int32 or int64 frame indices of the earlier matches. A frame outside [0, T) marks an empty
            match, whose candidates are invalid.
        topk: matches kept; None keeps as many as came in.
        heads: number of heads; None takes it from `offsets`.
        settings: `window`, `patch`, `stride`, ...: the others of `WindowSpec`, which tells their meaning;
            `window`, the side wr of the window around each match, is 1 unless given.

    Returns:
        `Matches`, the best over all windows first (ties: lower match, row, column).

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device.
    """
    frames = inputs.match_frames(offsets, frames)
    inputs.same_heads("offsets", offsets, heads)
    heads, incoming = offsets.shape[1], offsets.shape[5]
    kept = incoming if topk is None else topk
    spec = RefineSpec(incoming=incoming, topk=kept, heads=heads, **settings)
    offsets = inputs.refine_inputs(query, key, offsets, frames, spec)
    return backends.resolve(backend, query, key).refine(query, key, offsets, frames, spec)


def search_flow(
    forward: Tensor,  # (B, T, 2, H, W)
    backward: Tensor,  # (B, T, 2, H, W)
    *,
    temporal_window: int = 1,
    stride: int = 1,
    causal: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Turn one-step optical flow into search displacements, by following it from frame to frame.

    The displacement to frame t+n is d_n = d_(n-1) + forward[t+n-1] read at q + d_(n-1); backwards alike.
    The flow is read bilinearly; positions outside the image are reflected once, then clamped, for the
    look-up only. NaN and infinite components count as zero. Differentiable in both flows.

    Args:
        forward: `forward[:, t]` maps frame t to t+1, (dx, dy) in pixels; the last frame's is not used.
        backward: `backward[:, t]` maps frame t to t-1; the first frame's is not used.
        temporal_window, stride, causal: as in the search that follows.

    Returns:
        (B, T, W_t-1, 2, Hq, Wq) in slot order, float32 (float64 for float64 flows). Slots before the clip
        (causal) are zero.

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device; T is below W_t.
    """
    inputs.flow_settings(temporal_window, stride, causal)
    forward, backward = inputs.flow_inputs(forward, backward, 1 if causal else 2 * temporal_window + 1)
    chosen = backends.resolve(backend, forward, backward)
    return chosen.search_flow(forward, backward, temporal_window, stride, causal)


def rescale_flow(
    flow: Tensor,  # (..., 2, H, W)
    size: tuple[int, int],
) -> Tensor:
    """Resize flow to another resolution and scale its values to the new pixels.

    Pixels are unit squares (``align_corners=False``); when shrinking, the flow is low-pass filtered
    (``antialias=True``), so that no pixel goes unheard. NaN and infinite components count as zero.

    Args:
        flow: any leading axes, (dx, dy) in pixels.
        size: new (H, W).

    Returns:
        (..., 2, *size), the type of `flow`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, value or shape.
    """
    if not isinstance(flow, Tensor) or not flow.is_floating_point():
        kind = flow.dtype if isinstance(flow, Tensor) else type(flow).__name__
        raise TypeError(f"flow: expected a floating-point tensor (..., 2, H, W), got {kind}")
    if flow.dim() < 3 or flow.shape[-3] != 2 or min(flow.shape[-2:]) < 1:
        raise ValueError(f"flow: expected shape (..., 2, H, W), got {tuple(flow.shape)}")
    rows, columns = inputs.size_of(size)
    height, width = flow.shape[-2:]
    if flow.numel() == 0:
        return flow.new_zeros((*flow.shape[:-2], rows, columns))
    values = flow.to(score_dtype(flow)).reshape(-1, 2, height, width)  # (N, 2, H, W)
    values = torch.where(values.isfinite(), values, 0.0)
    if (rows, columns) != (height, width):
        values = F.interpolate(values, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    ratio = values.new_tensor([columns / width, rows / height]).reshape(2, 1, 1)
    return (values * ratio).reshape(*flow.shape[:-2], rows, columns).to(flow.dtype)


def weights(
    scores: Tensor,  # (B, HD, T, Hq, Wq, K)
    scale: float | Tensor = 10.0,  # number, () or (HD,)
) -> Tensor:
    """Turn scores into attention weights: softmax(scale * scores) over the K matches.

    Args:
        scores: from `shifted_nls` or `refine`. A score of -inf gets weight 0, all weights are 0 where all K
            are -inf, and the gradient is 0 there. A NaN score makes the weights of its query NaN.
        scale: inverse temperature, above 0; the paper uses 10. A tensor may hold one for each head, and may
            be learned.

    Returns:
        (B, HD, T, Hq, Wq, K), the type of `scores`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device.
    """
    checks.floating("scores", scores, 6, "(B, HD, T, Hq, Wq, K)")
    scale = checks.scale_of("scale", scale, scores.shape[1])
    if isinstance(scale, Tensor):
        checks.same_device("scores", scores, scale=scale)
        scale = scale.to(scores.dtype).reshape(-1, 1, 1, 1, 1)  # (HD, 1, 1, 1, 1)
    empty = scores == -math.inf
    on_cpu = scores.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and not empty.any():  # the rule; asking a GPU would mean to wait for it
        return (scale * scores).softmax(dim=-1)
    logits = (scale * scores.masked_fill(empty, 0.0)).masked_fill(empty, -math.inf)
    logits = logits.masked_fill(empty.all(dim=-1, keepdim=True), 0.0)  # softmax of nothing but -inf is NaN
    return logits.softmax(dim=-1).masked_fill(empty, 0.0)


def gather(
    value: Tensor,  # (B, Tv, HD*C, H, W)
    weights: Tensor,  # (B, HD, T, Hq, Wq, K)
    offsets: Tensor,  # (B, HD, T, Hq, Wq, K, 2)
    frames: Tensor,  # (B, HD, T, Hq, Wq, K)
    *,
    heads: int | None = None,
    patch: int = 1,
    dilation: int = 1,
    stride: int = 1,
    block: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Sum the values at the matches of every query, weighted.

    The queries may be of fewer or more frames than the value has: T of weights, offsets and frames is theirs,
    and `frames` counts the value's. Whoever wants the result of some frames only slices these three.

    With block > 1 the queries of a block of block x block have their matches in common: weights, offsets and
    frames are then (B, HD, T, ceil(Hq/block), ceil(Wq/block), K[, 2]), and the result is what repeating them
    along both axes, cut to Hq x Wq, would give. The query grid is then that of the value's own H x W.

    With patch > 1 each query brings a whole patch of values around its matches; patches of neighbouring
    queries overlap on the query grid, and each output is the mean over the patch pixels that fall on it.

    Differentiable in value, weights and offsets.

    Args:
        value: what is gathered; its H x W may differ from the query's.
        weights: usually from `weights`, but any numbers will do.
        offsets, frames: from `shifted_nls` or `refine`. Matches with a frame outside [0, Tv) add nothing.
        heads: number of heads; None takes it from `weights`.
        patch: side of the gathered patches, odd. Pixels outside the image are reflected.
        dilation: distance between patch pixels.
        stride: the stride of the search that gave the matches.
        block: side, in queries, of the blocks that weights, offsets and frames are given for.
        backend: "reference", "native", or None for the best one here.

    Returns:
        (B, T, HD*C, Hq, Wq), the type of `value`; sums are taken in float32 (float64 for float64 values).

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device.
    """
    spec = inputs.gather_spec(weights, heads, patch, dilation, stride, block)
    weights, offsets, frames = inputs.match_inputs("value", value, weights, offsets, frames, spec)
    chosen = backends.resolve(backend, value, weights)
    return chosen.gather(value, weights, offsets, frames, spec)


def gather_stack(
    value: Tensor,  # (B, Tv, HD*C, H, W)
    weights: Tensor,  # (B, HD, T, Hq, Wq, K)
    offsets: Tensor,  # (B, HD, T, Hq, Wq, K, 2)
    frames: Tensor,  # (B, HD, T, Hq, Wq, K)
    *,
    heads: int | None = None,
    stride: int = 1,
    block: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Lay the K weighted, displaced value videos side by side, for a learned aggregation.

    Args:
        value, weights, offsets, frames, heads, stride, block, backend: as in `gather`.

    Returns:
        (B, HD, K, T, C, Hq, Wq), the type of `value`. Its sum over K is `gather` with patch=1.

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device.
    """
    spec = inputs.gather_spec(weights, heads, 1, 1, stride, block)
    weights, offsets, frames = inputs.match_inputs("value", value, weights, offsets, frames, spec)
    chosen = backends.resolve(backend, value, weights)
    return chosen.gather_stack(value, weights, offsets, frames, spec)


def scatter(
    source: Tensor,  # (B, T, HD*C, Hq, Wq)
    weights: Tensor,  # (B, HD, T, Hq, Wq, K)
    offsets: Tensor,  # (B, HD, T, Hq, Wq, K, 2)
    frames: Tensor,  # (B, HD, T, Hq, Wq, K)
    *,
    size: tuple[int, int],
    heads: int | None = None,
    patch: int = 1,
    dilation: int = 1,
    stride: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Push each query's value to its matches: the transpose of `gather`.

    For all value and source, ``(gather(value, ...) * source).sum() == (value * scatter(source, ...)).sum()``.
    Differentiable in source, weights and offsets.

    Args:
        source: one value for each query.
        weights, offsets, frames, heads, patch, dilation, stride, backend: as in `gather`.
        size: (H, W) of the result.

    Returns:
        (B, T, HD*C, H, W), the type of `source`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device.
    """
    spec = inputs.gather_spec(weights, heads, patch, dilation, stride)
    size = inputs.size_of(size)
    weights, offsets, frames = inputs.match_inputs("source", source, weights, offsets, frames, spec)
    grid = tuple(weights.shape[3:5])
    checks.shaped("source", source, (None, None, None, *grid), "(B, T, HD*C, Hq, Wq) for these weights")
    chosen = backends.resolve(backend, source, weights)
    return chosen.scatter(source, weights, offsets, frames, size, spec)


@takes_settings(SearchSpec)
def shifted_attention(
    query: Tensor,  # (B, T, HD*C, H, W)
    key: Tensor,  # (B, T, HD*C, Hk, Wk)
    value: Tensor,  # (B, T, HD*Cv, Hv, Wv)
    flow: Tensor | None = None,  # (B, T, W_t-1, 2, Hq, Wq) or (B, HD, T, W_t-1, 2, Hq, Wq)
    *,
    scale: float | Tensor = 10.0,
    backend: str | None = None,
    **settings: Unpack[SearchSettings],
) -> Tensor:
    """Attend over space and time: `shifted_nls`, then `weights`, then `gather` of single pixels, in one call.

    `patch` and `dilation` are those of the search.

    Args:
        query, key, flow: as in `shifted_nls`, with all its settings.
        value: (B, T, HD*Cv, Hv, Wv), B and T of the key; channels and size may differ from the key's.
        scale: of `weights`; a number, or a tensor with one for each head.

    Returns:
        (B, T, HD*Cv, Hq, Wq), the type of `value`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, value, shape or device.
    """
    spec = SearchSpec(**settings)
    flow = inputs.search_inputs(query, key, flow, spec)
    checks.video("value", value, spec.heads)
    checks.shaped("value", value, (*key.shape[:2], None, None, None), f"{inputs.VIDEO_AXES} as key")
    checks.same_device("query", query, value=value)
    checks.scale_of("scale", scale, spec.heads)
    chosen = backends.resolve(backend, query, key, value)
    scores, offsets, frames = chosen.search(query, key, flow, spec)
    attended = weights(scores, scale)
    how = GatherSpec(heads=spec.heads, stride=spec.stride)
    return chosen.gather(value, *inputs.match_inputs("value", value, attended, offsets, frames, how), how)
