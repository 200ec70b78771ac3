"""`shifted_nls` against a brute force, and against truths known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stan import ops
from stan.ops import reference
from tests.ops import brute_force
from tests.ops.cases import Case, array, assert_equal_matches, case, generator, on, quarters
from tests.ops.conftest import Place

ORACLE = [
    {},
    {"metric": "dot"},
    {"patch": 3},
    {"patch": 3, "dilation": 2, "metric": "dot"},
    {"patch": 5, "size": (2, 3)},
    {"stride": 2},
    {"stride": 2, "patch": 3, "metric": "dot"},
    {"key_stride": 0.5, "window": 4},
    {"key_stride": 2.0},
    {"key_stride": 0.25, "window": 2},
    {"slide": False},
    {"slide": False, "patch": 3, "stride": 2, "key_stride": 2.0},
    {"slide": False, "topk": 27},
    {"key_size": (6, 3)},
    {"key_size": (2, 7), "stride": 2, "patch": 3},
    {"key_size": (1, 1), "slide": False},
    {"heads": 4, "channels": 1, "frames": 3},
    {"heads": 4, "flow": "heads", "channels": 1, "metric": "dot"},
    {"causal": True, "topk": 12},
    {"causal": True, "temporal_window": 2, "select": "each", "topk": 2},
    {"causal": True, "frames": 1, "temporal_window": 2},
    {"temporal_window": 2, "frames": 6, "size": (3, 3)},
    {"temporal_window": 0, "flow": "none"},
    {"flow": "none"},
    {"frames": 5, "size": (2, 4), "batch": 2},
    {"select": "each", "topk": 9},
    {"select": "each", "slide": False, "topk": 9},
    {"self_match": "first"},
    {"self_match": "first", "select": "each", "metric": "dot"},
    {"self_match": "first", "key_size": (3, 2), "stride": 2},
    {"self_match": "exclude"},
    {"self_match": "exclude", "select": "each", "topk": 8},
    {"self_match": "exclude", "topk": 26, "key_stride": 2.0},
    {"self_match": "anchors", "select": "each", "topk": 2},
    {"self_match": "anchors", "select": "each", "topk": 9, "causal": True, "temporal_window": 2},
    {"self_match": "anchors", "select": "each", "topk": 1, "metric": "dot", "key_size": (3, 2), "stride": 2},
    {"self_match": "anchors", "select": "each", "topk": 4, "slide": False, "reach": 40, "key_stride": 0.5},
    {"window": 1, "topk": 3},
    {"window": 2},
    {"window": 7, "topk": 20, "size": (4, 5)},
    {"window": 7, "topk": 60, "size": (4, 5), "slide": False},
    {"reach": 40},
    {"size": (1, 6)},
    {"size": (5, 1), "frames": 3, "slide": False, "patch": 3},
    {"channels": 7},
    {"frames": 5, "queries": 2, "start": 3},
    {"frames": 6, "queries": 3, "start": 1, "patch": 3, "heads": 2, "flow": "heads", "batch": 2},
    {"frames": 4, "queries": 1, "start": 0, "select": "each", "self_match": "anchors", "topk": 2},
    {"frames": 5, "queries": 2, "start": 2, "causal": True, "temporal_window": 2, "key_size": (6, 3)},
]


def found(c: Case, place: Place) -> ops.Matches:
    return ops.shifted_nls(*on(place.device, c.query, c.key, c.flow), **c.settings, backend=place.backend)


def truth(c: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return brute_force.search(array(c.query), array(c.key), array(c.flow), **c.settings)


@pytest.mark.parametrize(
    "kwargs", ORACLE, ids=lambda kw: "-".join(f"{k}={v}" for k, v in kw.items()) or "plain"
)
def test_equals_brute_force(place: Place, kwargs: dict[str, Any]) -> None:
    c = case(**kwargs)
    assert_equal_matches(found(c, place), *truth(c))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    wt, causal = draw(st.integers(0, 2)), draw(st.booleans())
    slots = wt + 1 if causal else 2 * wt + 1
    window = draw(st.integers(1, 4))
    select = draw(st.sampled_from(["all", "each"]))
    self_match = draw(
        st.sampled_from(["keep", "first", "exclude", "anchors"][: 4 if select == "each" else 3])
    )
    candidates = (slots if select == "all" else 1) * window**2 - (self_match == "exclude")
    if candidates == 0:
        self_match, candidates = "keep", 1
    side = st.integers(1, 5)
    frames = draw(st.integers(1 if causal else slots, slots + 1))
    start = draw(st.integers(0, frames - 1))
    return case(
        seed=draw(st.integers(0, 2**32)),
        frames=frames,
        start=start,
        queries=draw(st.integers(1, frames - start)),
        channels=draw(st.integers(1, 3)),
        size=(draw(side), draw(side)),
        key_size=draw(st.none() | st.tuples(side, side)),
        flow=draw(st.sampled_from(["none", "quarters", "heads"])),
        reach=draw(st.sampled_from([1, 4, 30])),
        window=window,
        temporal_window=wt,
        topk=draw(st.integers(1, min(candidates, 12))),
        heads=draw(st.integers(1, 2)),
        patch=draw(st.sampled_from([1, 1, 3])),
        dilation=draw(st.integers(1, 2)),
        stride=draw(st.integers(1, 3)),
        key_stride=draw(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0])),
        metric=draw(st.sampled_from(["l2", "dot"])),
        select=select,
        self_match=self_match,
        slide=draw(st.booleans()),
        causal=causal,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(c=cases())
def test_equals_brute_force_on_any_case(place: Place, c: Case) -> None:
    assert_equal_matches(found(c, place), *truth(c))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), step=st.sampled_from([0.3, 0.7, 1.0, 1.9]), slide=st.booleans())
def test_close_to_brute_force_on_arbitrary_numbers(place: Place, seed: int, step: float, slide: bool) -> None:
    """With rounding, near-ties may swap: so scores must agree, and matches have the score they claim."""
    random = generator(seed)
    query, key = (torch.from_numpy(random.normal(size=(1, 3, 3, 3, 4))).float() for _ in range(2))
    flow = torch.from_numpy(random.normal(size=(1, 3, 2, 2, 3, 4)) * 2).float()
    c = Case(query, key, flow, case(patch=3, key_stride=step, slide=slide).settings)
    matches, (scores, _, _) = found(c, place), truth(c)
    np.testing.assert_allclose(array(matches.scores), scores, rtol=2e-5, atol=2e-4)
    alone = c.settings | {"window": 1}
    claimed, _, _ = brute_force.refine(
        array(query), array(key), array(matches.offsets), array(matches.frames), **alone
    )
    claimed = np.sort(claimed, axis=-1)[..., ::-1]
    np.testing.assert_allclose(array(matches.scores), claimed, rtol=2e-5, atol=2e-3)
    assert bool((matches.scores.diff(dim=-1).nan_to_num(0.0) <= 0).all())


@pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])
@pytest.mark.parametrize(("window", "patch"), [(3, 7), (5, 1)])
def test_some_frames_get_what_they_get_in_the_whole(
    place: Place, window: int, patch: int, causal: bool
) -> None:
    random = generator(3)
    c = case(frames=7, temporal_window=2, window=window, patch=patch, causal=causal, stride=2, size=(9, 11))
    query, key = (torch.from_numpy(random.normal(size=c.key.shape)).float() for _ in range(2))
    query, key, flow = on(place.device, query, key, c.flow)
    whole = ops.shifted_nls(query, key, flow, **c.settings, backend=place.backend)
    search = ops.ShiftedNLS(**c.settings, backend=place.backend)
    for begin, end in ((0, 7), (0, 1), (2, 5), (6, 7)):
        part = search(query[:, begin:end], key, flow[:, begin:end], begin)
        for mine, theirs in zip(part, whole):
            assert torch.equal(mine, theirs[:, :, begin:end])


def test_frames_are_searched_in_slot_order(place: Place) -> None:
    def order(frames: int, temporal_window: int, causal: bool = False) -> list[list[int]]:
        video = torch.zeros(1, frames, 1, 1, 1, device=place.device)
        matches = ops.shifted_nls(
            video,
            video,
            window=1,
            topk=1,
            select="each",
            temporal_window=temporal_window,
            causal=causal,
            backend=place.backend,
        )
        return matches.frames[0, 0, :, 0, 0].tolist()

    assert order(5, 1) == [[0, 1, 2], [1, 2, 0], [2, 3, 1], [3, 4, 2], [4, 3, 2]]
    assert order(5, 2)[1] == [1, 2, 3, 4, 0]
    assert order(5, 2)[2] == [2, 3, 4, 1, 0]
    assert order(5, 2)[4] == [4, 3, 2, 1, 0]
    assert order(3, 2, causal=True) == [[0, -1, -1], [1, 0, -1], [2, 1, 0]]
    assert order(1, 0) == [[0]]


def test_ties_go_to_the_lower_candidate(place: Place) -> None:
    """On a constant video all candidates tie: they come in the order of slot, row, column."""
    video = torch.ones(1, 3, 2, 5, 5, device=place.device)
    matches = ops.shifted_nls(video, video, window=3, topk=27, backend=place.backend)
    grid = [(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert matches.offsets[0, 0, 1, 2, 2].tolist() == [list(xy) for xy in grid * 3]
    assert matches.frames[0, 0, 1, 2, 2].tolist() == [1] * 9 + [2] * 9 + [0] * 9


def test_window_of_one_is_a_flow_warp(place: Place) -> None:
    """ws=1 trusts the flow: gathering by it is what grid_sample with reflection does."""
    random = generator(1)
    value = torch.from_numpy(random.normal(size=(2, 3, 3, 6, 7))).float().to(place.device)
    flow = torch.from_numpy(random.uniform(-4, 4, (2, 3, 2, 2, 6, 7))).float().to(place.device)
    matches = ops.shifted_nls(value, value, flow, window=1, topk=1, select="each", backend=place.backend)
    one = torch.zeros_like(matches.scores)
    one[..., 1] = 1  # the frame of slot 1: t+1, but t-1 for the last
    warped = ops.gather(value, one, matches.offsets, matches.frames, backend=place.backend)
    x = torch.arange(7, device=place.device) + flow[:, :, 0, 0]
    y = torch.arange(6, device=place.device)[:, None] + flow[:, :, 0, 1]
    grid = torch.stack([x / 3 - 1, y / 2.5 - 1], dim=-1).flatten(0, 1)  # (B*T, H, W, 2)
    other = value[:, [1, 2, 1]].flatten(0, 1)
    expected = F.grid_sample(other, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    torch.testing.assert_close(warped.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_zero_flow_in_one_frame_is_neighbourhood_attention(place: Place) -> None:
    """Against dense attention under a mask of each pixel's 3 x 3 neighbours, shifted in at borders."""
    random = generator(2)
    height, width, channels = 5, 6, 4
    query, key, value = (
        torch.from_numpy(random.normal(size=(1, 1, channels, height, width))).float().to(place.device)
        for _ in range(3)
    )
    first_row = np.clip(np.arange(height) - 1, 0, height - 3)
    first_column = np.clip(np.arange(width) - 1, 0, width - 3)
    mask = torch.zeros(height, width, height, width, dtype=torch.bool, device=place.device)
    for y in range(height):
        for x in range(width):
            r, c = first_row[y], first_column[x]
            mask[y, x, r : r + 3, c : c + 3] = True
    rows = [t.flatten(3)[0, 0].T for t in (query, key, value)]
    logits = (0.7 * rows[0] @ rows[1].T).masked_fill(~mask.reshape(height * width, -1), -math.inf)
    expected = (logits.softmax(-1) @ rows[2]).T.reshape(1, 1, channels, height, width)
    found = ops.shifted_attention(
        query,
        key,
        value,
        scale=0.7,
        window=3,
        temporal_window=0,
        topk=9,
        metric="dot",
        backend=place.backend,
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wild", [1e9, -3.4e38, 7.0, -9.0])
def test_anchor_of_a_flow_far_outside_is_clamped(place: Place, wild: float) -> None:
    c = case(window=1, topk=1, select="each", size=(3, 4))
    c.flow[:] = wild
    matches = found(c, place)
    corner = {True: (0, 0), False: (3, 2)}[wild > 0]  # reflected past the other side, then clamped there
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1)
    positions = array(matches.offsets)[0, 0, :, :, :, 1:] + grid[None, :, :, None]
    if abs(wild) > 10:
        np.testing.assert_array_equal(positions, np.broadcast_to(corner, positions.shape))
    assert_equal_matches(matches, *truth(c))


