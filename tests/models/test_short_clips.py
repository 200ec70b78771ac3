"""Clips of fewer frames than are searched: each frame is looked at as often as it is there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stan import ops
from stan.models import build
from stan.models.aggregation import Values
from stan.models.attention import Search, SpaceTimeAttention
from stan.registry import aggregations, alignments
from tests.models.test_network import video

NETWORKS = ["stan", "unet_small", "unet_tiny"]


def attention(
    alignment: str = "shifted", *, window: int = 3, matches: int = 5, select: str = "all"
) -> SpaceTimeAttention:
    torch.manual_seed(0)
    search = Search(
        heads=2, key_channels=4, window=3, temporal_window=2, search_matches=matches, refine_window=1, patch=3,
        select=select, causal=False,
    )  # fmt: skip
    values = Values(heads=2, value_channels=4, channels=8, matches=matches, kernel=1)
    return SpaceTimeAttention(
        8, heads=2, key_channels=4, value_channels=4, alignment=alignments.build(alignment, search), matches=matches,
        scale=0.1, learn_scale=False, aggregate=aggregations.build("sum", values),
    )  # fmt: skip


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_matches_are_the_best_of_the_frames_that_are_there(frames: int) -> None:
    """Against one search for each pair of frames, the best of all of them."""
    module, x = attention(), torch.randn(frames, 8, 12, 14)
    with torch.no_grad():
        _, found, weights = module(x, 1, None, None)
        query, key = module.query(x)[None], module.key(x)[None]
        for t in range(frames):
            pairs = [
                ops.shifted_nls(
                    query[:, t : t + 1],
                    key[:, f : f + 1],
                    window=3,
                    temporal_window=0,
                    topk=5,
                    heads=2,
                    patch=3,
                )
                for f in range(frames)
            ]
            best = torch.cat([pair.scores for pair in pairs], -1).sort(descending=True).values[..., :5]
            torch.testing.assert_close(found.scores[:, :, t : t + 1], best)
    assert found.frames.min() == 0
    assert found.frames.max() == frames - 1
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


@pytest.mark.parametrize("select", ["all", "each"])
@pytest.mark.parametrize("alignment", ["shifted", "unshifted", "deformable", "deformable_shifted"])
def test_places_that_nothing_fills_are_empty(alignment: str, select: str) -> None:
    """10 matches in 5 frames where there are 2: what is missing has no weight, no frame and no gradient."""
    module = attention(alignment, matches=10 if select == "all" else 2, select=select)
    if select == "each":
        module.matches = 10
    x = torch.randn(2, 8, 12, 14, requires_grad=True)
    y, found, weights = module(x, 1, torch.zeros(1, 5, 4, 2, 12, 14), None)
    missing = found.frames < 0
    assert missing.any() == (select == "each" or alignment.startswith("deformable"))
    assert (found.scores[missing] == -torch.inf).all()
    assert (weights[missing] == 0).all()
    assert (found.frames < 2).all()
    y.square().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_no_place_is_looked_at_twice(name: str, frames: int) -> None:
    """A frame that is there once gives each of its places once, the query's own included."""
    torch.manual_seed(0)
    model = build(name).eval()
    with torch.no_grad():
        clean, maps = model(video(1, frames, 3, 64, 64), sigma=25, return_matches=True)
    assert clean.isfinite().all()
    seen = maps[0]
    places = torch.cat([seen.offsets, seen.frames[..., None]], -1).flatten(0, -3)  # (N, K, 3)
    used = seen.weights.flatten(0, -2) > 0
    for place, use in zip(places[:: len(places) // 500 + 1], used[:: len(places) // 500 + 1]):
        assert len(place[use].unique(dim=0)) == use.sum()
        assert (place[use][:, 2] >= 0).all()


@pytest.mark.parametrize("name", ["unet_tiny", "stan_tiny"])
def test_frames_far_away_do_not_matter(name: str) -> None:
    """The first frame of a clip of W_t frames, and of a longer one: the same to rounding."""
    torch.manual_seed(0)
    model = build(name).eval()
    wide = 2 * model.temporal_reach + 1
    clip = video(1, wide + 2, 3, 32, 32)
    flow = torch.zeros(1, wide + 2, 2, 32, 32)

    def first(frames: int) -> Tensor:
        from stan.flow import FlowPair

        with torch.no_grad():
            return model(clip[:, :frames], sigma=25, flow=FlowPair(flow[:, :frames], flow[:, :frames]))[:, 0]

    torch.testing.assert_close(first(wide), first(wide + 2), rtol=0, atol=1e-5)
