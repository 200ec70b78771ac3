"""What torch is promised about the native ops, and what hostile input gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stan import ops
from stan.ops import backend, library

pytestmark = pytest.mark.skipif(bool(backend.why_not_native()), reason="the native kernels are not built")

OPS = torch.ops.stan
SETTINGS = ops.SearchSpec(window=3, topk=4, heads=2).settings()
AGAIN = ops.RefineSpec(window=3, topk=4, heads=2, metric="dot", incoming=4).settings()


def tensors(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (5, 6)) -> dict[str, Tensor]:
    """Arguments of all ops for B=1, T=3, HD=2, C=3 and K=4."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype) * scale

    matches = (1, 2, 3, *size, 4)
    frames = torch.randint(-1, 3, matches, generator=generator, dtype=torch.int32)
    return {
        "query": draw(1, 3, 6, *size), "key": draw(1, 3, 6, *size), "flow": draw(1, 1, 3, 2, 2, *size, scale=2),
        "value": draw(1, 3, 6, *size), "source": draw(1, 3, 6, *size), "weights": draw(*matches),
        "offsets": draw(*matches, 2, scale=2), "frames": frames, "forward": draw(1, 3, 2, *size),
        "backward": draw(1, 3, 2, *size), "grad_scores": draw(*matches), "grad_offsets": draw(*matches, 2),
        "grad_flow": draw(1, 3, 2, 2, *size), "grad_stack": draw(1, 2, 4, 3, 3, *size),
        "pictures": draw(2, *size, 3), "kernel": draw(5, 3, 3, 3), "bias": draw(5), "add": draw(2, *size, 5),
    }  # fmt: skip


def keywords(name: str) -> dict[str, Any]:
    """The settings of an op that takes them by keyword."""
    return {"search": SETTINGS, "refine": AGAIN}.get(name.removesuffix("_backward"), {})


def calls(t: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """The positional arguments of every op."""
    matches = (t["weights"], t["offsets"], t["frames"])
    compared = (t["grad_scores"], t["grad_offsets"], t["query"], t["key"])
    parents = t["frames"].clamp(min=0)
    needed = (True, True, True, False)
    return {
        "search": (t["query"], t["key"], t["flow"]),
        "search_backward": (*compared, t["flow"], *matches[1:], *needed),
        "refine": (t["query"], t["key"], *matches[1:]),
        "refine_backward": (*compared, t["offsets"], *matches[1:], parents, *needed),
        "search_flow": (t["forward"], t["backward"], 1, 1, False),
        "search_flow_backward": (t["grad_flow"], t["forward"], t["backward"], 1, 1, False, False),
        "gather": (t["value"], *matches, 3, 1, 1, 1, False),
        "gather_backward": (t["source"], t["value"], *matches, 3, 1, 1, 1, False, *needed),
        "gather to stack": (t["value"], *matches, 1, 1, 1, 1, True),
        "gather_backward of stack": (t["grad_stack"], t["value"], *matches, 1, 1, 1, 1, True, *needed),
        "scatter": (t["source"], *matches, 5, 6, 1, 1, 1),
        "convolve": (t["pictures"], t["kernel"], t["bias"], t["add"], True),
        "convolve_backward": (t["add"], t["pictures"]),
    }


def with_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    )


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("name", list(calls(tensors())))
def test_opcheck(name: str) -> None:
    arguments = calls(tensors())[name]
    if "_backward" not in name:
        arguments = with_gradients(arguments)
    torch.library.opcheck(getattr(OPS, name.split()[0]).default, arguments, keywords(name))


