"""Inputs large enough for the fast paths of a kernel: tiles, vectors, ragged ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stan import ops
from tests.ops import brute_force
from tests.ops.cases import Case, array, case, generator, gradients, on
from tests.ops.conftest import Place

WINDOW = {"window": 9, "topk": 10, "size": (23, 41), "channels": 16}


@pytest.mark.parametrize("motion", ["ragged", "smooth", "whole", "none"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"metric": "dot"},
        {"heads": 2, "channels": 5, "select": "each"},
        {"patch": 3, "window": 5, "channels": 7},
        {"stride": 2, "slide": False, "channels": 33},
        {"key_stride": 0.5, "window": 6, "self_match": "exclude"},
        {"key_size": (17, 19), "key_stride": 2.0, "self_match": "first"},
        {"window": 1, "topk": 3, "metric": "dot"},
        {"window": 15, "topk": 40, "causal": True, "channels": 4},
    ],
    ids=str,
)
def test_some_queries_equal_brute_force(place: Place, kwargs: dict[str, Any], motion: str) -> None:
    """The corners and random queries; on exact numbers, so ties included."""
    c = case(**WINDOW | {"flow": "none" if motion == "none" else "quarters"} | kwargs)
    flow = c.flow
    if motion == "smooth":  # nearly the same for neighbours
        flow = 0.25 * torch.arange(flow.shape[-1]).div(7).floor().expand(flow.shape) - 1.25
    elif motion == "whole":
        flow = flow.round()
    c = Case(c.query, c.key, flow, c.settings)
    found = ops.shifted_nls(*on(place.device, c.query, c.key, c.flow), **c.settings, backend=place.backend)
    shape = found.scores.shape[:5]
    corners = [(0, 0, 0, i, j) for i in (0, shape[3] - 1) for j in (0, shape[4] - 1)]
    random = generator(7)
    only = corners + [tuple(random.integers(0, shape)) for _ in range(16)]
    truth = brute_force.search(array(c.query), array(c.key), array(c.flow), only=only, **c.settings)
    at = tuple(np.array(only).T)
    for mine, true in zip((found.scores, found.offsets, found.frames), truth):
        np.testing.assert_array_equal(array(mine)[at], true[at])


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_equal_those_of_grid_sample(place: Place, metric: str, deterministic: bool) -> None:
    """At the matches found, the score is rebuilt from grid_sample; autograd does the rest."""
    random = generator(3)
    height, width, heads, channels = 21, 37, 2, 6
    query, key = (
        torch.from_numpy(random.normal(size=(1, 3, heads * channels, height, width))).float()
        for _ in range(2)
    )
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    start = torch.stack([x, y])  # (2, H, W)
    last = torch.tensor([width - 1, height - 1]).reshape(2, 1, 1)
    flow = torch.from_numpy(random.normal(size=(1, 3, 2, 2, height, width)) * 2).float()
    flow = (start + flow).clamp(torch.zeros_like(last), last) - start  # no anchor is reflected
    query, key, flow = on(place.device, query, key, flow)
    matches = ops.shifted_nls(
        query, key, flow, window=5, topk=6, heads=heads, metric=metric, backend=place.backend
    )
    order = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 1, 0]], device=place.device)  # frames by slot

    def rebuilt(query: Tensor, key: Tensor, flow: Tensor) -> Tensor:
        scores = []
        for t in range(3):
            slot = (matches.frames[0, :, t, ..., None] == order[t]).int().argmax(-1)  # (HD, H, W, K)
            moved = torch.cat([torch.zeros_like(flow[0, t, :1]), flow[0, t]])  # (W_t, 2, H, W)
            moved = moved.permute(2, 3, 0, 1)[None, :, :, :, :].expand(heads, -1, -1, -1, -1)
            moved = moved.gather(3, slot[..., None].expand(-1, -1, -1, -1, 2))  # (HD, H, W, K, 2)
            offset = matches.offsets[0, :, t] + moved - moved.detach()
            position = start.to(place.device).permute(1, 2, 0)[None, :, :, None] + offset
            grid = (2 * position / last.to(place.device).flatten() - 1).flatten(2, 3)  # (HD, H, W*K, 2)
            q = query[0, t].reshape(heads, channels, height, width, 1)
            total = 0.0
            for f in range(3):
                image = key[0, f].reshape(heads, channels, height, width)
                k = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
                k = k.reshape(heads, channels, height, width, -1)
                score = (q * k).sum(1) if metric == "dot" else -(q - k).square().sum(1)
                total = total + score * (matches.frames[0, :, t] == f)
            scores.append(total)
        return torch.stack(scores, dim=1)[None]

    def searched(query: Tensor, key: Tensor, flow: Tensor) -> Tensor:
        return ops.shifted_nls(
            query, key, flow, window=5, topk=6, heads=heads, metric=metric, backend=place.backend
        ).scores

    torch.testing.assert_close(rebuilt(query, key, flow), matches.scores, rtol=1e-4, atol=1e-3)
    inside = (start + flow.cpu()[0] > 0).all() & (start + flow.cpu()[0] < last).all()
    assert not inside  # some anchors lie on the border: their derivative is one-sided, and left out below
    theirs = gradients(rebuilt, query, key, flow)
    torch.use_deterministic_algorithms(deterministic)
    try:
        mine = gradients(searched, query, key, flow)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(mine[:2], theirs[:2]):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)
    position = (start + flow.cpu()).to(place.device)
    whole = (position == position.round()).any(3, keepdim=True).expand_as(flow)
    assert whole.float().mean() < 0.3
    torch.testing.assert_close(mine[2][~whole], theirs[2][~whole], rtol=1e-3, atol=1e-2)
