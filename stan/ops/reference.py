"""Pure-PyTorch reference of the operator: the oracle of the native kernels, and the fallback without them.

Written for clarity. Its ideas:

- A search is a refinement of the "matches" that the flow predicts, one for each searched frame (slot). So
  `search` and `refine` are the same `search_windows` (matching.py) around displacements.
- The choice of the matches has no gradient: they are selected first, without recording anything, and then
  scored once more, alone, for autograd.
- Queries are handled in chunks, and in the backward pass a chunk is computed again, not stored. Memory beside
  inputs, outputs and their gradients: float32 copies of query and key (or value), 12 bytes for each query and
  searched frame, and a constant of about 50 MB (tests/ops/test_memory.py measures it).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .geometry import anchor, slot_frames
from .matching import search_windows
from .pixels import Grid, Images, Shift, as_video, by_query, chunks_of, patch_pixels, recomputed
from .types import GatherSpec, Matches, RefineSpec, SearchSpec, score_dtype

P = ParamSpec("P")
R = TypeVar("R")


def _untraced(fn: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile out of fn: it would unroll the loops over chunks into one huge graph.

    `torch.compiler.disable` is called late because it imports the compiler, which takes seconds.
    """

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fn)(*args, **kwargs)
        return fn(*args, **kwargs)

    return call


@_untraced
def search(query: Tensor, key: Tensor, flow: Tensor | None, spec: SearchSpec) -> Matches:
    """See `stan.ops.shifted_nls`."""
    grid = Grid.of_query(query, spec.heads, spec.stride)
    slots = slot_frames(key.shape[1], spec.temporal_window, spec.causal)[spec.start :][: grid.frames]
    frames = torch.tensor(slots, dtype=torch.int32, device=query.device).reshape(-1, 1, 1, spec.slots)
    displacement = torch.zeros((*grid.shape, 1, 2), dtype=score_dtype(query), device=query.device)  # slot 0
    if flow is None:
        displacement = displacement.expand(*grid.shape, spec.slots, 2)
    else:
        others = flow.permute(0, 1, 2, 5, 6, 3, 4)  # (B, 1 or HD, T, Hq, Wq, W_t-1, 2)
        displacement = torch.cat([displacement, others.expand(*grid.shape, -1, 2)], dim=-2)
    frames = frames.expand(*grid.shape, spec.slots)
    return search_windows(query, key, displacement, frames, spec, grid)


@_untraced
def refine(query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, spec: RefineSpec) -> Matches:
    """See `stan.ops.refine`."""
    return search_windows(query, key, offsets, frames, spec, Grid.of_query(query, spec.heads, spec.stride))


