from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan.errors import ConfigError
from stan.inference.tiling import TilePlan, blend_weights, ramp, spans

anything = settings(deadline=None, derandomize=True, max_examples=60)


@st.composite
def coverings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Length, tile, overlap and multiple."""
    overlap = draw(st.integers(0, 100))
    multiple = draw(st.sampled_from([1, 2, 3, 4, 8, 32]))
    return draw(st.integers(1, 900)), overlap + draw(st.integers(1, 300)), overlap, multiple


@anything
@given(coverings())
def test_tiles_cover_everything_aligned_and_overlapping(case: tuple[int, int, int, int]) -> None:
    length, tile, overlap, multiple = case
    tiles = spans(length, tile, overlap, multiple)
    largest = max(-(-tile // multiple) * multiple, -(-overlap // multiple) * multiple + multiple)
    assert tiles[0][0] == 0
    assert tiles[-1][1] == length
    assert all(start % multiple == 0 for start, _ in tiles)
    assert all(0 < stop - start <= largest for start, stop in tiles)
    for (_, stop), (start, next_stop) in pairwise(tiles):
        assert stop - start >= overlap
        assert next_stop > stop
    sizes = {stop - start for start, stop in tiles[:-1]}
    assert len(sizes) <= 1
    if sizes:
        assert 0 <= sizes.pop() - (tiles[-1][1] - tiles[-1][0]) < multiple


@anything
@given(coverings())
def test_fewest_tiles(case: tuple[int, int, int, int]) -> None:
    length, tile, overlap, _ = case
    needed = 1 if length <= tile else -(-(length - tile) // (tile - overlap)) + 1
    assert len(spans(length, tile, overlap)) == needed


@anything
@given(coverings())
def test_weights_sum_to_one(case: tuple[int, int, int, int]) -> None:
    length, tile, overlap, multiple = case
    tiles = spans(length, tile, overlap, multiple)
    total = torch.zeros(length)
    for (start, stop), weight in zip(tiles, blend_weights(tiles)):
        assert weight.min() >= 0
        assert weight.max() <= 1
        total[start:stop] += weight
    assert (total - 1).abs().max() <= 2e-7


def test_weights_leave_out_what_lacks_context() -> None:
    first, second = blend_weights([(0, 64), (32, 96)])
    assert first[:32].eq(1).all()
    assert second[:8].eq(0).all()  # the first quarter of 32 shared positions
    assert first[-8:].eq(0).all()
    assert second[32:].eq(1).all()
    assert second[8:24].diff().gt(0).all()


def test_ramp_is_symmetric_and_short_ones_are_sensible() -> None:
    for n in range(1, 40):
        assert torch.allclose(ramp(n) + ramp(n).flip(0), torch.ones(n, dtype=torch.float64))
    assert ramp(0).shape == (0,)
    assert ramp(1).tolist() == [0.5]
    assert ramp(4).tolist() == [0, 0.25, 0.75, 1]


def test_tiles_are_evenly_spread() -> None:
    assert spans(854, 448, 64, 32) == ((0, 352), (256, 608), (512, 854))  # not 448 + 448 + 86
    assert spans(100, None, 32, 8) == ((0, 100),)
    assert spans(100, 104, 32, 8) == ((0, 100),)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"frames": 0}, "frames=0"),
        ({"frames": 4, "frame_overlap": 4}, "frame_overlap=4"),
        ({"frame_overlap": -1}, "frame_overlap=-1"),
        ({"overlap": -1}, "overlap=-1"),
        ({"height": 64, "overlap": 64}, "height=64"),
        ({"width": 0}, "width=0"),
    ],
)
def test_impossible_plans_are_refused(wrong: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TilePlan(**wrong)


@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_halving_ends_at_the_smallest_and_every_step_is_smaller(multiple: int) -> None:
    plan: TilePlan | None = TilePlan(16, 4, None, None, 64)
    volume = float("inf")
    steps = 0
    while plan is not None:
        height, width = plan.tile(480, 854, multiple)
        assert plan.frames * height * width < volume
        volume = plan.frames * height * width
        plan = plan.halved(480, 854, multiple)
        steps += 1
    assert 5 < steps < 30
    assert volume <= 5 * 64 * 64


@pytest.mark.parametrize("frames", [3, 16, 17, 28, 29, 100])
def test_work_counts_what_is_computed(frames: int) -> None:
    plan = TilePlan(16, 4, 256, 256, 64)
    rows, columns = plan.spans(480, 854, 8)
    area = sum((b - a) * (d - c) for a, b in rows for c, d in columns)
    chunks, end = 1, 16
    while end < frames:
        chunks, end = chunks + 1, end + 12
    computed = chunks * min(16, frames) * area
    assert plan.work(480, 854, 8, frames) == pytest.approx(computed / (frames * 480 * 854))
