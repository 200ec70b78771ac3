"""What only a GPU can show: streams, graphs, compilation, determinism, memory; results: test_cuda_kernels."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from stan import ops
from tests.ops.cases import Case, case, matches_case

pytestmark = pytest.mark.cuda


def inputs(c: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and flow like a case's, on the GPU."""
    assert c.flow is not None
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(video.shape, generator=draw).to("cuda", dtype) for video in (c.query, c.key))
    return query, key, c.flow.to("cuda")


def search(query: Tensor, key: Tensor, flow: Tensor, **settings: Any) -> ops.Matches:
    return ops.shifted_nls(query, key, flow, window=5, topk=4, backend="native", **settings)


def attend(query: Tensor, key: Tensor, flow: Tensor) -> Tensor:
    """Search, refine, softmax and both gathers: every native forward op that a network uses."""
    found = search(query, key, flow)
    again = ops.refine(query, key, found.offsets, found.frames, backend="native")
    weights = ops.weights(again.scores, 10.0)
    stack = ops.gather_stack(key, weights, again.offsets, again.frames, backend="native")
    return (
        stack.sum(2).sum()
        + ops.gather(key, weights, found.offsets, found.frames, patch=3, backend="native").sum()
    )


def test_another_stream_is_used() -> None:
    query, key, flow = inputs(case(1, channels=16, size=(64, 64)))
    expected = search(query, key, flow)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(query)
        torch.cuda._sleep(50_000_000)  # a kernel on the wrong stream would read the zeros
        late.copy_(query)
        found = search(late, key, flow)
    stream.synchronize()
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


def test_graph_capture_replays_on_new_numbers() -> None:
    query, key, flow = inputs(case(2, channels=16, size=(32, 40)))
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, flow)]

    def step() -> list[Tensor]:
        return list(torch.autograd.grad(attend(*leaves), leaves))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.add_(0.25)
    graph.replay()
    torch.cuda.synchronize()
    for found, expected in zip(captured, step()):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_compiles_in_one_graph() -> None:
    query, key, flow = inputs(case(3, channels=8, size=(16, 17)))
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, flow)]
    expected = torch.autograd.grad(attend(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(attend, fullgraph=True)(*leaves), leaves)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_deterministic_gradients_are_equal_from_run_to_run() -> None:
    query, key, flow = inputs(case(4, channels=16, size=(64, 64), reach=1))
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, flow)]
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(attend(*leaves), leaves) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        for one, other in zip(run, runs[0]):
            assert torch.equal(one, other)
    for one, other in zip(torch.autograd.grad(attend(*leaves), leaves), runs[0]):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradcheck(metric: str, deterministic: bool) -> None:
    c = case(5, channels=3, size=(5, 6), heads=1)
    query, key, flow = inputs(c, torch.float64)
    flow = (flow.double().round() + 0.37).requires_grad_()  # away from grid lines
    leaves = (query.requires_grad_(), key.requires_grad_(), flow)
    torch.use_deterministic_algorithms(deterministic)
    try:
        torch.autograd.gradcheck(
            lambda q, k, f: ops.shifted_nls(
                q, k, f, window=3, topk=9, metric=metric, select="each", backend="native"
            )[:2],
            leaves,
            nondet_tol=0.0 if deterministic else 1e-9,
            atol=1e-6,
        )
    finally:
        torch.use_deterministic_algorithms(False)


def test_opcheck() -> None:
    query, key, flow = inputs(case(6, channels=4, size=(7, 8)))
    leaves = [tensor.requires_grad_() for tensor in (query, key, flow.unsqueeze(1))]
    settings = ops.SearchSpec(window=5, topk=4).settings()
    torch.library.opcheck(torch.ops.stan.search.default, tuple(leaves), settings)
    match = matches_case(6)
    tensors = [match[name].cuda().requires_grad_() for name in ("value", "weights", "offsets")]
    torch.library.opcheck(
        torch.ops.stan.gather.default, (*tensors, match["frames"].cuda(), 1, 1, 1, 1, False)
    )
    torch.library.opcheck(torch.ops.stan.gather.default, (*tensors, match["frames"].cuda(), 1, 1, 1, 1, True))
    flows = [torch.randn(1, 3, 2, 6, 7, device="cuda", requires_grad=True) for _ in range(2)]
    torch.library.opcheck(torch.ops.stan.search_flow.default, (*flows, 1, 1, False))


def test_search_takes_little_memory_beside_its_results() -> None:
    query, key, flow = inputs(case(7, frames=5, channels=16, size=(160, 160)))
    settings: dict[str, Any] = {"window": 9, "topk": 10, "backend": "native"}
    ops.shifted_nls(query, key, flow, **settings)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = ops.shifted_nls(query, key, flow, **settings)
    results = sum(tensor.numel() * tensor.element_size() for tensor in found)
    extra = torch.cuda.max_memory_allocated() - before - results
    volume = found.scores[..., 0].numel() * 3 * 81 * 28  # score, offset and frame of every candidate
    assert extra < 0.05 * volume


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_works_on_the_tensors_device_not_the_current_one() -> None:
    query, key, flow = inputs(case(8, channels=16, size=(20, 20)))
    expected = search(query, key, flow)
    found = search(*(tensor.to("cuda:1") for tensor in (query, key, flow)))
    assert torch.cuda.current_device() == 0
    for one, other in zip(found, expected):
        assert one.device == torch.device("cuda:1")
        assert torch.equal(one.cpu(), other.cpu())


def test_a_tensor_on_another_device_is_named() -> None:
    query, key, flow = inputs(case(9))
    with pytest.raises((ValueError, RuntimeError), match="key"):
        ops.shifted_nls(query, key.cpu(), flow, window=3, topk=4, backend="native")


def test_more_than_2_to_the_31_numbers() -> None:
    """64-bit indices: in a video of over 2^31 numbers the end is searched like the beginning."""
    free, _ = torch.cuda.mem_get_info()
    if free < 60 * 2**30:
        pytest.skip(f"needs 60 GiB of free GPU memory, there are {free / 2**30:.0f}")
    height, width, channels = 2200, 4096, 256
    draw = torch.Generator(device="cuda").manual_seed(0)
    query = torch.randn(1, 1, channels, height, width, device="cuda", dtype=torch.float16, generator=draw)
    assert query.numel() > 2**31
    found = ops.shifted_nls(query, query, window=3, temporal_window=0, topk=1, backend="native")
    assert float(found.offsets.abs().max()) == 0
    assert float(found.scores.abs().max()) == 0
