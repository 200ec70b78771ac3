"""Checks that the tensors of a call belong together, and the one form in which a backend gets them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .types import GatherSpec, RefineSpec, SearchSpec, score_dtype

FLOW_AXES = "(B, T, W_t-1, 2, Hq, Wq)"
HEAD_FLOW_AXES = "(B, HD, T, W_t-1, 2, Hq, Wq)"
MATCH_AXES = "(B, HD, T, Hq, Wq, K)"
OFFSET_AXES = "(B, HD, T, Hq, Wq, K, 2)"
VIDEO_AXES = "(B, T, HD*C, H, W)"
ONE_STEP_AXES = "(B, T, 2, H, W)"


def videos(query: Tensor, key: Tensor, heads: int, start: int | None = None) -> None:
    """Check that query and key can be compared; with `start` the query is some of the key's frames, from there on."""
    checks.video("query", query, heads)
    checks.video("key", key, heads)
    batch, frames, channels = query.shape[:3]
    same = (batch, frames if start is None else None, channels, None, None)
    checks.shaped("key", key, same, f"{VIDEO_AXES} as query")
    if start is not None and start + frames > key.shape[1]:
        raise ValueError(
            f"key: expected T of at least {start + frames}, for the {frames} frames of query from start={start} on, "
            f"got T = {key.shape[1]}"
        )
    checks.same_dtype("query", query, key=key)
    checks.same_device("query", query, key=key)


def enough_frames(name: str, frames: int, slots: int) -> None:
    """Check that a clip has as many frames as are searched."""
    if frames < slots:
        raise ValueError(f"{name}: expected T of at least {slots}, the frames searched, got T = {frames}")