def test_flow_that_is_not_finite_counts_as_zero(place: Place) -> None:
    c = case(slide=False, size=(4, 4))
    broken, zeroed = c.flow.clone(), c.flow.clone()
    for n, bad in enumerate([math.nan, math.inf, -math.inf]):
        broken[:, n, :, 0, n], zeroed[:, n, :, 0, n] = bad, 0  # one component of a row of queries
        broken[:, n, 1, :, 3, 2], zeroed[:, n, 1, :, 3, 2] = bad, 0  # both of one query
    first, second = (found(Case(c.query, c.key, flow, c.settings), place) for flow in (broken, zeroed))
    for a, b in zip(first, second):
        assert torch.equal(a, b)


def test_nan_scores_rank_last(place: Place) -> None:
    c = case(flow="none", topk=27, slide=False, size=(5, 5))
    c.key[0, 1, 0, 2, 2] = math.nan
    matches = found(c, place)
    assert_equal_matches(matches, *truth(c))
    at = matches.scores[0, 0, 1, 2, 2]
    assert bool(at.isnan()[-1])
    assert int(at.isnan().sum()) == 1
    edge = matches.scores[0, 0, 1, 1, 0]  # three invalid candidates in each frame come even after NaN
    assert edge.isneginf().nonzero().flatten().tolist() == list(range(18, 27))
    c.query[0, 0, 0, 1, 1] = math.nan  # all scores of one query
    assert_equal_matches(found(c, place), *truth(c))


