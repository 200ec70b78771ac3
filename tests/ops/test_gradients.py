"""Gradients: finite differences, the formulas of the definition, and the corners where they are chosen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from stan import ops
from tests.ops.cases import DEFAULTS, case, generator, gradients, matches_case, slots_of
from tests.ops.conftest import Place


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed).normal(size=shape))


def off_grid(seed: int, *shape: int, reach: int = 3) -> Tensor:
    """Displacements whose fraction is at least 0.2 away from whole and half numbers, in float64."""
    random = generator(seed)
    fraction = random.uniform(0.2, 0.3, shape) + random.integers(0, 2, shape) * 0.5
    return torch.from_numpy(random.integers(-reach, reach, shape) + fraction)


def leaf(tensor: Tensor, place: Place) -> Tensor:
    return tensor.to(place.device).requires_grad_()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"metric": "dot"},
        {"patch": 3, "dilation": 2},
        {"metric": "dot", "patch": 3},
        {"stride": 2, "key_stride": 0.5},
        {"slide": False, "topk": 20},
        {"select": "each", "self_match": "first", "topk": 2},
        {"select": "each", "self_match": "anchors", "topk": 3},
        {"causal": True, "topk": 14},
        {"heads": 2, "channels": 1},
        {"heads": 2, "channels": 1, "flow": "heads", "metric": "dot"},
        {"key_size": (5, 2)},
        {"temporal_window": 0, "frames": 1},
        {"frames": 5, "queries": 2, "start": 2},
        {"frames": 4, "queries": 1, "start": 3, "causal": True, "heads": 2, "channels": 1, "flow": "heads"},
    ],
    ids=str,
)
def test_gradcheck_of_the_search(place: Place, kwargs: dict[str, Any]) -> None:
    shape = {"frames": 3, "queries": None, "size": (3, 3), "channels": 2, "flow": "plain", "key_size": None}
    shape = {k: kwargs.get(k, v) for k, v in shape.items()}
    frames = shape["queries"] or shape["frames"]
    s = DEFAULTS | {"topk": 3} | {k: v for k, v in kwargs.items() if k not in shape}
    grid = tuple((n - 1) // s["stride"] + 1 for n in shape["size"])
    lead = (1, s["heads"], frames) if shape["flow"] == "heads" else (1, frames)
    query = leaf(normal(1, 1, frames, shape["channels"] * s["heads"], *shape["size"]), place)
    key = leaf(
        normal(2, 1, shape["frames"], shape["channels"] * s["heads"], *(shape["key_size"] or shape["size"])),
        place,
    )
    flow = leaf(off_grid(3, *lead, slots_of(s) - 1, 2, *grid, reach=4), place)
    inputs = (query, key, flow) if flow.numel() else (query, key)

    def search(query: Tensor, key: Tensor, flow: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matches = ops.shifted_nls(query, key, flow, **s, backend=place.backend)
        empty = matches.frames < 0  # scores there are -inf, whatever the inputs
        return matches.scores.masked_fill(empty, 0.0), matches.offsets

    assert gradcheck(search, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "s",
    [{}, {"window": 3, "topk": 5}, {"metric": "dot", "patch": 3, "window": 2, "slide": False}, {"stride": 2}],
    ids=str,
)
def test_gradcheck_of_refine(place: Place, s: dict[str, Any]) -> None:
    size = (5, 4) if s.get("stride") == 2 else (3, 3)
    grid = (3, 2) if s.get("stride") == 2 else size
    query, key = leaf(normal(1, 1, 2, 4, *size), place), leaf(normal(2, 1, 2, 4, 4, 3), place)
    offsets = leaf(off_grid(3, 1, 2, 2, *grid, 2, 2), place)
    frames = torch.from_numpy(generator(4).integers(-1, 2, (1, 2, 2, *grid, 2))).to(place.device)

    def refine(query: Tensor, key: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        matches = ops.refine(query, key, offsets, frames, **s, backend=place.backend)
        return matches.scores.masked_fill(matches.frames < 0, 0.0), matches.offsets

    assert gradcheck(refine, (query, key, offsets), fast_mode=True)


@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_of_search_flow(place: Place, causal: bool) -> None:
    forward, backward = (leaf(off_grid(n, 1, 3, 2, 4, 4, reach=2), place) for n in (1, 2))

    def follow(forward: Tensor, backward: Tensor) -> Tensor:
        return ops.search_flow(
            forward,
            backward,
            temporal_window=2 if causal else 1,
            stride=2,
            causal=causal,
            backend=place.backend,
        )

    assert gradcheck(follow, (forward, backward), fast_mode=True)


PLAIN: list[dict[str, Any]] = [{}, {"stride": 2, "heads": 2}, {"patch": 3}]
AGGREGATIONS = [(name, kwargs) for name in ("gather", "gather_stack", "scatter") for kwargs in PLAIN]
AGGREGATIONS += [(name, {"block": 2}) for name in ("gather", "gather_stack")]  # scatter has no blocks


@pytest.mark.parametrize(("name", "kwargs"), AGGREGATIONS, ids=str)
def test_gradcheck_of_aggregations(place: Place, name: str, kwargs: dict[str, Any]) -> None:
    spec = {"stride": kwargs.get("stride", 1)}
    if "block" in kwargs:
        spec["block"] = kwargs["block"]
    if name != "gather_stack":
        spec["patch"] = kwargs.get("patch", 1)
    shape = {k: v for k, v in kwargs.items() if k != "patch"}
    m = matches_case(size=(3, 3), topk=2, channels=1, **shape)
    video = m["value"] if name != "scatter" else normal(5, *m["value"].shape[:3], *m["weights"].shape[3:5])
    video, weights = leaf(video.double(), place), leaf(m["weights"].double(), place)
    offsets = leaf(off_grid(6, *m["offsets"].shape), place)
    more = {"size": (4, 3)} if name == "scatter" else {}

    def fn(video: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        frames = m["frames"].to(place.device)
        return getattr(ops, name)(video, weights, offsets, frames, **spec, **more, backend=place.backend)

    assert gradcheck(fn, (video, weights, offsets), fast_mode=True)


def test_gradcheck_of_attention(place: Place) -> None:
    query, key, value = (leaf(normal(n, 1, 3, 4, 3, 3), place) for n in (1, 2, 3))
    flow = leaf(off_grid(4, 1, 3, 2, 2, 3, 3), place)
    scale = leaf(torch.tensor([0.3, 0.1], dtype=torch.float64), place)

    def attend(*tensors: Tensor) -> Tensor:
        *inputs, scale = tensors
        return ops.shifted_attention(*inputs, scale=scale, heads=2, window=3, topk=4, backend=place.backend)

    assert gradcheck(attend, (query, key, value, flow, scale), fast_mode=True)


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_gradients_are_those_of_the_definition(place: Place, metric: str) -> None:
    """dot: dq = g k~, dk~ = g q; l2: dq = -2g(q-k~), dk~ = 2g(q-k~); the taps of k~ get (1-f, f) of it."""
    query = torch.tensor([[[[[2.0, -1.0, 3.0]]]]], dtype=torch.float64)
    key = torch.tensor([[[[[5.0, 1.0, -2.0]]]]], dtype=torch.float64)
    offsets = torch.zeros(1, 1, 1, 1, 3, 1, 2, dtype=torch.float64)
    offsets[..., 0, 0, 0] = 0.25  # the query at x=0 looks at x=0.25
    frames = torch.full((1, 1, 1, 1, 3, 1), -1)
    frames[..., 0, 0] = 0

    def score(query: Tensor, key: Tensor, offsets: Tensor) -> Tensor:
        matches = ops.refine(
            query, key, offsets, frames.to(place.device), metric=metric, backend=place.backend
        )
        return 3.0 * matches.scores[..., 0, 0]  # g = 3

    q, (a, b) = 2.0, (5.0, 1.0)
    k = 0.75 * a + 0.25 * b
    dq, dk = (3 * k, 3 * q) if metric == "dot" else (-6 * (q - k), 6 * (q - k))
    inputs = [leaf(t, place) for t in (query, key, offsets)]
    score(*inputs).sum().backward()
    grads = [t.grad.cpu() for t in inputs]
    torch.testing.assert_close(grads[0].flatten(), torch.tensor([dq, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(
        grads[1].flatten(), torch.tensor([0.75 * dk, 0.25 * dk, 0], dtype=torch.float64)
    )
    torch.testing.assert_close(grads[2].flatten()[:2], torch.tensor([dk * (b - a), 0], dtype=torch.float64))


def flow_gradient(place: Place, dx: float, of: str, key_row: list[float], query_x: int) -> float:
    """d/d(dx) of the one score (dot with q=1) or offset of a query at query_x that looks into frame 1."""
    width = len(key_row)
    query = torch.ones(1, 2, 1, 1, width, device=place.device)
    key = torch.tensor(key_row, device=place.device).expand(1, 2, 1, 1, width)
    flow = torch.zeros(1, 2, 1, 2, 1, width, device=place.device)
    flow[0, 1, 0, 0, 0, query_x] = dx
    flow.requires_grad_()
    matches = ops.shifted_nls(
        query,
        key,
        flow,
        window=1,
        topk=1,
        causal=True,
        select="each",
        metric="dot",
        backend=place.backend,
    )
    result = matches.scores if of == "score" else matches.offsets[..., 0]
    result[0, 0, 1, 0, query_x, 1].backward()
    assert flow.grad.count_nonzero() <= 1
    return float(flow.grad[0, 1, 0, 0, 0, query_x])


@pytest.mark.parametrize(
    ("dx", "slope", "step"),
    [
        (0.5, 1, 2.0),  # x = 1.5, between 1 -> 3
        (-1.5, -1, 1.0),  # x = -0.5, reflected to 0.5, between 0 -> 1
        (2.5, -1, 4.0),  # x = 3.5, reflected to 2.5, between 3 -> 7
        (9.0, 0, 0.0),  # reflected to -4, clamped
        (-5.5, 0, 0.0),  # reflected to 4.5, clamped
        (math.nan, 0, 0.0),
        (math.inf, 0, 0.0),
        (1e30, 0, 0.0),
        (0.0, 1, 2.0),  # on a grid line the derivative is the right-hand one
        (1.0, 1, 4.0),
        (-1.0, 1, 1.0),  # x = 0 is not reflected
    ],
)
def test_gradient_of_the_anchor(place: Place, dx: float, slope: int, step: float) -> None:
    """A query at x=1 on the key row 0 1 3 7: the slope reaches the offset, slope times step the score."""
    row = [0.0, 1.0, 3.0, 7.0]
    assert flow_gradient(place, dx, "offset", row, 1) == slope
    assert flow_gradient(place, dx, "score", row, 1) == pytest.approx(slope * step)


def test_the_slide_is_constant(place: Place) -> None:
    """At the border the flow moves only the fraction of the window, and that is its gradient."""
    key = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0], device=place.device).expand(1, 2, 1, 1, 5)
    query = torch.full((1, 2, 1, 1, 5), 1.0, device=place.device)
    flow = torch.zeros(1, 2, 1, 2, 1, 5, device=place.device)
    flow[0, 1, 0, 0, 0, 3] = 0.25  # anchor 3.25; a window of 3 x 3 slides to 1.25, 2.25, 3.25
    flow.requires_grad_()
    matches = ops.shifted_nls(
        query,
        key,
        flow,
        window=3,
        topk=9,
        causal=True,
        select="each",
        metric="dot",
        backend=place.backend,
    )
    last = matches.scores[0, 0, 1, 0, 3, 9:]
    positions = 3 + matches.offsets[0, 0, 1, 0, 3, 9:, 0]
    assert positions[:3].tolist() == [3.25, 2.25, 1.25]
    last[:3].sum().backward()
    assert float(flow.grad[0, 1, 0, 0, 0, 3]) == pytest.approx(7 + 5 + 3)


@pytest.mark.parametrize("slide", [True, False])
def test_no_gradient_is_nan(place: Place, slide: bool) -> None:
    """Empty matches, wild flow and more places than candidates, all the way through an attention."""
    c = case(window=5, topk=40, size=(3, 4), slide=slide, causal=True, heads=2)
    c.flow[:, 1, :, :, 0], c.flow[:, 2, :, 0, 1], c.flow[:, 2, :, 1, 2] = math.nan, math.inf, 1e38
    value = normal(1, 1, 3, 2, 3, 4).float()

    def attend(query: Tensor, key: Tensor, value: Tensor, flow: Tensor, scale: Tensor) -> Tensor:
        return ops.shifted_attention(
            query, key, value, flow, **c.settings, scale=scale, backend=place.backend
        )

    tensors = [t.to(place.device) for t in (c.query, c.key, value, c.flow, torch.tensor([0.1, 0.2]))]
    for grad in gradients(attend, *tensors):
        assert grad.isfinite().all()

    def search(query: Tensor, key: Tensor, flow: Tensor) -> Tensor:
        matches = ops.shifted_nls(query, key, flow, **c.settings, backend=place.backend)
        again = ops.refine(query, key, *matches[1:], window=3, heads=2, backend=place.backend)
        return torch.cat([matches.scores, again.scores, again.offsets.flatten(5)], dim=-1)

    for grad in gradients(search, *(t.to(place.device) for t in (c.query, c.key, c.flow))):
        assert grad.isfinite().all()


def test_empty_matches_pass_no_gradient_on(place: Place) -> None:
    """Whatever arrives at their scores and offsets."""
    c = case(window=5, topk=40, size=(3, 4), slide=False, causal=True)

    def collect(only_found: bool) -> list[Tensor]:
        leaves = [leaf(t.clone(), place) for t in (c.query, c.key, c.flow)]
        matches = ops.shifted_nls(*leaves, **c.settings, backend=place.backend)
        found = matches.frames >= 0
        assert not found.all()
        factor = found.float() if only_found else torch.ones_like(matches.scores)
        torch.autograd.backward(matches[:2], [factor, factor[..., None].expand_as(matches.offsets)])
        return [t.grad for t in leaves]

    for a, b in zip(collect(True), collect(False)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("needs", [0, 1, 2])
def test_gradients_of_some_inputs_only(place: Place, needs: int) -> None:
    c = case(patch=3)
    tensors = [t.to(place.device) for t in (c.query, c.key, c.flow)]
    together = gradients(lambda *t: ops.shifted_nls(*t, **c.settings, backend=place.backend).scores, *tensors)
    tensors[needs].requires_grad_()
    scores = ops.shifted_nls(*tensors, **c.settings, backend=place.backend).scores
    factor = torch.linspace(-1, 1, scores.numel(), device=place.device).reshape(scores.shape)
    (scores * factor).sum().backward()
    torch.testing.assert_close(tensors[needs].grad, together[needs])
    assert all(t.grad is None for i, t in enumerate(tensors) if i != needs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_keep_the_type_of_their_input(place: Place, dtype: torch.dtype) -> None:
    c = case(patch=3, heads=2)
    wide = [t.to(place.device) for t in (c.query, c.key, c.flow)]
    narrow = [t.to(dtype) for t in wide]

    def score(*t: Tensor) -> Tensor:
        return ops.shifted_nls(*t, **c.settings, backend=place.backend).scores / 64

    for a, b in zip(gradients(score, *narrow), gradients(score, *wide)):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=2e-2, atol=2e-2)


def test_chunks_do_not_change_the_gradients_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    c, m = case(patch=3, heads=2), matches_case()
    frames = m.pop("frames")

    def both() -> list[Tensor]:
        search = gradients(
            lambda *t: ops.shifted_nls(*t, **c.settings, backend="reference").scores, c.query, c.key, c.flow
        )
        gather = gradients(lambda *t: ops.gather(*t, frames, patch=3, backend="reference"), *m.values())
        scatter = gradients(lambda *t: ops.scatter(*t, frames, size=(3, 3), backend="reference"), *m.values())
        return [*search, *gather, *scatter]

    expected = both()
    monkeypatch.setattr("stan.ops.pixels.CHUNK", 200)
    for a, b in zip(both(), expected):
        torch.testing.assert_close(a, b)
