"""The native kernels against the reference, over random sizes and settings, forward and backward."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stan import ops
from stan.ops import backend

pytestmark = pytest.mark.skipif(bool(backend.why_not_native()), reason="the native kernels are not built")


class Case(NamedTuple):
    query: Tensor
    key: Tensor
    flow: Tensor | None
    settings: dict[str, Any]
    tolerance: float


def draw_case(seed: int) -> Case:
    """A search with every setting drawn at random; small, but past the edges of vectors, windows and images."""
    pick = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    frames, heads = pick.choice([1, 2, 3, 5]), pick.choice([1, 1, 2, 4])
    channels = heads * pick.choice([1, 2, 3, 5, 8, 16, 17])
    height, width = pick.choice([(1, 1), (3, 5), (7, 9), (12, 17), (16, 33)])
    key_size = (height, width) if pick.random() < 0.7 else (pick.randint(1, 14), pick.randint(1, 20))
    causal = pick.random() < 0.3
    temporal = pick.randint(0, 3 if causal else (frames - 1) // 2)
    slots = temporal + 1 if causal else 2 * temporal + 1
    window, stride = pick.choice([1, 2, 3, 5, 9, 17]), pick.choice([1, 1, 2, 3])
    select, self_match = (
        pick.choice(["all", "all", "each"]),
        pick.choice(["keep", "keep", "first", "exclude"]),
    )
    candidates = (slots if select == "all" else 1) * window**2 - (self_match == "exclude")
    if candidates < 1:
        self_match, candidates = "keep", 1
    if select == "each" and self_match == "first" and pick.random() < 0.5:
        self_match = "anchors"
    dtype = pick.choice([torch.float32, torch.float32, torch.float64])
    batch = pick.choice([1, 1, 2])
    query = torch.randn(batch, frames, channels, height, width, generator=generator, dtype=dtype)
    key = torch.randn(batch, frames, channels, *key_size, generator=generator, dtype=dtype)
    flow = None
    if pick.random() < 0.85:
        grid = (slots - 1, 2, (height - 1) // stride + 1, (width - 1) // stride + 1)
        flow = torch.randn(batch, pick.choice([1, heads]), frames, *grid, generator=generator, dtype=dtype)
        flow *= pick.choice([0.3, 3, 30])
        kind = pick.random()
        if kind < 0.2:
            flow = flow.round()
        elif kind < 0.4:
            flow[:, :, :, :, pick.randint(0, 1)].round_()
        elif kind < 0.6:
            hostile = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e9], dtype=dtype)
            flow.view(-1)[: len(hostile)] = hostile[: flow.numel()]
    settings = {
        "window": window, "temporal_window": temporal, "topk": min(pick.choice([1, 2, 5, 10, 17, 40]), candidates),
        "heads": heads, "patch": pick.choice([1, 1, 3, 5]), "dilation": pick.choice([1, 1, 2]), "stride": stride,
        "key_stride": pick.choice([1.0, 1.0, 1.0, 0.5, 2.0]), "metric": pick.choice(["l2", "dot"]), "select": select,
        "self_match": self_match, "slide": pick.random() < 0.6, "causal": causal,
    }  # fmt: skip
    return Case(query, key, flow, settings, 1e-5 if dtype == torch.float32 else 1e-11)


def assert_near(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal up to rounding, measured against the largest value; infinities in the same places."""
    finite = expected.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{what}: infinities differ"
    if finite.any():
        scale = 1 + expected[finite].abs().max()
        assert (got - expected)[finite].abs().max() <= tolerance * scale, what


def same_matches(a: ops.Matches, b: ops.Matches) -> bool:
    """Rounding may swap matches whose scores are all but equal; gradients are compared where it has not."""
    return bool((a.frames == b.frames).all() and (a.offsets - b.offsets).abs().le(1e-4).all())