@_untraced
def search_flow(forward: Tensor, backward: Tensor, temporal_window: int, stride: int, causal: bool) -> Tensor:
    """See `stan.ops.search_flow`."""
    batch, frames, _, height, width = forward.shape
    slots = slot_frames(frames, temporal_window, causal)
    later = max(max(row) - t for t, row in enumerate(slots))
    earlier = max(t - min(f for f in row if f >= 0) for t, row in enumerate(slots))
    ahead = _follow(forward, later, stride)
    behind = _follow(backward.flip(1), earlier, stride)  # time runs backwards: frame t is at T-1-t
    nothing = forward.new_zeros(batch, 2, (height - 1) // stride + 1, (width - 1) // stride + 1)

    def displacement(t: int, frame: int) -> Tensor:
        if frame < 0:
            return nothing
        return ahead[frame - t - 1][:, t] if frame > t else behind[t - frame - 1][:, frames - 1 - t]

    if len(slots[0]) == 1:
        return forward.new_zeros(batch, frames, 0, *nothing.shape[1:])
    rows = [torch.stack([displacement(t, f) for f in row[1:]], dim=1) for t, row in enumerate(slots)]
    return torch.stack(rows, dim=1)  # (B, T, W_t-1, 2, Hq, Wq)


@_untraced
def gather(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather`."""
    weights, offsets, frames = _unblocked(value, weights, offsets, frames, spec)
    grid = Grid.of_matches(frames, spec.stride)
    images = Images.of(value, spec.heads)
    total = value.new_zeros((), dtype=score_dtype(value))
    for shift, queries in _patch_on_grid(spec, grid):

        def sums(
            number: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, shift: Shift = shift
        ) -> Tensor:
            index, weight = _match_taps(images, grid, number, weights, offsets, frames, shift)  # (n, K, 4)
            return images.sums(index.flatten(1), weight.flatten(1))  # (n, C)

        chunks = chunks_of(16 * frames.shape[-1], *by_query(weights, offsets, frames))
        part = torch.cat(recomputed(sums, chunks))
        total = total + _shifted(as_video(part, grid), queries)
    return (total / _patch_count(spec, grid, total)).to(value.dtype)


@_untraced
def gather_stack(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather_stack`."""
    weights, offsets, frames = _unblocked(value, weights, offsets, frames, spec)
    grid = Grid.of_matches(frames, spec.stride)
    images = Images.of(value, spec.heads)

    def samples(number: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        return images.sums(*_match_taps(images, grid, number, weights, offsets, frames, (0, 0)))  # (n, K, C)

    per_query = frames.shape[-1] * (16 + images.rows.shape[1])
    stack = torch.cat(recomputed(samples, chunks_of(per_query, *by_query(weights, offsets, frames))))
    stack = stack.reshape(*grid.shape, *stack.shape[1:])  # (B, HD, T, Hq, Wq, K, C)
    return stack.permute(0, 1, 5, 2, 6, 3, 4).to(value.dtype)


@_untraced
def scatter(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, size: tuple[int, int], spec: GatherSpec
) -> Tensor:
    """See `stan.ops.scatter`."""
    return _Scatter.apply(source, weights, offsets, frames, size, spec)


def _follow(flow: Tensor, steps: int, stride: int) -> list[Tensor]:
    """Displacements after 1, 2, ... steps of one-step flow (B, T, 2, H, W).

    The n-th result is (B, T-n, 2, Hq, Wq): only where n steps stay in the clip.
    """
    batch, frames = flow.shape[:2]
    grid = Grid.of_query(flow, 1, stride)
    moved = flow.new_zeros(batch, frames, 2, grid.height, grid.width)
    results = []
    for n in range(1, steps + 1):
        moved = moved[:, : frames - n]
        moved = moved + _look_up(flow[:, n - 1 : frames - 1], moved, stride)
        results.append(moved)
    return results


def _look_up(flow: Tensor, moved: Tensor, stride: int) -> Tensor:
    """The flow (B, T, 2, H, W) at query positions moved by (B, T, 2, Hq, Wq)."""
    images = Images.of(torch.where(flow.isfinite(), flow, 0.0), 1)
    grid = Grid.of_query(flow, 1, stride)

    def values(number: Tensor, moved: Tensor) -> Tensor:
        image, x, y = grid.locate(number)
        px = anchor(x.to(moved.dtype), moved[:, 0], images.width)
        py = anchor(y.to(moved.dtype), moved[:, 1], images.height)
        return images.sums(*images.taps(image, px, py, (0, 0)))  # (n, 2)

    by_query = moved.permute(0, 1, 3, 4, 2).reshape(-1, 2)
    return as_video(torch.cat(recomputed(values, chunks_of(16, by_query))), grid)


def _unblocked(
    value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Matches of blocks (B, HD, T, h, w, K[, 2]) as those of the queries in them, (B, HD, T, Hq, Wq, K[, 2])."""
    if spec.block == 1:
        return weights, offsets, frames
    rows, columns = (
        torch.arange((length - 1) // spec.stride + 1, device=value.device) // spec.block
        for length in value.shape[3:]
    )
    weights, offsets, frames = (
        tensor.index_select(3, rows).index_select(4, columns) for tensor in (weights, offsets, frames)
    )
    return weights, offsets, frames


def _match_taps(
    images: Images,
    grid: Grid,
    number: Tensor,
    weights: Tensor,
    offsets: Tensor,
    frames: Tensor,
    shift: Shift,
) -> tuple[Tensor, Tensor]:
    """Rows and weights (n, K, 4) of the matches of n queries; empty matches get weight 0."""
    image, x, y = grid.locate(number)
    px = anchor(x[:, None].to(offsets.dtype), offsets[..., 0], images.width)  # (n, K)
    py = anchor(y[:, None].to(offsets.dtype), offsets[..., 1], images.height)
    clips = max(1, grid.batch * grid.heads)
    there = images.rows.shape[0] // (clips * images.height * images.width)  # frames of a clip of the images
    empty = (frames < 0) | (frames >= there)
    image = grid.searched(image[:, None], frames, there)
    index, weight = images.taps(image, px, py, shift, empty=empty)
    weights = weights.masked_fill(empty, 0.0)
    return index, weight * weights[..., None]


def _patch_on_grid(spec: GatherSpec, grid: Grid) -> Iterator[tuple[Shift, Shift]]:
    """The patch pixels that fall on the query grid: displacement in pixels, and in queries."""
    for u, v in patch_pixels(spec.patch, spec.dilation):
        if u % spec.stride == 0 and v % spec.stride == 0:
            queries = (u // spec.stride, v // spec.stride)
            if abs(queries[0]) < grid.width and abs(queries[1]) < grid.height:
                yield (u, v), queries


def _shifted(video: Tensor, queries: Shift) -> Tensor:
    """The video moved by (x, y) queries; what enters is zero."""
    x, y = queries
    return F.pad(video, (x, -x, y, -y)) if (x, y) != (0, 0) else video


def _patch_count(spec: GatherSpec, grid: Grid, like: Tensor) -> Tensor:
    """How many patch pixels fall on each query, (Hq, Wq)."""
    one = like.new_ones(grid.height, grid.width)
    return torch.stack([_shifted(one, queries) for _, queries in _patch_on_grid(spec, grid)]).sum(0)


class _Scatter(torch.autograd.Function):
    """The transpose of `gather`; so its gradient is that of ``(gather(grad) * source).sum()``."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        weights: Tensor,
        offsets: Tensor,
        frames: Tensor,
        size: Shift,
        spec: GatherSpec,
    ) -> Tensor:
        ctx.save_for_backward(source, weights, offsets, frames)
        ctx.spec = spec
        with torch.enable_grad():
            value = weights.new_zeros((*source.shape[:3], *size), requires_grad=True)
            gathered = gather(value, weights, offsets, frames, spec)
        return torch.autograd.grad(gathered, value, source.to(value.dtype))[0].to(source.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            source, weights, offsets = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors[:3])
            gathered = gather(grad.to(weights.dtype), weights, offsets, ctx.saved_tensors[3], ctx.spec)
            grads = torch.autograd.grad((gathered * source).sum(), (source, weights, offsets))
        return (*grads, None, None, None)
