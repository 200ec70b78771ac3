"""Deformable attention against a plain way of the same, and both of its variants in a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import stan.models
from stan import ops
from stan.errors import ConfigError
from stan.models.attention import Deformable, DeformableShifted, Search

SEARCH = Search(
    heads=2, key_channels=3, window=5, temporal_window=1, search_matches=27, refine_window=1, patch=1, select="all",
    causal=False,
)  # fmt: skip


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 4, 6, 12, 14, generator=draw) for _ in range(2))
    return query, key, torch.randn(1, 4, 2, 2, 12, 14, generator=draw)


def test_untrained_places_lie_on_a_grid_around_the_flow_and_are_scored_there() -> None:
    query, key, flow = inputs()
    module = Deformable(SEARCH)
    torch.nn.init.zeros_(module.predict[-1].weight)
    torch.nn.init.zeros_(module.predict[-1].bias)
    found = module(query, key, flow, None)
    assert found.scores.shape == (1, 2, 4, 12, 14, 27)
    assert (found.scores.diff(dim=-1) <= 0).all()
    t, y, x = 1, 6, 7  # searches frames 1, 2, 0
    grid = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    shifts = {
        1: (0.0, 0.0),
        2: tuple(flow[0, t, 0, :, y, x].tolist()),
        0: tuple(flow[0, t, 1, :, y, x].tolist()),
    }
    expected = []
    for frame, (fx, fy) in shifts.items():
        for dx, dy in grid:
            place = torch.tensor([2 * (x + fx + dx) / 13 - 1, 2 * (y + fy + dy) / 11 - 1]).view(1, 1, 1, 2)
            there = F.grid_sample(key[0, frame][None], place, align_corners=True)[0, :, 0, 0]
            distance = (query[0, t, :, y, x] - there).square()[:3].sum()  # the first head
            expected.append(-float(distance))
    assert found.scores[0, 0, t, y, x].tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-4)


def test_searched_places_are_the_best_of_each_frame() -> None:
    query, key, flow = inputs()
    found = DeformableShifted(SEARCH)(query, key, flow, None)
    each = ops.shifted_nls(
        query, key, flow, window=5, topk=9, temporal_window=1, heads=2, select="each", slide=False
    )
    assert torch.equal(found.scores, each.scores.sort(-1, descending=True).values)
    counts = torch.stack([(found.frames[0, 0, 1] == frame).sum(-1) for frame in range(3)])
    assert (counts == 9).all()


@pytest.mark.parametrize("attention", ["deformable", "deformable_shifted"])
@pytest.mark.parametrize(
    "settings",
    [
        {"search_matches": 9, "matches": 9},
        {"select": "each", "search_matches": 2, "matches": 6},
        {"causal": True, "search_matches": 4, "matches": 3},
    ],
)
def test_variants_train_in_a_network(attention: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = stan.models.build("unet_tiny", attention=attention, temporal_window=1, flow="zero", **settings)
    video = torch.rand(1, 3, 3, 16, 20)
    clean, maps = model(video, 25, return_matches=True)
    clean.square().mean().backward()
    assert maps[0].weights.shape[-1] == settings["matches"]
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    again = stan.models.build(model.name, **model.settings)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(video, 25), clean)


def test_matches_that_cannot_be_shared_out_are_told() -> None:
    with pytest.raises(ConfigError, match=r"multiple of the 5 searched frames.*such as 20"):
        stan.models.build("unet_tiny", attention="deformable", window=5, search_matches=23)