def gradients(outputs: list[Tensor], inputs: list[Tensor | None], seed: int) -> list[Tensor]:
    """Gradients of a random combination of the finite outputs; zero for inputs that have no part in it."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (out.masked_fill(out.isinf(), 0) * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for out in outputs
    )
    wanted = [tensor for tensor in inputs if tensor is not None]
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return [torch.zeros_like(tensor) for tensor in wanted]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads)]


def leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_search_agrees_with_the_reference(first: int) -> None:
    compared = 0
    for seed in range(first, first + 20):
        case = draw_case(seed)
        found, grads = {}, {}
        for name in ("reference", "native"):
            inputs = leaves(case.query, case.key, case.flow)
            found[name] = ops.shifted_nls(*inputs, backend=name, **case.settings)
            grads[name] = gradients([found[name].scores, found[name].offsets], inputs, seed)
        what = f"seed {seed}: {case.settings}"
        assert_near(found["native"].scores, found["reference"].scores, case.tolerance, f"scores, {what}")
        if same_matches(found["native"], found["reference"]):
            compared += 1
            for got, expected in zip(grads["native"], grads["reference"]):
                assert_near(got, expected, 10 * case.tolerance, f"gradients, {what}")
    assert compared >= 15


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_companions_agree_with_the_reference(first: int) -> None:
    for seed in range(first, first + 10):
        case = draw_case(seed)
        settings, pick = case.settings, random.Random(seed + 1)
        generator = torch.Generator().manual_seed(seed + 1)
        dtype, batch, frames = case.query.dtype, *case.query.shape[:2]
        matches = ops.shifted_nls(case.query, case.key, case.flow, backend="reference", **settings)
        offsets = matches.offsets + torch.randn(matches.offsets.shape, generator=generator, dtype=dtype) * 4
        weights = torch.rand(matches.scores.shape, generator=generator, dtype=dtype)
        size = (pick.randint(1, 12), pick.randint(1, 12))
        channels = settings["heads"] * pick.choice([1, 3, 16, 20])
        value = torch.randn(batch, frames, channels, *size, generator=generator, dtype=dtype)
        source = torch.randn(
            batch, frames, channels, *matches.frames.shape[3:5], generator=generator, dtype=dtype
        )
        flows = torch.randn(2, batch, frames, 2, *case.query.shape[3:], generator=generator, dtype=dtype) * 3
        stride = settings["stride"]
        grid = dict(zip(("patch", "dilation"), pick.choice([(1, 1), (3, 1), (3, 2), (5, 1)])), stride=stride)
        compared = {
            name: settings[name] for name in ("patch", "dilation", "stride", "key_stride", "metric", "slide")
        }
        track = {
            "temporal_window": settings["temporal_window"],
            "stride": stride,
            "causal": settings["causal"],
        }
        results: dict[str, list[Tensor]] = {}
        for name in ("reference", "native"):
            results[name] = []

            def add(
                outputs: list[Tensor],
                inputs: list[Tensor | None],
                to: list[Tensor] = results[name],
                seed: int = seed,
            ) -> None:
                to += [*outputs, *gradients(outputs, inputs, seed)]

            for function, video, extra in (
                (ops.gather, value, grid),
                (ops.gather_stack, value, {"stride": stride}),
                (ops.scatter, source, {**grid, "size": size}),
            ):
                inputs = leaves(video, weights, offsets)
                add([function(*inputs, matches.frames, backend=name, **extra)], inputs)
            inputs = leaves(case.query, case.key, offsets)
            refined = ops.refine(*inputs, matches.frames, backend=name, **compared)
            add([refined.scores], inputs)
            inputs = leaves(*flows)
            add([ops.search_flow(*inputs, backend=name, **track)], inputs)
        for got, expected in zip(results["native"], results["reference"], strict=True):
            assert_near(got, expected, 20 * case.tolerance, f"seed {seed}: {settings}, {grid}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_half_features_are_scored_in_float32(dtype: torch.dtype, metric: str) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 1, 3, 6, 9, 11, generator=generator).to(dtype)
    flow = torch.randn(1, 3, 2, 2, 9, 11, generator=generator)
    settings = {"window": 3, "topk": 4, "metric": metric, "backend": "native"}
    half, wide = [leaves(*features, flow) for features in ((query, key), (query.float(), key.float()))]
    found, exact = ops.shifted_nls(*half, **settings), ops.shifted_nls(*wide, **settings)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, exact.scores)
    assert torch.equal(found.offsets, exact.offsets)
    for got, expected in zip(gradients([found.scores], half, 0), gradients([exact.scores], wide, 0)):
        torch.testing.assert_close(got, expected.to(got.dtype))


def test_every_half_number_is_read_and_written_right() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        value = bits.view(dtype).reshape(1, 1, 1, 256, 256)
        one = torch.ones(1, 1, 1, 256, 256, 1)
        frames = torch.zeros(1, 1, 1, 256, 256, 1, dtype=torch.int32)
        same = ops.gather(value, one, torch.zeros(*one.shape, 2), frames, backend="native")
        number = ~value.isnan()
        assert torch.equal(same[number], value[number])
        assert same[~number].isnan().all()


def test_equal_scores_keep_the_order_of_candidates() -> None:
    query = torch.full((1, 3, 4, 11, 12), 0.5)
    flow = torch.full((1, 3, 2, 2, 11, 12), 0.25)
    for topk in (1, 10, 40, 200):
        found = ops.shifted_nls(query, query, flow, window=9, topk=topk, backend="native")
        expected = ops.shifted_nls(query, query, flow, window=9, topk=topk, backend="reference")
        assert torch.equal(found.scores, torch.zeros_like(found.scores))
        assert torch.equal(found.frames, expected.frames)
        torch.testing.assert_close(found.offsets, expected.offsets)


def test_a_nan_feature_spoils_only_the_candidates_it_weighs_on() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3, 4, 10, 12, generator=generator)
    key[0, 1, 2, 5, 6] = float("nan")
    for fractions in ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.3)):
        flow = torch.tensor(fractions).reshape(1, 1, 1, 2, 1, 1).expand(1, 3, 2, 2, 10, 12)
        found, expected = (
            ops.shifted_nls(query, key, flow, window=5, topk=75, backend=name)
            for name in ("native", "reference")
        )
        assert torch.equal(found.scores.isnan(), expected.scores.isnan())
        torch.testing.assert_close(found.scores, expected.scores, equal_nan=True)
