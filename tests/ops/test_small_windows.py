"""Searches in small windows of RGB patches, which have kernels of their own on the CPU, against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan import ops
from tests.ops.cases import case, on
from tests.ops.conftest import Place


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    window=st.integers(1, 8),
    patch=st.sampled_from([3, 5, 7]),
    channels=st.integers(1, 8),
    size=st.tuples(st.integers(1, 9), st.integers(1, 12)),
    key_size=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 12)),
    stride=st.integers(1, 4),
    metric=st.sampled_from(["l2", "dot"]),
    select=st.sampled_from(["all", "each"]),
    self_match=st.sampled_from(["keep", "first", "anchors"]),
    slide=st.booleans(),
    causal=st.booleans(),
    topk=st.integers(1, 3),
    wild=st.booleans(),
    flow=st.sampled_from(["none", "quarters"]),
)
def test_equals_reference(place: Place, seed: int, wild: bool, topk: int, window: int, **how: Any) -> None:
    if how["select"] == "all" and how["self_match"] == "anchors":
        how["self_match"] = "first"
    c = case(seed, window=window, topk=min(topk, window**2), reach=9, **how)
    if wild:
        draw = torch.Generator().manual_seed(seed)
        c.key[torch.rand(c.key.shape, generator=draw) < 0.01] = math.nan
        if c.flow is not None:
            c.flow[torch.rand(c.flow.shape, generator=draw) < 0.05] = math.inf
    tensors = on(place.device, c.query, c.key, c.flow)
    found = ops.shifted_nls(*tensors, **c.settings, backend=place.backend)
    expected = ops.shifted_nls(c.query, c.key, c.flow, **c.settings, backend="reference")
    for got, wanted, name in zip(found, expected, ("scores", "offsets", "frames")):
        got = got.cpu()
        assert bool(((got == wanted) | (got.isnan() & wanted.isnan())).all()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_real_numbers(place: Place, dtype: torch.dtype) -> None:
    """Scores to rounding; a video compared with itself, where it is the same, scores exactly zero."""
    draw = torch.Generator().manual_seed(1)
    video = torch.rand(1, 3, 3, 41, 53, generator=draw).to(dtype).to(place.device)
    flow = 3 * torch.randn(1, 3, 2, 2, 11, 14, generator=draw).to(place.device)
    how: dict[str, Any] = {"window": 5, "patch": 7, "stride": 4, "select": "each", "topk": 1}
    found = ops.shifted_nls(video, video, flow, **how, backend=place.backend)
    expected = ops.shifted_nls(video, video, flow, **how, backend="reference")
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert float(found.scores[..., 0].abs().max()) == 0
    assert (found.offsets == expected.offsets).float().mean() > 0.999
