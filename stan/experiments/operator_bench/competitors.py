"""Four ways to do the shifted search without this project's kernels, as a PyTorch user would write them.

All take query and key (B, T, HD*C, H, W) and flow (B, T, W_t-1, 2, H, W), search with a unit grid step and a sliding
window, are differentiable by autograd, and return scores (B, HD, T, H, W, K), offsets (..., 2) and frames, the same
matches as `stan.ops.shifted_nls`. They share the window's geometry and differ in what they build in memory:

- `candidates`: one candidate of all queries after the other, sampled with `torch.nn.functional.grid_sample`,
  multiplied and summed at once; only the scores are stacked, for top-k: the leanest plain way we know;
- `grid_sample`: all candidates of a frame sampled by one call, then compared, then top-k;
- `unfold_gather`: all key windows unfolded, each query's gathered, interpolated, compared;
- `patch_database`: a database of key patches and, for every query, the stored list of its candidates'
  database rows and the stored volume of their scores, as neural nearest neighbours networks (N3Net,
  arXiv 1810.12575) search; our own code, after the paper's description.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from stan.experiments.operator_bench.cases import Case


class Found(NamedTuple):
    """Scores (B, HD, T, H, W, K), offsets (B, HD, T, H, W, K, 2), frames (B, HD, T, H, W, K)."""

    scores: torch.Tensor
    offsets: torch.Tensor
    frames: torch.Tensor


def candidates(query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, case: Case) -> Found:
    """Sample, multiply and sum candidate by candidate; stack the scores and take the top K of all."""
    queries, keys, reach = _folded(query, key, case)  # (N, C, H+2r, W+2r)
    h, w = case.height, case.width
    step = queries.new_tensor([2 / max(n + 2 * reach - 1, 1) for n in (w, h)], dtype=torch.float32)
    volume = []
    for slot in range(case.searched):
        first = torch.stack(_first(flow, slot, case), dim=-1) * step - 1  # (N, H, W, 2) as the grid wants it
        source = keys.index_select(0, _frame_of(slot, case, keys.device)).float()
        for row, column in product(range(case.window), repeat=2):
            total: torch.Tensor | float = 0.0
            for dy, dx in product(range(case.patch), repeat=2):
                grid = first + step * step.new_tensor([column + dx, row + dy])
                sampled = F.grid_sample(source, grid, padding_mode="border", align_corners=True)
                here = queries[:, :, dy : dy + h, dx : dx + w]
                total = total + _compare(here, sampled, case, dim=1)
            volume.append(torch.as_tensor(total))
    stacked = torch.stack(volume, dim=-1).unflatten(-1, (case.searched, -1))
    return _select(stacked, flow, case)  # (N, H, W, W_t, ws*ws)


def grid_sample(query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, case: Case) -> Found:
    """Sample every candidate (and patch pixel) with grid_sample, score, then take the top K of all."""
    queries, keys, reach = _folded(query, key, case)  # (N, C, H+2r, W+2r)
    n, c, h, w = queries.shape[0], case.channels, case.height, case.width
    volume = []
    for slot in range(case.searched):
        x, y = _candidates(flow, slot, case)  # (N, H, W, ws*ws)
        source = keys.index_select(0, _frame_of(slot, case, keys.device)).float()  # as the grid has to be
        total: torch.Tensor | float = 0.0
        for dy, dx in product(range(case.patch), repeat=2):
            across = (x + dx) * (2 / max(w + 2 * reach - 1, 1)) - 1
            down = (y + dy) * (2 / max(h + 2 * reach - 1, 1)) - 1
            grid = torch.stack((across, down), dim=-1).view(n, h, -1, 2)
            del across, down  # not held while sampling
            sampled = F.grid_sample(source, grid, padding_mode="border", align_corners=True)
            here = queries[:, :, dy : dy + h, dx : dx + w]
            total = total + _compare(here.unsqueeze(-1), sampled.view(n, c, h, w, -1), case, dim=1)
        volume.append(torch.as_tensor(total))
    return _select(torch.stack(volume, dim=3), flow, case)  # (N, H, W, W_t, ws*ws)


def unfold_gather(query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, case: Case) -> Found:
    """Unfold all (ws+ps)^2 key windows, gather the one each query's flow points at, interpolate, compare."""
    queries, keys, _ = _folded(query, key, case)
    n, c, h, w = queries.shape[0], case.channels, case.height, case.width
    side = case.window + case.patch  # one more than the window: the right taps of the bilinear weights
    grown = F.pad(keys, (0, 1, 0, 1), mode="replicate")
    windows = F.unfold(grown, side)  # (N, C*side*side, L)
    columns = grown.shape[-1] - side + 1
    patches = F.unfold(queries, case.patch).view(n, c, case.patch, case.patch, h, w)
    volume = []
    for slot in range(case.searched):
        left, top, a, b = _corner(flow, slot, case)  # (N, H, W) whole corner and its fraction
        place = (top * columns + left).view(n, 1, -1).expand(-1, windows.shape[1], -1)
        source = windows.index_select(0, _frame_of(slot, case, keys.device))
        taken = source.gather(2, place).view(n, c, side, side, h, w)
        a, b = a[:, None, None, None], b[:, None, None, None]
        across = taken[:, :, :, :-1] * (1 - a) + taken[:, :, :, 1:] * a
        sampled = across[:, :, :-1] * (1 - b) + across[:, :, 1:] * b  # (N, C, ws+ps-1, ws+ps-1, H, W)
        total: torch.Tensor | float = 0.0
        for dy, dx in product(range(case.patch), repeat=2):
            view = sampled[:, :, dy : dy + case.window, dx : dx + case.window]
            total = total + _compare(patches[:, :, dy, dx, None, None], view, case, dim=1)
        volume.append(total.flatten(1, 2).permute(0, 2, 3, 1))  # type: ignore[union-attr]
    return _select(torch.stack(volume, dim=3), flow, case)


