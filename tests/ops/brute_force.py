"""The operator once more, as plain loops over numpy arrays: an oracle that shares no code with stan.ops.

Slow and obvious on purpose. All arithmetic is float64. Written from the definition in docs/operator.md alone:
it slides windows by sliding them, reflects positions by reflecting them, and sorts all candidates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


def inside(v: float, length: int) -> float:
    """A coordinate reflected once at the border, then clamped."""
    if v < 0:
        v = -v
    elif v > length - 1:
        v = 2 * (length - 1) - v
    return min(max(v, 0.0), length - 1.0)


def moved(start: float, by: float, length: int) -> float:
    """Where a displacement leads; one that is not finite leads nowhere."""
    return inside(start + by if math.isfinite(by) else start, length)


def sample(image: Array, x: float, y: float) -> Array:
    """Bilinear sample (C,) of an image (C, H, W) at any position; pixels without weight are not read."""
    height, width = image.shape[1:]
    x, y = inside(x, width), inside(y, height)
    total = np.zeros(image.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            if weight > 0:
                total += weight * image[:, row, column]
    return total


def searched_frames(t: int, frames: int, wt: int, causal: bool) -> list[int | None]:
    """Frames in slot order; None lies before the clip."""
    if causal:
        return [t - n if t - n >= 0 else None for n in range(wt + 1)]
    window = list(range(t - wt, t + wt + 1))
    while window[0] < 0:
        window = [f + 1 for f in window]
    while window[-1] > frames - 1:
        window = [f - 1 for f in window]
    return [t, *(f for f in window if f > t), *reversed([f for f in window if f < t])]


def window_positions(anchor: float, window: int, step: float, length: int, slide: bool) -> list[float]:
    """Positions along one axis; those outside the image are invalid."""
    positions = [anchor + step * (i - (window - 1) // 2) for i in range(window)]
    if slide:
        while positions[-1] > length - 1:
            positions = [p - step for p in positions]
        while positions[0] < 0:
            positions = [p + step for p in positions]
    return positions


def compare(q: Array, k: Array, x: int, y: int, px: float, py: float, s: dict[str, Any]) -> float:
    """Score of the key position (px, py) for the query pixel (x, y); images (C, H, W)."""
    reach = s["patch"] // 2
    total = 0.0
    for v in range(-reach, reach + 1):
        for u in range(-reach, reach + 1):
            du, dv = u * s["dilation"], v * s["dilation"]
            a, b = sample(q, x + du, y + dv), sample(k, px + du, py + dv)
            total += float((a * b).sum()) if s["metric"] == "dot" else -float(((a - b) ** 2).sum())
    return total


def best(candidates: list[tuple], topk: int) -> list[tuple]:
    """The topk best of (valid, score, dx, dy, frame) in candidate order, filled up with empty matches."""

    def rank(numbered: tuple[int, tuple]) -> tuple:
        index, (_, score, *_) = numbered
        return (math.isnan(score), 0.0 if math.isnan(score) else -score, index)

    valid = [(i, c) for i, c in enumerate(candidates) if c[0]]
    kept = [c[1:] for _, c in sorted(valid, key=rank)[:topk]]
    return kept + [(-math.inf, 0.0, 0.0, -1)] * (topk - len(kept))


def _split(video: Array, heads: int) -> Array:
    """(B, T, HD*C, H, W) as (B, HD, T, C, H, W)."""
    b, t, c, h, w = video.shape
    return video.astype(np.float64).reshape(b, t, heads, c // heads, h, w).transpose(0, 2, 1, 3, 4, 5)


def _grid(height: int, width: int, stride: int) -> tuple[int, int]:
    return len(range(0, height, stride)), len(range(0, width, stride))


def _matches(shape: tuple[int, ...], topk: int) -> tuple[Array, Array, Array]:
    scores = np.zeros((*shape, topk))
    return scores, np.zeros((*shape, topk, 2)), np.zeros((*shape, topk), dtype=np.int64)


def around(
    q: Array, k: Array, x: int, y: int, t: int, dx: float, dy: float, s: dict[str, Any]
) -> list[tuple]:
    """Candidates (valid, score, dx, dy, frame) of the window at a displacement into image k of frame t."""
    height, width = k.shape[1:]
    columns = window_positions(moved(x, dx, width), s["window"], s["key_stride"], width, s["slide"])
    rows = window_positions(moved(y, dy, height), s["window"], s["key_stride"], height, s["slide"])
    candidates = []
    for py in rows:
        for px in columns:
            valid = 0 <= px <= width - 1 and 0 <= py <= height - 1
            score = compare(q, k, x, y, px, py, s) if valid else -math.inf
            candidates.append((valid, score, px - x, py - y, t))
    return candidates


def search(
    query: Array, key: Array, flow: Array | None, only: list[tuple[int, ...]] | None = None, **s: Any
) -> tuple[Array, Array, Array]:
    """`shifted_nls`; settings `s` must be complete. flow has 6 or 7 axes.

    `only` names the queries (b, h, t, i, j) to search for; the results of all others stay zero.
    """
    queries, keys = _split(query, s["heads"]), _split(key, s["heads"])
    batch, heads, frames, _, height, width = queries.shape
    clip = keys.shape[2]
    slots = s["temporal_window"] + 1 if s["causal"] else 2 * s["temporal_window"] + 1
    rows, columns = _grid(height, width, s["stride"])
    if flow is not None and flow.ndim == 6:
        flow = np.repeat(flow[:, None], heads, axis=1)
    each = s["select"] == "each"
    results = _matches((batch, heads, frames, rows, columns), s["topk"] * (slots if each else 1))
    for b, h, t, i, j in only or np.ndindex(batch, heads, frames, rows, columns):
        x, y = j * s["stride"], i * s["stride"]
        groups: list[list[tuple]] = []
        leading: list[list[tuple]] = []
        for slot, f in enumerate(searched_frames(s["start"] + t, clip, s["temporal_window"], s["causal"])):
            if f is None:
                groups.append([(False, -math.inf, 0.0, 0.0, -1)] * s["window"] ** 2)
                leading.append([])
                continue
            dx, dy = (0.0, 0.0) if slot == 0 or flow is None else flow[b, h, t, slot - 1, :, i, j]
            found = around(queries[b, h, t], keys[b, h, f], x, y, f, dx, dy, s)
            anchor: list[tuple] = []
            if s["self_match"] == "anchors" or (slot == 0 and s["self_match"] != "keep"):
                at = (moved(x, dx, keys.shape[-1]) - x, moved(y, dy, keys.shape[-2]) - y)
                anchor = [c for c in found if c[2:4] == at]
                assert len(anchor) == 1
                found = [(c[0] and c[2:4] != at, *c[1:]) for c in found]
            groups.append(found)
            leading.append([] if s["self_match"] == "exclude" else anchor)
        if not each:
            groups = [[c for group in groups for c in group]]
        kept = []
        for n, group in enumerate(groups):
            first = leading[n]
            kept += [c[1:] for c in first] + best(group, s["topk"] - len(first))
        for n, (score, dx, dy, f) in enumerate(kept):
            results[0][b, h, t, i, j, n] = score
            results[1][b, h, t, i, j, n] = dx, dy
            results[2][b, h, t, i, j, n] = f
    return results


def refine(query: Array, key: Array, offsets: Array, frames: Array, **s: Any) -> tuple[Array, Array, Array]:
    """`refine`; settings `s` must be complete."""
    heads = offsets.shape[1]
    queries, keys = _split(query, heads), _split(key, heads)
    results = _matches(offsets.shape[:5], s["topk"])
    for at in np.ndindex(*offsets.shape[:5]):
        b, h, t, i, j = at
        found: list[tuple] = []
        for n in range(offsets.shape[5]):
            f = int(frames[at][n])
            if not 0 <= f < keys.shape[2]:
                found += [(False, -math.inf, 0.0, 0.0, -1)] * s["window"] ** 2
                continue
            x, y = j * s["stride"], i * s["stride"]
            found += around(queries[b, h, t], keys[b, h, f], x, y, f, *offsets[at][n], s)
        for n, (score, dx, dy, f) in enumerate(best(found, s["topk"])):
            results[0][at][n], results[1][at][n], results[2][at][n] = score, (dx, dy), f
    return results


def search_flow(forward: Array, backward: Array, wt: int, stride: int, causal: bool) -> Array:
    """`search_flow`, one query at a time."""
    batch, frames, _, height, width = forward.shape
    forward, backward = (np.where(np.isfinite(f), f, 0.0).astype(np.float64) for f in (forward, backward))
    slots = wt + 1 if causal else 2 * wt + 1
    rows, columns = _grid(height, width, stride)
    result = np.zeros((batch, frames, slots - 1, 2, rows, columns))
    for b, t, i, j in np.ndindex(batch, frames, rows, columns):
        for slot, f in enumerate(searched_frames(t, frames, wt, causal)):
            if slot == 0 or f is None:
                continue
            step, flow = (1, forward) if f > t else (-1, backward)
            displacement = np.zeros(2)
            for now in range(t, f, step):
                px = inside(j * stride + displacement[0], width)
                py = inside(i * stride + displacement[1], height)
                displacement = displacement + sample(flow[b, now], px, py)
            result[b, t, slot - 1, :, i, j] = displacement
    return result


def _landings(i: int, j: int, rows: int, columns: int, s: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Where the patch pixels (u, v) of query (i, j) fall on the query grid: (row, column, u, v)."""
    reach = s["patch"] // 2
    found = []
    for v in range(-reach, reach + 1):
        for u in range(-reach, reach + 1):
            x, y = j * s["stride"] + u * s["dilation"], i * s["stride"] + v * s["dilation"]
            if x % s["stride"] == 0 and y % s["stride"] == 0:
                row, column = y // s["stride"], x // s["stride"]
                if 0 <= row < rows and 0 <= column < columns:
                    found.append((row, column, u * s["dilation"], v * s["dilation"]))
    return found


