"""The companions of the search, against a brute force and truths known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stan import ops
from tests.ops import brute_force
from tests.ops.cases import (
    array,
    assert_equal_matches,
    case,
    generator,
    gradients,
    matches_case,
    on,
    quarters,
    whole,
)
from tests.ops.conftest import Place

# --- refine

REFINE_DEFAULTS: dict[str, Any] = {
    "window": 1,
    "topk": 3,
    "patch": 1,
    "dilation": 1,
    "stride": 1,
    "key_stride": 1.0,
    "metric": "l2",
    "slide": True,
}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"window": 3},
        {"window": 3, "topk": 27, "slide": False},
        {"window": 2, "key_stride": 0.5, "metric": "dot", "topk": 1},
        {"window": 3, "patch": 3, "dilation": 2, "stride": 2},
        {"window": 3, "key_size": (3, 7), "topk": 5},
        {"heads": 4, "metric": "dot", "patch": 3},
    ],
    ids=str,
)
def test_refine_equals_brute_force(place: Place, kwargs: dict[str, Any]) -> None:
    given = {k: kwargs.pop(k, v) for k, v in {"heads": 1, "key_size": None}.items()}
    s = REFINE_DEFAULTS | kwargs
    c = case(frames=2, temporal_window=0, **given, stride=s["stride"])
    m = matches_case(heads=given["heads"], topk=3, stride=s["stride"])
    tensors = on(place.device, c.query, c.key, m["offsets"], m["frames"])
    assert_equal_matches(
        ops.refine(*tensors, **s, backend=place.backend),
        *brute_force.refine(*map(array, (c.query, c.key, m["offsets"], m["frames"])), **s),
    )


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_refine_by_one_scores_the_same(place: Place, metric: str) -> None:
    """On exact numbers to the bit; else but for rounding, as the position is rebuilt from its offset."""
    c = case(heads=2, patch=3, topk=8, metric=metric)
    shared = {"heads": 2, "patch": 3, "metric": metric, "backend": place.backend}
    query, key, flow = on(place.device, c.query, c.key, c.flow)
    first = ops.shifted_nls(query, key, flow, **c.settings, backend=place.backend)
    second = ops.refine(query, key, first.offsets, first.frames, **shared)
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    query, key = query + torch.rand_like(query), key + torch.rand_like(key)
    first = ops.shifted_nls(query, key, flow * 0.7123, **c.settings, backend=place.backend)
    second = ops.refine(query, key, first.offsets, first.frames.long(), **shared)
    torch.testing.assert_close(second.scores, first.scores, rtol=1e-5, atol=1e-4)


def test_refine_ignores_frames_outside_the_clip(place: Place) -> None:
    c, m = case(frames=2, temporal_window=0), matches_case(topk=2)
    wild = torch.tensor([2**31, 2**32, -5, 2**40]).repeat(20).reshape(m["frames"].shape)
    matches = ops.refine(*on(place.device, c.query, c.key, m["offsets"], wild), backend=place.backend)
    assert bool((matches.frames == -1).all())
    assert bool(matches.scores.isneginf().all())


def test_refine_takes_any_offset(place: Place) -> None:
    """NaN and infinite offsets count as zero, huge ones end at the border."""
    c, m = case(frames=2, temporal_window=0), matches_case(topk=3)
    m["offsets"][..., 0, 0], m["offsets"][..., 1, 1], m["offsets"][..., 2, :] = math.nan, -math.inf, 3e38
    tensors = on(place.device, c.query, c.key, m["offsets"], m["frames"])
    s = REFINE_DEFAULTS | {"window": 3}
    expected = brute_force.refine(*map(array, (c.query, c.key, m["offsets"], m["frames"])), **s)
    assert_equal_matches(ops.refine(*tensors, **s, backend=place.backend), *expected)


# --- flow


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    wt=st.integers(0, 2),
    extra=st.integers(0, 2),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 2),
    causal=st.booleans(),
)
def test_search_flow_equals_brute_force(
    place: Place, seed: int, wt: int, extra: int, size: tuple[int, int], stride: int, causal: bool
) -> None:
    random = generator(seed)
    frames = 1 + extra if causal else 2 * wt + 1 + extra
    forward, backward = (torch.from_numpy(random.normal(size=(1, frames, 2, *size)) * 2) for _ in range(2))
    forward[..., 0, 0], backward[:, 0, 1] = math.nan, math.inf
    found = ops.search_flow(
        *on(place.device, forward, backward),
        temporal_window=wt,
        stride=stride,
        causal=causal,
        backend=place.backend,
    )
    expected = brute_force.search_flow(array(forward), array(backward), wt, stride, causal)
    np.testing.assert_allclose(array(found), expected, rtol=0, atol=1e-9)


def test_search_flow_of_a_steady_motion(place: Place) -> None:
    """Constant motion adds up, whatever lies in between; types and sizes are as promised."""
    motion = torch.tensor([1.5, -0.25]).reshape(1, 1, 2, 1, 1).expand(2, 5, 2, 6, 7)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        forward, backward = on(place.device, motion.to(dtype), -motion.to(dtype))
        found = ops.search_flow(forward, backward, temporal_window=2, stride=2, backend=place.backend)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.shape == (2, 5, 4, 2, 3, 4)
        steps = [[1, 2, 3, 4], [1, 2, 3, -1], [1, 2, -1, -2], [1, -1, -2, -3], [-1, -2, -3, -4]]
        for t, row in enumerate(steps):
            for slot, n in enumerate(row):
                expected = (n * motion[:, 0, :, :3, :4]).to(found)
                torch.testing.assert_close(found[:, t, slot], expected, rtol=0, atol=0)


def test_search_flow_feeds_the_search(place: Place) -> None:
    """A video that moves by whole pixels is found again exactly, away from the border."""
    random = generator(4)
    wide = torch.from_numpy(random.normal(size=(3, 12, 20))).float()
    video = torch.stack([wide[:, 2 + t : 10 + t, 3 + 2 * t : 13 + 2 * t] for t in range(3)])[None]
    motion = torch.tensor([-2.0, -1.0]).reshape(1, 1, 2, 1, 1).expand(1, 3, 2, 8, 10)
    video, forward, backward = on(place.device, video, motion, -motion)
    flow = ops.search_flow(forward, backward, backend=place.backend)
    matches = ops.shifted_nls(video, video, flow, window=1, topk=1, select="each", backend=place.backend)
    middle = matches.scores[0, 0, 1, 2:-2, 3:-3]
    assert middle.abs().max() == 0
    assert matches.offsets[0, 0, 1, 4, 4].tolist() == [[0, 0], [-2, -1], [2, 1]]


def test_rescale_flow() -> None:
    motion = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1).expand(4, 2, 8, 12)
    half = ops.rescale_flow(motion, (4, 6))
    torch.testing.assert_close(half, motion[..., :4, :6] / 2)
    torch.testing.assert_close(ops.rescale_flow(half, (8, 12)), motion)
    squeezed = ops.rescale_flow(motion, (8, 3))
    torch.testing.assert_close(squeezed[0, :, 0, 0], torch.tensor([0.75, -2.0]))
    assert torch.equal(ops.rescale_flow(motion, (8, 12)), motion)
    # a zoom about the picture's centre, u = x - centre, stays one: pixel centres scale with the picture
    x = torch.arange(16.0) - 7.5
    zoom = torch.stack(torch.broadcast_tensors(x[None, :], x[:, None]))
    small = ops.rescale_flow(zoom, (8, 8))
    y = torch.arange(8.0) - 3.5
    torch.testing.assert_close(small[0, 3, 1:-1], y[1:-1])
    torch.testing.assert_close(small[1, 1:-1, 3], y[1:-1])


def test_rescale_flow_of_anything() -> None:
    flow = torch.randn(2, 3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    flow[0, 0, 0, 2, 2] = math.nan
    assert ops.rescale_flow(flow, (2, 9)).isfinite().all()
    assert ops.rescale_flow(flow.half(), (2, 9)).dtype == torch.float16
    assert ops.rescale_flow(flow[:0], (2, 9)).shape == (0, 3, 2, 2, 9)


# --- weights


def test_weights_are_a_softmax() -> None:
    scores = torch.randn(2, 3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.weights(scores), (10 * scores).softmax(-1))
    scale = torch.tensor([1.0, 2.0, 0.5])
    for head in range(3):
        torch.testing.assert_close(
            ops.weights(scores, scale)[:, head], (float(scale[head]) * scores[:, head]).softmax(-1)
        )
    torch.testing.assert_close(ops.weights(scores, torch.tensor(3.0)), (3 * scores).softmax(-1))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_weights_of_empty_matches() -> None:
    scores = torch.zeros(1, 1, 1, 1, 3, 2)
    scores[..., 0, 1] = -math.inf
    scores[..., 1, :] = -math.inf
    scores.requires_grad_()
    scale = torch.tensor([2.0], requires_grad=True)
    weights = ops.weights(scores, scale)
    assert weights[0, 0, 0, 0].tolist() == [[1, 0], [0, 0], [0.5, 0.5]]
    with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either
        weights.square().sum().backward()
    assert scores.grad.isfinite().all()
    assert scale.grad.isfinite().all()


# --- gather and scatter

AGGREGATIONS = [
    {},
    {"patch": 3},
    {"patch": 3, "dilation": 2},
    {"patch": 3, "stride": 2},
    {"patch": 3, "dilation": 2, "stride": 2},
    {"patch": 5, "dilation": 3, "stride": 2, "size": (6, 5)},
    {"patch": 3, "size": (1, 2)},
    {"heads": 4, "channels": 1, "patch": 3},
    {"value_size": (3, 7), "patch": 3},
    {"stride": 3, "batch": 2, "value_size": (2, 2)},
]


SOME_FRAMES = [
    {"frames": 1, "value_frames": 4, "batch": 2, "heads": 2},
    {"frames": 5, "value_frames": 2, "channels": 3, "stride": 2, "value_size": (3, 7)},
]
"""Gathered for fewer or more frames than the value has."""


def aggregation(kwargs: dict[str, Any], place: Place) -> tuple[dict[str, Tensor], dict[str, Any]]:
    spec = {"patch": 1, "dilation": 1, "stride": 1} | {
        k: v for k, v in kwargs.items() if k in ("patch", "dilation", "stride")
    }
    shape = {k: v for k, v in kwargs.items() if k not in ("patch", "dilation")}
    tensors = {name: tensor.to(place.device) for name, tensor in matches_case(**shape).items()}
    return tensors, spec


@pytest.mark.parametrize("kwargs", [*AGGREGATIONS, *SOME_FRAMES, {"patch": 3, "value_frames": 3}], ids=str)
def test_gather_equals_brute_force(place: Place, kwargs: dict[str, Any]) -> None:
    m, s = aggregation(kwargs, place)
    found = ops.gather(**m, **s, backend=place.backend)
    expected = brute_force.gather(*map(array, m.values()), **s)
    np.testing.assert_allclose(array(found), expected, rtol=1e-6, atol=1e-5)  # the mean divides: not exact


@pytest.mark.parametrize(
    "kwargs", [a for a in AGGREGATIONS if "patch" not in a] + [{"heads": 4}, *SOME_FRAMES], ids=str
)
def test_gather_stack_equals_brute_force(place: Place, kwargs: dict[str, Any]) -> None:
    m, s = aggregation(kwargs, place)
    found = ops.gather_stack(**m, stride=s["stride"], backend=place.backend)
    np.testing.assert_array_equal(
        array(found), brute_force.gather_stack(*map(array, m.values()), s["stride"])
    )
    summed = found.sum(2).permute(0, 2, 1, 3, 4, 5).flatten(2, 3)  # (B, T, HD*C, Hq, Wq)
    assert torch.equal(summed, ops.gather(**m, stride=s["stride"], backend=place.backend))


@pytest.mark.parametrize("kwargs", AGGREGATIONS, ids=str)
def test_scatter_is_the_transpose_of_gather(place: Place, kwargs: dict[str, Any]) -> None:
    """The dot-product test, in float64."""
    m, s = aggregation(kwargs, place)
    m = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in m.items()}
    size = tuple(m["value"].shape[3:])
    gathered = ops.gather(**m, **s, backend=place.backend)
    source = (
        torch.linspace(-1, 1, gathered.numel(), dtype=torch.float64).reshape(gathered.shape).to(place.device)
    )
    value = m.pop("value")
    scattered = ops.scatter(source, **m, **s, size=size, backend=place.backend)
    assert scattered.shape == value.shape
    torch.testing.assert_close((scattered * value).sum(), (gathered * source).sum())


@pytest.mark.parametrize("kwargs", [{}, {"patch": 3, "size": (2, 3)}, {"heads": 2, "stride": 2}], ids=str)
def test_scatter_equals_brute_force(place: Place, kwargs: dict[str, Any]) -> None:
    m, s = aggregation(kwargs | {"topk": 2}, place)
    value = m.pop("value")
    source = whole(generator(9), *value.shape[:3], *m["weights"].shape[3:5])
    found = ops.scatter(source.to(place.device), **m, **s, size=(3, 4), backend=place.backend)
    expected = brute_force.scatter(array(source), *map(array, m.values()), size=(3, 4), **s)
    np.testing.assert_allclose(array(found), expected, rtol=1e-6, atol=1e-5)


def test_gather_of_the_queries_own_position_is_the_identity(place: Place) -> None:
    """Also with patches: all patches that overlap a pixel bring the same value."""
    value = torch.randn(1, 2, 3, 5, 6, generator=torch.Generator().manual_seed(0)).to(place.device)
    own = ops.shifted_nls(value, value, window=1, temporal_window=0, topk=1, backend=place.backend)
    one = torch.ones_like(own.scores)
    for patch in (1, 3):
        found = ops.gather(value, one, *own[1:], patch=patch, backend=place.backend)
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_the_aggregations(place: Place, dtype: torch.dtype) -> None:
    m, _ = aggregation({}, place)
    narrow = m | {"value": m["value"].to(dtype)}
    for fn in (ops.gather, ops.gather_stack):
        found = fn(**narrow, backend=place.backend)
        assert found.dtype == dtype
        torch.testing.assert_close(found, fn(**m, backend=place.backend).to(dtype))
    value = narrow.pop("value")
    found = ops.scatter(value, **narrow, size=(4, 5), backend=place.backend)
    assert found.dtype == dtype


def test_aggregations_of_an_empty_batch(place: Place) -> None:
    m, _ = aggregation({}, place)
    none = {name: tensor[:0] for name, tensor in m.items()}
    assert ops.gather(**none, patch=3, backend=place.backend).shape == (0, 2, 2, 4, 5)
    assert ops.gather_stack(**none, backend=place.backend).shape == (0, 1, 3, 2, 2, 4, 5)
    source = none.pop("value")
    assert ops.scatter(source, **none, size=(6, 6), backend=place.backend).shape == (0, 2, 2, 6, 6)


def test_memory_layout_of_the_aggregations_does_not_matter(place: Place) -> None:
    m, _ = aggregation({"heads": 2}, place)
    turned = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in m.items()}
    flat = {n: t[..., :1].expand(*t.shape) if n == "weights" else t for n, t in m.items()}
    solid = {n: t.contiguous() for n, t in flat.items()}
    for fn in (ops.gather, ops.gather_stack):
        assert torch.equal(fn(**turned, backend=place.backend), fn(**m, backend=place.backend))
        assert torch.equal(fn(**flat, backend=place.backend), fn(**solid, backend=place.backend))


def test_offsets_that_are_not_finite_stay_inside(place: Place) -> None:
    m, _ = aggregation({}, place)
    m["offsets"][..., 0, :], m["offsets"][..., 1, 0], m["offsets"][..., 2, 1] = math.nan, math.inf, -3e38
    found = ops.gather(**m, backend=place.backend)
    np.testing.assert_allclose(
        array(found), brute_force.gather(*map(array, m.values()), patch=1, dilation=1, stride=1), atol=1e-5
    )


# --- attention


@pytest.mark.parametrize("slide", [True, False])
def test_attention_is_search_softmax_and_gather(place: Place, slide: bool) -> None:
    c = case(heads=2, topk=12, window=4, slide=slide, patch=3, stride=2)
    query, key, flow = on(place.device, c.query, c.key, c.flow)
    value = quarters(generator(8), 1, 3, 6, 5, 7).to(place.device)
    scale = torch.tensor([0.1, 0.02], device=place.device)
    matches = ops.shifted_nls(query, key, flow, **c.settings, backend=place.backend)
    weights = ops.weights(matches.scores, scale)
    expected = ops.gather(value, weights, *matches[1:], stride=2, backend=place.backend)
    found = ops.shifted_attention(query, key, value, flow, **c.settings, scale=scale, backend=place.backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == (1, 3, 6, 2, 3)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_gathering_for_some_frames_is_a_slice_of_all(place: Place, block: int) -> None:
    """Values and gradients are those of the whole."""
    m = matches_case(frames=5, channels=6, heads=1, size=(9, 11), block=block)
    m = {name: tensor.to(place.device) for name, tensor in m.items()}

    def some(value: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        part = (x[:, :, 1:3] for x in (weights, offsets, m["frames"]))
        return ops.gather(value, *part, block=block, backend=place.backend)

    def of_all(value: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        return ops.gather(value, weights, offsets, m["frames"], block=block, backend=place.backend)[:, 1:3]

    inputs = m["value"], m["weights"], m["offsets"]
    assert torch.equal(some(*inputs), of_all(*inputs))
    for found, expected in zip(gradients(some, *inputs), gradients(of_all, *inputs)):
        torch.testing.assert_close(found, expected)


def test_a_source_has_the_frames_of_its_matches(place: Place) -> None:
    m = matches_case(frames=2, value_frames=3)
    source = m.pop("value").to(place.device)
    with pytest.raises(ValueError, match="weights: expected"):
        ops.scatter(
            source, **{k: v.to(place.device) for k, v in m.items()}, size=(4, 5), backend=place.backend
        )