def patch_database(
    query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, case: Case, chunk: int = 4096
) -> Found:
    """Search a database of key patches by stored candidate lists, `chunk` queries at a time."""
    queries, keys, _ = _folded(query, key, case)
    n, h, w = queries.shape[0], case.height, case.width
    wide = F.pad(keys, (0, 1, 0, 1), mode="replicate")
    database = F.unfold(wide, case.patch).transpose(1, 2)  # (N, (H+1)*(W+1), C*ps*ps)
    wanted = F.unfold(queries, case.patch).transpose(1, 2).reshape(n * h * w, 1, -1)
    rows = database.reshape(-1, database.shape[-1])
    step = torch.arange(case.window, device=key.device)
    lists, phases = [], []
    for slot in range(case.searched):
        left, top, a, b = _corner(flow, slot, case)
        base = (_frame_of(slot, case, key.device) * (h + 1) * (w + 1)).view(n, 1, 1, 1, 1)
        row = (top[..., None, None] + step[:, None]) * (w + 1) + left[..., None, None] + step
        lists.append((base + row).view(n * h * w, -1))
        phases.append(torch.stack((a, b), dim=-1).view(n * h * w, 2))
    candidates = torch.stack(lists, dim=1)  # (N*H*W, W_t, ws*ws): the stored candidate lists
    phase = torch.stack(phases, dim=1)
    scores = []
    for at in range(0, n * h * w, chunk):
        index = candidates[at : at + chunk]
        a = phase[at : at + chunk, :, 0, None, None]
        b = phase[at : at + chunk, :, 1, None, None]
        found = (rows[index] * (1 - a) + rows[index + 1] * a) * (1 - b)
        found = found + (rows[index + w + 1] * (1 - a) + rows[index + w + 2] * a) * b
        scores.append(_compare(wanted[at : at + chunk, :, None], found, case, dim=-1))
    volume = torch.cat(scores).view(n, h, w, case.searched, -1)
    return _select(volume, flow, case)


COMPETITORS = {
    "candidates": candidates,
    "grid_sample": grid_sample,
    "unfold": unfold_gather,
    "database": patch_database,
}