@pytest.mark.parametrize("kwargs", [{}, {"metric": "dot"}, {"patch": 3}, {"key_stride": 0.5}], ids=str)
def test_nan_in_the_key_stays_where_it_is(place: Place, kwargs: dict[str, Any]) -> None:
    """Only candidates that have it among their taps, with a weight above zero, are spoilt."""
    c = case(topk=27, size=(5, 5), **kwargs)
    c.key[0, 1, 0, 2, 2] = c.key[0, 2, 1, 0, 4] = math.nan
    c.flow[:, :, :, 1, ::2] = c.flow[:, :, :, 1, ::2].round()  # whole in y alone, for every other row
    assert_equal_matches(found(c, place), *truth(c))


def test_a_score_that_overflows_is_still_a_match(place: Place) -> None:
    """Its score is -inf as that of an empty place, but it comes before, and before NaN."""
    query = torch.zeros(1, 1, 1, 1, 4, device=place.device)
    key = torch.tensor([math.nan, 1e30, 1.0, 2.0], device=place.device).reshape(query.shape)
    matches = ops.shifted_nls(
        query, key, window=5, temporal_window=0, topk=25, slide=False, backend=place.backend
    )
    at = (0, 0, 0, 0, 1)  # the query at x = 1 reaches all four pixels
    assert matches.offsets[at][:4, 0].tolist() == [1, 2, 0, -1]
    assert matches.scores[at][:3].tolist() == [-1, -4, -math.inf]
    assert bool(matches.scores[at][3].isnan())
    assert matches.frames[at].tolist() == [0] * 4 + [-1] * 21


