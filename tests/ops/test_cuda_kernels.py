"""Every CUDA kernel against the reference: emulated on the CPU, and on a GPU where one is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stan import ops
from tests.ops import cuda_checks as checks
from tests.ops.cases import case
from tests.ops.cuda_checks import Ops
from tests.ops.cuda_emulation.build import compiler, emulated_ops

GENERAL: list[dict[str, Any]] = [
    {},
    {"patch": 3, "dilation": 2, "metric": "dot"},
    {"stride": 2, "key_stride": 0.5, "heads": 4, "flow": "heads", "window": 5, "topk": 20},
    {"window": 4, "causal": True, "self_match": "first"},
    {"frames": 5, "temporal_window": 2, "topk": 40, "size": (9, 11), "self_match": "exclude"},
    {"topk": 9, "select": "each", "self_match": "first", "key_stride": 2.0, "size": (9, 11)},
    {"topk": 3, "select": "each", "self_match": "anchors", "causal": True, "frames": 3, "reach": 9},
    {"topk": 27, "batch": 2},
    {"key_size": (7, 3), "patch": 3, "slide": False, "select": "each", "topk": 3},
    {"frames": 5, "queries": 2, "start": 2, "heads": 2, "batch": 2, "patch": 3},
    {"frames": 6, "queries": 2, "start": 4, "causal": True, "temporal_window": 2},
]
TILED: list[dict[str, Any]] = [
    {"channels": 16, "size": (17, 34), "window": 9, "topk": 10, "reach": 2},
    {
        "channels": 16,
        "size": (6, 18),
        "window": 9,
        "metric": "dot",
        "heads": 2,
        "flow": "heads",
        "reach": 30,
    },
    {"channels": 5, "size": (17, 33), "window": 5, "slide": False, "self_match": "exclude"},
    {
        "channels": 20,
        "size": (21, 18),
        "stride": 2,
        "window": 7,
        "select": "each",
        "self_match": "first",
        "topk": 6,
    },
    {"channels": 8, "size": (4, 33), "key_size": (20, 11), "window": 11, "topk": 32, "causal": True},
    {
        "channels": 8,
        "size": (9, 20),
        "window": 3,
        "select": "each",
        "self_match": "anchors",
        "topk": 2,
        "causal": True,
        "reach": 12,
    },
    {"channels": 4, "size": (3, 5), "window": 13, "topk": 5, "flow": "none"},
    {
        "channels": 33,
        "frames": 1,
        "temporal_window": 0,
        "size": (20, 17),
        "window": 3,
        "topk": 9,
        "flow": "none",
    },
    {"channels": 16, "frames": 5, "queries": 2, "start": 2, "size": (9, 18), "window": 5, "topk": 6},
]
BACKWARD: list[dict[str, Any]] = [
    {},
    {"patch": 3, "dilation": 2, "metric": "dot"},
    {"patch": 3, "stride": 2, "heads": 2, "channels": 6},
    {"stride": 2, "key_stride": 0.5, "heads": 4, "flow": "heads", "window": 5, "topk": 20},
    {"heads": 3, "channels": 5},
    {"key_size": (7, 3), "slide": False, "select": "each", "topk": 3},
    {"causal": True, "self_match": "first", "window": 4, "channels": 140},
    {"frames": 70, "temporal_window": 34, "topk": 69, "window": 1, "size": (3, 3)},
    {"frames": 1, "temporal_window": 0, "topk": 9, "flow": "none"},
    {"frames": 6, "queries": 3, "start": 2, "heads": 2, "channels": 6, "patch": 3, "batch": 2},
]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)], scope="module")
def under_test(request: pytest.FixtureRequest) -> Ops:
    """The kernels emulated, and the kernels themselves."""
    if request.param == "cuda":
        import stan.ops  # noqa: F401  (loads the library)

        return Ops(torch.ops.stan, "cuda")
    if compiler() is None:
        pytest.skip("no C++ compiler to build the emulation with")
    return Ops(emulated_ops(), "cpu")


@pytest.fixture(params=[False, True], ids=["atomic", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> bool:
    """Whether gradients are to be the same to the last bit in every run."""
    return request.param


@pytest.mark.parametrize("settings", GENERAL, ids=str)
def test_search_equals_reference(under_test: Ops, settings: dict[str, Any]) -> None:
    checks.check_search(under_test, case(5, **settings))


@pytest.fixture(
    params=[None, "100000:reverse", "60000", "49152"], ids=["roomy", "reverse", "tight", "tightest"]
)
def shared_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Emulated GPUs with less shared memory, where tiles are split or sampled; threads in another order."""
    size, _, order = (request.param or ":").partition(":")
    if size:
        monkeypatch.setenv("STAN_EMULATION_SHARED", size)
    monkeypatch.setenv("STAN_EMULATION_ORDER", order)
    return