def gather_stack(value: Array, weights: Array, offsets: Array, frames: Array, stride: int) -> Array:
    """`gather_stack`."""
    batch, heads, time, rows, columns, topk = weights.shape
    values = _split(value, heads)
    result = np.zeros((batch, heads, topk, time, values.shape[3], rows, columns))
    for b, h, t, i, j, n in np.ndindex(*weights.shape):
        f = int(frames[b, h, t, i, j, n])
        if 0 <= f < values.shape[2]:
            dx, dy = offsets[b, h, t, i, j, n]
            px, py = moved(j * stride, dx, values.shape[5]), moved(i * stride, dy, values.shape[4])
            result[b, h, n, t, :, i, j] = weights[b, h, t, i, j, n] * sample(values[b, h, f], px, py)
    return result


def gather(value: Array, weights: Array, offsets: Array, frames: Array, **s: Any) -> Array:
    """`gather`: every query pushes its patch of sums to the query grid; then the mean."""
    batch, heads, time, rows, columns, topk = weights.shape
    values = _split(value, heads)
    height, width = values.shape[4:]
    total = np.zeros((batch, time, heads, values.shape[3], rows, columns))
    count = np.zeros((rows, columns))
    for i, j in np.ndindex(rows, columns):
        for row, column, u, v in _landings(i, j, rows, columns, s):
            count[row, column] += 1
            for b, h, t, n in np.ndindex(batch, heads, time, topk):
                f = int(frames[b, h, t, i, j, n])
                if 0 <= f < values.shape[2]:
                    px = moved(j * s["stride"], offsets[b, h, t, i, j, n, 0], width) + u
                    py = moved(i * s["stride"], offsets[b, h, t, i, j, n, 1], height) + v
                    total[b, t, h, :, row, column] += weights[b, h, t, i, j, n] * sample(
                        values[b, h, f], px, py
                    )
    return (total / count).reshape(batch, time, -1, rows, columns)


def scatter(
    source: Array, weights: Array, offsets: Array, frames: Array, size: tuple[int, int], **s: Any
) -> Array:
    """`scatter`: the matrix of `gather`, one unit pixel of value at a time, applied from the other side."""
    batch, heads, time = weights.shape[:3]
    channels = source.shape[2] // heads
    result = np.zeros((batch, time, heads, channels, *size))
    sources = source.astype(np.float64).reshape(batch, time, heads, channels, *source.shape[3:])
    for t, y, x in np.ndindex(time, *size):
        unit = np.zeros((batch, time, heads, *size))
        unit[:, t, :, y, x] = 1  # one pixel in each clip and head: these do not mix
        response = gather(unit, weights, offsets, frames, **s)  # (B, T, HD, Hq, Wq)
        result[:, t, :, :, y, x] = np.einsum("bthij,bthcij->bhc", response, sources)
    return result.reshape(batch, time, heads * channels, *size)