def search_inputs(query: Tensor, key: Tensor, flow: Tensor | None, spec: SearchSpec) -> Tensor | None:
    """Check the tensors of a search; return flow as (B, 1 or HD, T, W_t-1, 2, Hq, Wq), or None for zero."""
    videos(query, key, spec.heads, spec.start)
    if not spec.causal:
        enough_frames("key", key.shape[1], spec.slots)
    if flow is None:
        return None
    batch, frames, _, height, width = query.shape
    grid = (spec.slots - 1, 2, (height - 1) // spec.stride + 1, (width - 1) // spec.stride + 1)
    if isinstance(flow, Tensor) and flow.dim() == 7:
        checks.floating("flow", flow, 7, HEAD_FLOW_AXES)
        heads = 1 if flow.shape[1] == 1 else spec.heads
        checks.shaped("flow", flow, (batch, heads, frames, *grid), HEAD_FLOW_AXES)
    else:
        checks.floating("flow", flow, 6, f"{FLOW_AXES} (or 7, {HEAD_FLOW_AXES})")
        checks.shaped("flow", flow, (batch, frames, *grid), FLOW_AXES)
        flow = flow.unsqueeze(1)  # (B, 1, T, W_t-1, 2, Hq, Wq)
    checks.same_device("query", query, flow=flow)
    return flow.to(score_dtype(query)) if spec.slots > 1 else None


def refine_inputs(query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, spec: RefineSpec) -> Tensor:
    """Check query and key against earlier matches; return the offsets in the type of the scores."""
    videos(query, key, spec.heads)
    batch, time, _, height, width = query.shape
    grid = (batch, None, time, (height - 1) // spec.stride + 1, (width - 1) // spec.stride + 1, None, 2)
    checks.shaped("offsets", offsets, grid, f"{OFFSET_AXES} for this query and stride {spec.stride}")
    checks.same_device("query", query, offsets=offsets, frames=frames)
    return offsets.to(score_dtype(query))


def flow_settings(temporal_window: int, stride: int, causal: bool) -> None:
    """Check the settings of `search_flow`."""
    checks.whole("temporal_window", temporal_window, 0)
    checks.whole("stride", stride, 1)
    checks.flag("causal", causal)


def flow_inputs(forward: Tensor, backward: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Check a pair of one-step flows; return them in float32 or float64."""
    checks.floating("forward", forward, 5, ONE_STEP_AXES)
    checks.floating("backward", backward, 5, ONE_STEP_AXES)
    checks.shaped("forward", forward, (None, None, 2, None, None), ONE_STEP_AXES)
    checks.shaped("backward", backward, tuple(forward.shape), f"{ONE_STEP_AXES} as forward")
    if min(forward.shape[1:]) < 1:
        raise ValueError(f"forward: expected T, H and W of at least 1, got shape {tuple(forward.shape)}")
    checks.same_device("forward", forward, backward=backward)
    checks.same_dtype("forward", forward, backward=backward)
    enough_frames("forward", forward.shape[1], slots)
    dtype = score_dtype(forward)
    return forward.to(dtype), backward.to(dtype)


def gather_spec(
    weights: Tensor, heads: int | None, patch: int, dilation: int, stride: int, block: int = 1
) -> GatherSpec:
    """Check the weights of a gather or scatter; return the settings, with the heads of the weights."""
    checks.floating("weights", weights, 6, MATCH_AXES)
    if min(weights.shape[1:]) < 1:
        shape = tuple(weights.shape)
        raise ValueError(f"weights: expected HD, T, Hq, Wq and K of at least 1, got shape {shape}")
    same_heads("weights", weights, heads)
    return GatherSpec(heads=weights.shape[1], patch=patch, dilation=dilation, stride=stride, block=block)


def same_heads(name: str, tensor: Tensor, heads: int | None) -> None:
    """Check that axis 1 holds `heads` heads, if their number is given."""
    if heads is not None and checks.whole("heads", heads, 1) != tensor.shape[1]:
        raise ValueError(f"heads: expected {tensor.shape[1]}, axis 1 of {name}, or None, got {heads}")


def match_inputs(
    name: str, video: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Check matches against a video; return weights and offsets in the type of the sums, frames as int32."""
    checks.video(name, video, spec.heads)
    frames = match_frames(offsets, frames)
    checks.shaped("offsets", offsets, (*weights.shape, 2), f"{OFFSET_AXES} as weights")
    whole = spec.block == 1  # else the size of the result must come from somewhere: from the value
    grid = (None, None) if whole else spec.blocks_of((video.shape[3], video.shape[4]))
    # Values are gathered for as many frames as have matches.
    times = video.shape[1] if name == "source" else None
    expected = (video.shape[0], spec.heads, times, *grid, None)
    blocks = "" if whole else f" and blocks of {spec.block}"
    checks.shaped("weights", weights, expected, f"{MATCH_AXES} for this {name}{blocks}")
    checks.same_device(name, video, weights=weights, offsets=offsets, frames=frames)
    dtype = score_dtype(video)
    return weights.to(dtype), offsets.to(dtype), frames


def size_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return `size` if it is (H, W), each at least 1."""
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2:
        raise ValueError(f"size: expected (H, W), got {size!r}")
    return checks.whole("size", size[0], 1), checks.whole("size", size[1], 1)


def match_frames(offsets: Tensor, frames: Tensor) -> Tensor:
    """Check offsets and frames against each other; return frames as int32."""
    checks.floating("offsets", offsets, 7, OFFSET_AXES)
    checks.shaped("offsets", offsets, (None,) * 6 + (2,), OFFSET_AXES)
    if offsets.shape[1] < 1 or offsets.shape[5] < 1:
        raise ValueError(f"offsets: expected HD and K of at least 1, got shape {tuple(offsets.shape)}")
    checks.integers("frames", frames, 6, MATCH_AXES)
    checks.shaped("frames", frames, tuple(offsets.shape[:6]), f"{MATCH_AXES} as offsets")
    if frames.dtype == torch.int64:  # a plain cast would wrap 2**32, which is no frame, to frame 0
        frames = frames.clamp(-1, 2**31 - 1).to(torch.int32)
    return frames