@pytest.mark.usefixtures("shared_memory")
@pytest.mark.parametrize("settings", TILED, ids=str)
def test_tiled_search_equals_reference(under_test: Ops, settings: dict[str, Any]) -> None:
    checks.check_search(under_test, case(6, **settings))


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_search_with_wild_features_and_flow(under_test: Ops, metric: str) -> None:
    c = case(7, channels=16, size=(18, 17), window=5, topk=9, metric=metric)
    draw = torch.Generator().manual_seed(0)
    for video, share in ((c.query, 0.003), (c.key, 0.01)):
        video[torch.rand(video.shape, generator=draw) < share] = float("nan")
    assert c.flow is not None
    for value in (float("nan"), float("inf"), 1e30, -1e30):
        c.flow[torch.rand(c.flow.shape, generator=draw) < 0.02] = value
    checks.check_search(under_test, c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_search_in_other_types(under_test: Ops, dtype: torch.dtype) -> None:
    c = case(8, channels=16, size=(9, 18), window=5)
    query, key, flow = c.query.to(dtype), c.key.to(dtype), c.flow
    assert flow is not None
    moved = type(c)(query, key, flow.to(checks.score_type(dtype)), c.settings)
    checks.check_search(under_test, moved)


def test_search_of_views_and_of_nothing(under_test: Ops) -> None:
    c = case(9, channels=4, size=(9, 10), window=5, topk=3)
    query = c.query.transpose(3, 4).contiguous().transpose(3, 4)
    key = c.key[:, :, :1].expand_as(c.key)
    checks.check_search(under_test, type(c)(query, key, c.flow, c.settings))
    empty = case(9, channels=4, size=(9, 10), window=5, topk=3)
    assert empty.flow is not None
    checks.check_search(under_test, type(c)(empty.query[:0], empty.key[:0], empty.flow[:0], empty.settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", BACKWARD, ids=str)
def test_search_backward(
    under_test: Ops, settings: dict[str, Any], dtype: torch.dtype, deterministic: bool
) -> None:
    checks.check_search_backward(under_test, case(10, **settings), dtype, deterministic)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_search_backward_in_half_precision(under_test: Ops, dtype: torch.dtype, deterministic: bool) -> None:
    checks.check_search_backward(under_test, case(11, channels=16, heads=2), dtype, deterministic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("window", "topk", "settings"),
    [
        (1, None, {"channels": 16}),
        (3, 5, {"heads": 2}),
        (2, 9, {"key_stride": 0.5, "stride": 2, "patch": 3, "causal": True}),
        (3, 36, {"slide": False, "metric": "dot"}),
    ],
)
def test_refine(
    under_test: Ops,
    window: int,
    topk: int | None,
    settings: dict[str, Any],
    dtype: torch.dtype,
    deterministic: bool,
) -> None:
    checks.check_refine(under_test, case(12, **settings), window, topk, dtype, deterministic)


@pytest.mark.parametrize("stack", [False, True], ids=["sum", "stack"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings",
    [
        {"topk": 3},
        {"channels": 37, "heads": 2, "value_size": (7, 9)},
        {"channels": 20, "stride": 2, "size": (9, 33), "topk": 7},
        {"channels": 6, "block": 2, "size": (9, 11)},
        {"channels": 6, "block": 2, "size": (9, 11), "frames": 1, "value_frames": 3, "batch": 2, "heads": 2},
        {"channels": 20, "size": (5, 33), "frames": 4, "value_frames": 2},
        {"channels": 3, "heads": 2, "stride": 2, "block": 3, "size": (9, 33), "topk": 7},
    ],
    ids=str,
)
def test_gather(
    under_test: Ops, settings: dict[str, Any], dtype: torch.dtype, stack: bool, deterministic: bool
) -> None:
    checks.check_gather(under_test, dtype, deterministic, stack=stack, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"patch": 3},
        {"patch": 5, "dilation": 2, "stride": 2, "size": (9, 11), "heads": 2},
        {"patch": 3, "stride": 2, "size": (9, 11)},
        {"patch": 3, "block": 2, "size": (9, 11)},
        {"patch": 3, "size": (9, 11), "frames": 1, "value_frames": 3},
    ],
    ids=str,
)
def test_gather_of_patches(under_test: Ops, settings: dict[str, Any], deterministic: bool) -> None:
    checks.check_gather(under_test, torch.float64, deterministic, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temporal_window": 2},
        {"temporal_window": 3, "stride": 2, "frames": 8},
        {"temporal_window": 2, "causal": True},
        {"temporal_window": 2, "wild": True},
    ],
    ids=str,
)
def test_search_flow(
    under_test: Ops, settings: dict[str, Any], dtype: torch.dtype, deterministic: bool
) -> None:
    checks.check_search_flow(under_test, dtype, deterministic, **settings)


@pytest.mark.parametrize("patch", [1, 3])
def test_deterministic_gradients_do_not_depend_on_the_order_of_threads(
    under_test: Ops, patch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = case(13, channels=8, size=(9, 10), patch=patch, topk=4)
    draw = torch.Generator().manual_seed(5)
    query, key = (torch.randn(video.shape, generator=draw) for video in (c.query, c.key))
    assert c.flow is not None
    flow = c.flow.unsqueeze(1)
    shape = (1, 1, 3, 9, 10, 4)
    offsets, frames = (
        8 * torch.randn((*shape, 2), generator=draw),
        torch.randint(0, 3, shape, generator=draw).int(),
    )
    grads = torch.randn(shape, generator=draw), torch.randn((*shape, 2), generator=draw)
    runs = []
    for order in ("", "reverse"):  # on a GPU: two runs
        monkeypatch.setenv("STAN_EMULATION_ORDER", order)
        runs.append(
            under_test(
                "search_backward", *grads, query, key, flow, offsets, frames, True, True, True, True,
                **ops.SearchSpec(topk=4, window=3, patch=patch).settings(),
            )
        )  # fmt: skip
    for first, second in zip(*runs):
        assert torch.equal(first, second)


def test_deterministic_gradient_shows_what_is_no_number(under_test: Ops) -> None:
    value, weights = torch.ones(1, 1, 1, 2, 3), torch.tensor([1.0, float("inf")]).reshape(1, 1, 1, 1, 2, 1)
    offsets, frames = torch.zeros(1, 1, 1, 1, 2, 1, 2), torch.zeros(1, 1, 1, 1, 2, 1, dtype=torch.int32)
    grad = torch.ones(1, 1, 1, 1, 2)
    got = under_test(
        "gather_backward", grad, value, weights, offsets, frames, 1, 1, 1, 1, False, True, False, False, True
    )[0]
    assert got.isnan().sum() == 1
    assert float(got[0, 0, 0, 0, 0]) == 1
    assert got[0, 0, 0, 0, 1].isnan()