def test_a_module_compiles_into_one_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 3, 6, 7, 8, generator=generator)
    flow = torch.randn(1, 3, 2, 2, 7, 8, generator=generator)
    shapes: dict[str, Any] = {"window": 3, "topk": 4, "heads": 2}

    def attend(query: Tensor, key: Tensor, value: Tensor, flow: Tensor) -> Tensor:
        found = ops.shifted_nls(query, key, flow, **shapes)
        again = ops.refine(query, key, found.offsets, found.frames)
        weights = ops.weights(again.scores)
        return ops.gather(value, weights, again.offsets, again.frames)

    expected_inputs = with_gradients((query, key, value, flow))
    expected = attend(*expected_inputs)
    expected.square().sum().backward()
    inputs = with_gradients((query, key, value, flow))
    found = torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for a, b in zip(inputs, expected_inputs):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.fixture
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("name", list(calls(tensors())))
def test_bits_depend_neither_on_the_run_nor_on_the_threads(name: str) -> None:
    t = tensors(size=(37, 41))
    if name == "scatter":
        arguments: tuple[Any, ...] = (t["source"], t["weights"], t["offsets"], t["frames"], 37, 41, 3, 1, 1)
    else:
        arguments = calls(t)[name]
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        results.append(flat(getattr(OPS, name.split()[0])(*arguments, **keywords(name))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_the_schema_has_the_settings_of_the_specs() -> None:
    """The names that csrc/settings.h unpacks are those that types.py packs."""
    for name, settings in (("search", SETTINGS), ("refine", AGAIN)):
        for op in (name, f"{name}_backward"):
            arguments = getattr(OPS, op).default._schema.arguments
            assert {a.name for a in arguments if a.kwarg_only} == set(settings)


def test_more_searched_frames_than_a_short_integer_counts() -> None:
    """Of 40,001 slots only two hold frames; the third place stays empty."""
    video = torch.tensor([[3.0, 4.0], [5.0, 6.0]]).reshape(1, 2, 1, 1, 2)
    settings: dict[str, Any] = {"window": 1, "temporal_window": 40_000, "topk": 3, "causal": True}
    found = ops.shifted_nls(video, video, metric="dot", **settings, backend="native")
    empty = -float("inf")
    assert found.scores.tolist() == [
        [[[[[9, empty, empty], [16, empty, empty]]], [[[25, 15, empty], [36, 24, empty]]]]]
    ]
    assert found.frames.tolist() == [[[[[[0, -1, -1], [0, -1, -1]]], [[[1, 0, -1], [1, 0, -1]]]]]]


def test_deterministic_algorithms_are_served() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        arguments = with_gradients(calls(tensors())["search"])
        OPS.search(*arguments, **SETTINGS)[0].sum().backward()
        assert arguments[1].grad.abs().sum() > 0
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_scores_in_float32_and_brings_types_together() -> None:
    t = tensors()
    half = t["query"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, offsets, _ = OPS.search(half, t["key"], t["flow"].bfloat16(), **SETTINGS)
        gathered = OPS.gather(
            half, t["weights"].bfloat16(), t["offsets"].bfloat16(), t["frames"], 1, 1, 1, 1, False
        )
    assert scores.dtype == offsets.dtype == torch.float32
    assert gathered.dtype == torch.bfloat16
    flow = t["flow"].bfloat16().float()
    assert torch.equal(scores, OPS.search(half.float(), t["key"], flow, **SETTINGS)[0])


def test_forward_mode_is_refused_in_words() -> None:
    """torch would take the missing derivative for zero."""
    x = torch.randn(1, 3, 4, 6, 7)
    scores, offsets, frames = ops.shifted_nls(x, x, window=3, topk=2, backend="native")
    flow = torch.zeros(1, 3, 2, 6, 7)
    functions: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
        "search": (lambda q: ops.shifted_nls(q, x, window=3, topk=2, backend="native").scores, x),
        "refine": (lambda o: ops.refine(x, x, o, frames, backend="native").scores, offsets),
        "search_flow": (lambda f: ops.search_flow(f, flow, backend="native"), flow),
        "gather": (lambda w: ops.gather(x, w, offsets, frames, backend="native"), scores),
        "scatter": (lambda v: ops.scatter(v, scores, offsets, frames, size=(6, 7), backend="native"), x),
    }
    functions["gather_stack"] = (lambda v: ops.gather_stack(v, scores, offsets, frames, backend="native"), x)
    for name, (function, at) in functions.items():
        op = name.removesuffix("_stack")
        with pytest.raises(RuntimeError, match=f"stan::{op} has no forward-mode derivative"):
            torch.func.jvp(function, (at,), (torch.ones_like(at),))
    torch.func.jvp(lambda s: s * functions["search"][0](x), (scores,), (scores,))  # what is constant passes


def test_second_derivatives_are_refused_in_words() -> None:
    query, key, flow = calls(tensors())["search"]
    query = query.clone().requires_grad_()
    scores = OPS.search(query, key, flow, **SETTINGS)[0]
    (first,) = torch.autograd.grad(scores.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        first.sum().backward()


_SCORES = """
import sys, torch
from stan.ops import SearchSpec, library
torch.set_num_threads(1)
assert library.CAPABILITY == sys.argv[1], library.CAPABILITY
generator = torch.Generator().manual_seed(0)
results = []
for window, patch, metric in ((9, 1, "l2"), (3, 3, "l2"), (5, 1, "dot"), (17, 1, "l2")):
    query, key = torch.randn(2, 1, 3, 18, 21, 37, generator=generator)
    flow = torch.randn(1, 1, 3, 2, 2, 21, 37, generator=generator) * 2
    settings = SearchSpec(window=window, topk=9, patch=patch, metric=metric).settings()
    found = torch.ops.stan.search(query, key, flow, **settings)
    back = torch.ops.stan.search_backward(torch.ones_like(found[0]), found[1], query, key, flow, found[1], found[2],
                                          True, True, True, False, **settings)
    results += [*found, *back]
for inputs, outputs in ((3, 20), (57, 32), (88, 88)):
    x, grad = torch.randn(2, 21, 18, inputs, generator=generator), torch.randn(2, 21, 18, outputs, generator=generator)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / inputs**0.5
    results += [torch.ops.stan.convolve(x, weight, grad[0, 0, 0], grad, True)]
    results += [torch.ops.stan.convolve_backward(grad, x) / 21]
torch.save(results, sys.argv[2])
"""


def test_every_processor_generation_agrees(tmp_path: Any) -> None:
    names = ["generic", "avx2", "avx512"]
    here = names[: names.index(library.CAPABILITY) + 1] if library.CAPABILITY in names else ["generic"]
    results = {}
    for name in here:
        file = tmp_path / f"{name}.pt"
        subprocess.run(
            [sys.executable, "-c", _SCORES, name, str(file)],
            check=True,
            env=os.environ | {"STAN_CPU_CAPABILITY": name},
        )
        results[name] = torch.load(file)
    for name in here[1:]:
        for a, b in zip(results["generic"], results[name]):
            if a.is_floating_point():
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(a, b)


V, F, M = torch.zeros(1, 3, 4, 5, 6), torch.zeros(1, 1, 3, 2, 2, 5, 6), torch.zeros(1, 1, 3, 5, 6, 2)
O, I = torch.zeros(1, 1, 3, 5, 6, 2, 2), torch.zeros(1, 1, 3, 5, 6, 2, dtype=torch.int32)  # noqa: E741
HUGE = 2**62


def raw_search(query: Tensor = V, key: Tensor = V, flow: Tensor | None = F, **changed: Any) -> Any:
    return OPS.search(query, key, flow, **ops.SearchSpec(window=3, topk=2).settings() | changed)


def raw_refine(
    query: Tensor = V, key: Tensor = V, offsets: Tensor = O, frames: Tensor = I, **changed: Any
) -> Any:
    return OPS.refine(query, key, offsets, frames, **ops.RefineSpec(topk=2, incoming=2).settings() | changed)


def raw_gather(
    value: Tensor = V, weights: Tensor = M, offsets: Tensor = O, frames: Tensor = I, *s: int
) -> Any:
    return OPS.gather(value, weights, offsets, frames, *(s or (1, 1, 1, 1)), False)


HOSTILE: dict[str, Callable[[], Any]] = {
    "query: expected 5 dim": lambda: raw_search(V[0]),
    "query: expected float": lambda: raw_search(V.int(), V.int()),
    "key: expected float32, got float64": lambda: raw_search(V, V.double()),
    "start: 3 frames from frame 1 on are not in a key of 3": lambda: raw_search(start=1),
    "start: expected a whole number from 0": lambda: raw_search(start=-1),
    "key: expected frames 3": lambda: raw_refine(key=V[:, :2]),
    "key: expected channels 4": lambda: raw_search(V, V[:, :, :3]),
    "key: expected at least one pixel": lambda: raw_search(V, V[..., :0]),
    "query: expected at least one frame": lambda: raw_search(V[:, :0], V[:, :0], None, causal=True),
    "heads: expected a divisor": lambda: raw_search(heads=3),
    "heads: expected a whole number": lambda: raw_search(heads=0),
    "flow: expected 7 dim": lambda: raw_search(flow=F[0]),
    "flow: expected float32": lambda: raw_search(flow=F.half()),
    "flow: expected query rows 5": lambda: raw_search(flow=F[..., :4, :]),
    "flow: expected 1 or 1 heads": lambda: raw_search(flow=F.expand(1, 3, 3, 2, 2, 5, 6)),
    "window: expected a whole": lambda: raw_search(window=-1),
    "window: expected a whole number from 1": lambda: raw_search(window=HUGE),
    "temporal_window: 4 searches 9 frames": lambda: raw_search(temporal_window=4),
    "temporal_window: expected": lambda: raw_search(temporal_window=-1),
    "topk: expected 1 to 27": lambda: raw_search(topk=28),
    "topk: expected 1 to 9": lambda: raw_search(topk=10, select="each"),
    "topk: expected a whole number from 1": lambda: raw_search(topk=0),
    "patch: expected an odd": lambda: raw_search(patch=2),
    "patch: expected a whole": lambda: raw_search(patch=HUGE),
    "dilation: expected": lambda: raw_search(dilation=0),
    "stride: expected": lambda: raw_search(stride=0),
    "key_stride: expected": lambda: raw_search(key_stride=float("nan")),
    "metric: expected 'l2' or 'dot', got 'cosine'": lambda: raw_search(metric="cosine"),
    "select: expected": lambda: raw_search(select=""),
    "self_match: expected": lambda: raw_search(self_match="?"),
    "self_match: 'anchors' needs select 'each'": lambda: raw_search(self_match="anchors", select="all"),
    "refine: frames: expected 6 dim": lambda: raw_refine(frames=I[0]),
    "refine: offsets: expected shape": lambda: raw_refine(offsets=O[..., :1]),
    "refine: frames: expected int32": lambda: raw_refine(frames=I.long()),
    "refine: topk: expected": lambda: raw_refine(topk=3),
    "gather: weights: expected float32": lambda: raw_gather(weights=M.double()),
    "gather: offsets: expected shape": lambda: raw_gather(offsets=O[:, :, :, :4]),
    "gather: value: expected channels": lambda: raw_gather(V[:, :, :0]),
    "gather: value: rows": lambda: raw_gather(V[..., :0, :]),
    "gather: stride: expected": lambda: raw_gather(V, M, O, I, 1, 1, -1, 1),
    "gather: block: expected": lambda: raw_gather(V, M, O, I, 1, 1, 1, 0),
    "gather: weights: expected rows of blocks 3": lambda: raw_gather(V, M, O, I, 1, 1, 1, 2),
    "forward: expected 2 components": lambda: OPS.search_flow(V, V, 1, 1, False),
    "search_flow: temporal_window": lambda: OPS.search_flow(V[:, :, :2], V[:, :, :2], 2, 1, False),
    "gather_backward: grad: expected shape": lambda: OPS.gather_backward(
        V[..., :2], V, M, O, I, 1, 1, 1, 1, False, True, True, True, False
    ),
    "search_backward: need_flow": lambda: OPS.search_backward(
        M, O, V, V, None, O, I, True, True, True, False, **ops.SearchSpec().settings()
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", list(HOSTILE))
def test_hostile_arguments_are_named(message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        HOSTILE[message]()


def test_hostile_matches_are_survived() -> None:
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e9, -1e-40])
    offsets = wild[torch.arange(O.numel()) % len(wild)].reshape(O.shape)
    frames = torch.tensor([-(2**31), -1, 3, 2**31 - 1, 0, 1, 2], dtype=torch.int32)
    frames = frames[torch.arange(I.numel()) % len(frames)].reshape(I.shape)
    ones, video = torch.ones_like(M), torch.ones_like(V)
    flow = wild[torch.arange(F.numel()) % len(wild)].reshape(F.shape)
    assert raw_search(video, video, flow)[0].isfinite().all()
    valid = (frames >= 0) & (frames < 3)
    scores, _, kept, parents = raw_refine(video, video, offsets, frames)
    assert torch.equal((kept >= 0).sum(-1), valid.sum(-1))
    assert torch.equal(parents >= 0, kept >= 0)
    assert torch.equal(scores.isfinite(), kept >= 0)
    assert torch.equal(raw_gather(video, ones, offsets, frames)[:, :, 0], valid.sum(-1)[:, 0].float())
    wanted, patch = (True, True, True, False), {"patch": 3, "dilation": 2}
    for grads in (
        OPS.search_backward(
            ones, O, video, video, flow, offsets, frames, *wanted, **ops.SearchSpec(**patch).settings()
        ),
        OPS.refine_backward(
            ones,
            O,
            video,
            video,
            offsets,
            offsets,
            frames,
            frames,
            *wanted,
            **ops.RefineSpec(topk=2, metric="dot", incoming=2, **patch).settings(),
        ),
        OPS.gather_backward(video, video, ones, offsets, frames, 3, 2, 1, 1, False, *wanted),
    ):
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (1, 3, 4, 0, 6), (1, 3, 4, 5, 0)])
def test_empty_queries_give_empty_results(shape: tuple[int, ...]) -> None:
    key = torch.zeros(shape[0], 3, 4, 5, 6)
    scores, offsets, frames = raw_search(torch.zeros(shape), key, None)
    assert scores.numel() == offsets.numel() == frames.numel() == 0
    assert scores.shape == (shape[0], 1, 3, shape[3], shape[4], 2)


def test_any_strides_are_accepted() -> None:
    for name, arguments in calls(tensors(size=(5, 6))).items():
        turned = tuple(
            a.movedim(-1, 0).contiguous().movedim(0, -1) if isinstance(a, Tensor) else a for a in arguments
        )
        results = [
            flat(getattr(OPS, name.split()[0])(*args, **keywords(name))) for args in (arguments, turned)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*results)), name