def test_empty_matches(place: Place) -> None:
    """More places than valid candidates: the rest says so, and nothing downstream is poisoned."""
    c = case(window=5, topk=60, size=(3, 4), slide=False, flow="none")
    matches = found(c, place)
    corner = matches.scores[0, 0, 1, 0, 0]
    assert int(corner.isneginf().sum()) == 60 - 3 * 9
    assert matches.frames[0, 0, 1, 0, 0, 27:].tolist() == [-1] * 33
    assert not matches.offsets[0, 0, 1, 0, 0, 27:].any()
    weights = ops.weights(matches.scores)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights[0, 0, 1, 0, 0, 27:].any()
    again = ops.refine(*on(place.device, c.query, c.key), *matches[1:], backend=place.backend)
    assert torch.equal(again.frames, matches.frames)
    assert torch.equal(again.scores, matches.scores)


def test_whole_flow_needs_no_interpolation(place: Place) -> None:
    """Whole-valued flow gives the same bits whether or not other queries need interpolation."""
    random = generator(5)
    query, key = (torch.from_numpy(random.normal(size=(1, 3, 6, 6, 7))).float() for _ in range(2))
    flow = torch.from_numpy(random.integers(-3, 4, (1, 3, 2, 2, 6, 7))).float()
    mixed = torch.stack([flow, flow + 0.3], dim=1)  # two heads
    s = case(patch=3, metric="l2").settings | {"window": 5, "topk": 8}
    alone = found(Case(query, key, flow, s), place)
    both = found(Case(query.repeat(1, 1, 2, 1, 1), key.repeat(1, 1, 2, 1, 1), mixed, s | {"heads": 2}), place)
    for a, b in zip(alone, both):
        assert torch.equal(a[:, 0], b[:, 0])
    rounded = found(Case(query, key, (flow + 0.3).round(), s), place)
    for a, b in zip(alone, rounded):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(place: Place, dtype: torch.dtype) -> None:
    """Whole numbers are exact in all types, so the scores are too."""
    c = case(patch=3, heads=2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for flow_dtype in (torch.float32, torch.float16, torch.float64):
        matches = found(Case(c.query.to(dtype), c.key.to(dtype), c.flow.to(flow_dtype), c.settings), place)
        assert matches.scores.dtype == matches.offsets.dtype == wide
        assert matches.frames.dtype == torch.int32
        assert_equal_matches(matches, *truth(c))


def test_empty_batch(place: Place) -> None:
    c = case()
    query, key, flow = (t[:0].to(place.device).requires_grad_() for t in (c.query, c.key, c.flow))
    matches = ops.shifted_nls(query, key, flow, **c.settings, backend=place.backend)
    assert matches.scores.shape == (0, 1, 3, 4, 5, 4)
    assert matches.offsets.shape == (0, 1, 3, 4, 5, 4, 2)
    (matches.scores.sum() + matches.offsets.sum()).backward()
    assert query.grad.shape == query.shape
    assert flow.grad.shape == flow.shape


def test_memory_layout_does_not_matter(place: Place) -> None:
    c = case(batch=2, size=(5, 6), heads=2)
    expected = found(c, place)
    query, key, flow = on(place.device, c.query, c.key, c.flow)
    padded = F.pad(query, (1, 2, 3, 1))[..., 3:8, 1:7]  # a view into something larger
    swapped = key.transpose(-1, -2).contiguous().transpose(-1, -2)
    last = flow.permute(0, 1, 4, 5, 2, 3).contiguous().permute(0, 1, 4, 5, 2, 3)
    assert not (padded.is_contiguous())
    assert not (swapped.is_contiguous())
    assert not (last.is_contiguous())
    for a, b in zip(ops.shifted_nls(padded, swapped, last, **c.settings, backend=place.backend), expected):
        assert torch.equal(a, b)


def test_expanded_inputs(place: Place) -> None:
    c = case(size=(5, 6))
    flow = quarters(generator(3), 1, 1, 1, 2, 1, 1)
    views = [c.query[:, :1].expand(2, 3, -1, -1, -1), c.key.expand(2, -1, -1, -1, -1)]
    wide = flow.expand(2, 3, 2, 2, 5, 6)
    solid = Case(*(v.contiguous() for v in views), wide.contiguous(), c.settings)
    views, wide = on(place.device, *views), wide.to(place.device)
    for a, b in zip(ops.shifted_nls(*views, wide, **c.settings, backend=place.backend), found(solid, place)):
        assert torch.equal(a, b)


def test_inputs_are_left_alone(place: Place) -> None:
    c = case(self_match="exclude")
    before = [t.clone() for t in (c.query, c.key, c.flow)]
    tensors = on(place.device, c.query, c.key, c.flow)
    ops.shifted_nls(*tensors, **c.settings, backend=place.backend)
    for tensor, copy in zip(tensors, before):
        assert torch.equal(tensor.cpu(), copy)


def test_inference_mode(place: Place) -> None:
    c = case()
    with torch.inference_mode():
        assert_equal_matches(found(c, place), *truth(c))


@pytest.mark.parametrize("chunk", [1, 300])
def test_reference_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    c = case(patch=3, heads=2, self_match="first")
    expected = found(c, Place("reference", "cpu"))
    monkeypatch.setattr("stan.ops.pixels.CHUNK", chunk)
    for a, b in zip(found(c, Place("reference", "cpu")), expected):
        assert torch.equal(a, b)


def test_reference_is_what_resolve_names() -> None:
    assert ops.functional.backends.resolve("reference", torch.zeros(1)) is reference