def _folded(query: torch.Tensor, key: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Query and key as (B*HD*T, C, H+2r, W+2r), reflected by the patch's reach r = ps//2."""
    b, t, _, h, w = query.shape
    reach = case.patch // 2

    def fold(video: torch.Tensor) -> torch.Tensor:
        heads = video.view(b, t, case.heads, case.channels, h, w).transpose(1, 2)  # (B, HD, T, C, H, W)
        frames = heads.reshape(-1, case.channels, h, w)
        return F.pad(frames, (reach,) * 4, mode="reflect") if reach else frames

    return fold(query), fold(key), reach


def _searched(t: int, case: Case) -> list[int]:
    """The frames that frame t searches: t, then onwards, then back, in a window that slides at the ends."""
    start = min(max(t - case.temporal_window, 0), case.frames - case.searched)
    stop = start + case.searched
    return [t, *range(t + 1, stop), *range(t - 1, start - 1, -1)]


def _frame_of(slot: int, case: Case, device: torch.device) -> torch.Tensor:
    """(N,) which of the N = B*HD*T folded key frames each folded query frame searches in `slot`."""
    frame = torch.tensor([_searched(t, case)[slot] for t in range(case.frames)], device=device)
    clips = torch.arange(case.batch * case.heads, device=device) * case.frames
    return (clips[:, None] + frame).flatten()


def _first(flow: torch.Tensor, slot: int, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, H, W) x and y of each window's first candidate: anchor, reflected, then slid into the image."""
    h, w, o = case.height, case.width, (case.window - 1) // 2
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device, dtype=flow.dtype),
        torch.arange(w, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    if slot:
        moved = flow[:, :, slot - 1].unsqueeze(1).expand(-1, case.heads, -1, -1, -1, -1).reshape(-1, 2, h, w)
        x, y = x + moved[:, 0], y + moved[:, 1]
    else:
        n = case.batch * case.heads * case.frames
        x, y = x.expand(n, h, w), y.expand(n, h, w)

    def slide(v: torch.Tensor, size: int) -> torch.Tensor:
        v = v.abs()
        v = torch.where(v > size - 1, 2 * (size - 1) - v, v).clamp(0, size - 1)
        first = v - o
        with torch.no_grad():  # whole steps that bring the window inside; constant for the gradient
            up = (-first).clamp(min=0).ceil()
            down = (first + case.window - 1 - (size - 1)).clamp(min=0).ceil()
        return first + up - down

    return slide(x, w), slide(y, h)


def _corner(
    flow: torch.Tensor, slot: int, case: Case
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole pixel left and top of each window's first candidate, and its fraction (a, b)."""
    x, y = _first(flow, slot, case)
    left, top = x.detach().floor(), y.detach().floor()
    return left.long(), top.long(), x - left, y - top


def _candidates(flow: torch.Tensor, slot: int, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, H, W, ws*ws) x and y of every candidate in a slot, row by row."""
    x, y = _first(flow, slot, case)
    step = torch.arange(case.window, device=flow.device, dtype=flow.dtype)
    shape = (*x.shape, case.window, case.window)
    return (
        (x[..., None, None] + step).expand(shape).flatten(-2),
        (y[..., None, None] + step[:, None]).expand(shape).flatten(-2),
    )


def _compare(query: torch.Tensor, key: torch.Tensor, case: Case, dim: int) -> torch.Tensor:
    """Float32 score over dimension `dim`: minus the squared distance, or the inner product."""
    query, key = query.float(), key.float()
    return (query * key).sum(dim) if case.metric == "dot" else -(query - key).square().sum(dim)


def _select(volume: torch.Tensor, flow: torch.Tensor, case: Case) -> Found:
    """Top K of a score volume (N, H, W, W_t, ws*ws), with the offsets and frames of what was found."""
    b, heads, t, h, w, k = case.batch, case.heads, case.frames, case.height, case.width, case.topk
    scores, index = volume.flatten(-2).topk(k, dim=-1)
    first = [_first(flow, slot, case) for slot in range(case.searched)]
    first_x = torch.stack([x for x, _ in first], dim=-1)  # (N, H, W, W_t)
    first_y = torch.stack([y for _, y in first], dim=-1)
    slot, place = index // case.window**2, index % case.window**2
    x = first_x.gather(-1, slot) + place % case.window - torch.arange(w, device=flow.device)[:, None]
    y = first_y.gather(-1, slot) + place // case.window - torch.arange(h, device=flow.device)[:, None, None]
    order = torch.tensor([_searched(frame, case) for frame in range(t)], device=flow.device)  # (T, W_t)
    frames = order.repeat(b * heads, 1)[:, None, None].expand(-1, h, w, -1).gather(-1, slot)
    shape = (b, heads, t, h, w, k)
    return Found(scores.view(shape), torch.stack((x, y), dim=-1).view(*shape, 2), frames.view(shape))
