"""What every CUDA kernel must fulfil, wherever it runs: on a GPU, or emulated on the CPU.

Each check calls the ops themselves (stan/ops/csrc/README.md) and compares with the reference on the CPU:
results exactly, on the exact numbers of `cases`, gradients up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stan import ops
from tests.ops.cases import Case, matches_case

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-10, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Ops:
    """The ops under test and the device they take tensors of."""

    ops: Any
    device: str

    def __call__(self, name: str, *args: Any, **settings: Any) -> tuple[Tensor | None, ...]:
        """Call an op with tensors brought to the device; results come back to the CPU."""
        moved = [arg.to(self.device) if isinstance(arg, Tensor) else arg for arg in args]
        result = getattr(self.ops, name)(*moved, **settings)
        results = result if isinstance(result, (tuple, list)) else (result,)
        return tuple(tensor.cpu() for tensor in results)


def score_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def flow_for_op(flow: Tensor | None, settings: dict[str, Any]) -> Tensor | None:
    """The op takes flow with a head axis, and none where no other frame is searched."""
    if flow is None or settings["temporal_window"] == 0:
        return None
    return flow.unsqueeze(1) if flow.dim() == 6 else flow


def assert_same(found: Tensor, expected: Tensor, what: str) -> None:
    """Equal bit for bit, except that any NaN equals any other."""
    assert found.dtype == expected.dtype, what
    assert found.shape == expected.shape, what
    same = (found == expected) | (found.isnan() & expected.isnan())
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} differ"


def assert_close(found: Tensor, expected: Tensor | None, tolerance: float, what: str) -> None:
    """Close relative to the largest value; an expected None is zero."""
    if expected is None:
        expected = torch.zeros_like(found)
    assert found.dtype == expected.dtype, what
    assert found.shape == expected.shape, what
    if found.numel():
        scale = 1 + float(expected.double().abs().max())
        error = float((found.double() - expected.double()).abs().max())
        assert error <= tolerance * scale, f"{what}: error {error:.2e}, largest value {scale:.2e}"


def check_search(under_test: Ops, case: Case) -> None:
    """Scores, offsets and frames of a search are those of the reference."""
    s = case.settings
    expected = ops.shifted_nls(case.query, case.key, case.flow, **s, backend="reference")
    found = under_test(
        "search", case.query, case.key, flow_for_op(case.flow, s), **ops.SearchSpec(**s).settings()
    )
    for tensor, wanted, name in zip(found, expected, ("scores", "offsets", "frames")):
        assert_same(tensor, wanted, f"{name} {s}")


def check_search_backward(under_test: Ops, case: Case, dtype: torch.dtype, deterministic: bool) -> None:
    """Gradients of query, key and flow are those autograd finds through the reference."""
    s = case.settings
    noise = torch.Generator().manual_seed(1)
    leaves = [
        (video + 0.3 * torch.randn(video.shape, generator=noise)).to(dtype).requires_grad_()
        for video in (case.query, case.key)
    ]
    flow = None if case.flow is None else case.flow.to(score_type(dtype)).requires_grad_()
    found = ops.shifted_nls(*leaves, flow, **s, backend="reference")
    grad_scores = (
        torch.randn(found.scores.shape, generator=noise).to(found.scores).masked_fill(found.frames < 0, 0)
    )
    grad_offsets = torch.randn(found.offsets.shape, generator=noise).to(found.offsets)
    outputs, grads = [found.scores], [grad_scores]
    if flow is not None:
        leaves, outputs, grads = [*leaves, flow], [*outputs, found.offsets], [*grads, grad_offsets]
    expected = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    plain = [leaf.detach() for leaf in leaves[:2]]
    got = under_test(
        "search_backward", grad_scores, grad_offsets, *plain,
        flow_for_op(None if flow is None else flow.detach(), s), found.offsets.detach(), found.frames,
        True, True, flow is not None, deterministic, **ops.SearchSpec(**s).settings(),
    )  # fmt: skip
    for tensor, wanted, name in zip(got, expected, ("query", "key", "flow")):
        shaped = tensor.reshape(wanted.shape) if wanted is not None else tensor
        assert_close(shaped, wanted, TOLERANCE[dtype], f"gradient of {name} {s}")


def check_refine(
    under_test: Ops, case: Case, window: int, topk: int | None, dtype: torch.dtype, deterministic: bool
) -> None:
    """Refine and its gradients are those of the reference; matches may lie anywhere and be empty."""
    s = case.settings
    matches = ops.shifted_nls(case.query, case.key, case.flow, **s, backend="reference")
    draw = torch.Generator().manual_seed(2)
    shift = torch.randint(-12, 13, matches.offsets.shape, generator=draw) / 4
    offsets = (matches.offsets + shift).to(score_type(dtype)).requires_grad_()
    frames = matches.frames.masked_fill(torch.rand(matches.frames.shape, generator=draw) < 0.1, -1)
    query, key = (video.to(dtype).requires_grad_() for video in (case.query, case.key))
    kept = frames.shape[-1] if topk is None else topk
    shared = {name: s[name] for name in ("patch", "dilation", "stride", "key_stride", "metric", "slide")}
    shared["window"] = window
    expected = ops.refine(query, key, offsets, frames, topk=topk, backend="reference", **shared)
    spec = ops.RefineSpec(incoming=frames.shape[-1], topk=kept, heads=s["heads"], **shared)
    plain = (query.detach(), key.detach(), offsets.detach())
    found = under_test("refine", *plain, frames, **spec.settings())
    for tensor, wanted, name in zip(found, expected, ("scores", "offsets", "frames")):
        assert_same(tensor, wanted.detach(), f"{name} {s}")
    empty = expected.frames < 0
    grad_scores = torch.randn(expected.scores.shape, generator=draw).to(expected.scores).masked_fill(empty, 0)
    grad_offsets = torch.randn(expected.offsets.shape, generator=draw).to(expected.offsets)
    wanted_grads = torch.autograd.grad(
        [expected.scores, expected.offsets], [query, key, offsets], [grad_scores, grad_offsets]
    )
    got = under_test(
        "refine_backward", grad_scores, grad_offsets, *plain, found[1], found[2], found[3],
        True, True, True, deterministic, **spec.settings(),
    )  # fmt: skip
    for tensor, wanted_grad, name in zip(got, wanted_grads, ("query", "key", "offsets")):
        assert_close(tensor, wanted_grad, TOLERANCE[dtype], f"gradient of {name} {s}")


def check_gather(
    under_test: Ops,
    dtype: torch.dtype,
    deterministic: bool,
    stack: bool = False,
    patch: int = 1,
    dilation: int = 1,
    **settings: Any,
) -> None:
    """Gather or gather_stack and their gradients are those of the reference."""
    case = matches_case(**settings)
    value = case["value"].to(dtype).requires_grad_()
    weights, offsets = (case[name].to(score_type(dtype)).requires_grad_() for name in ("weights", "offsets"))
    frames, stride, block = case["frames"], settings.get("stride", 1), settings.get("block", 1)
    tensors = (value.detach(), weights.detach(), offsets.detach(), frames)
    if stack:
        expected = ops.gather_stack(
            value, weights, offsets, frames, stride=stride, block=block, backend="reference"
        )
        numbers = (1, 1, stride, block, True)
    else:
        expected = ops.gather(
            value,
            weights,
            offsets,
            frames,
            patch=patch,
            dilation=dilation,
            stride=stride,
            block=block,
            backend="reference",
        )
        numbers = (patch, dilation, stride, block, False)
    name, what = "gather", f"gather {settings} patch {patch} stack {stack}"
    assert_close(under_test(name, *tensors, *numbers)[0], expected.detach(), TOLERANCE[dtype], what)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    wanted = torch.autograd.grad(expected, [value, weights, offsets], grad)
    got = under_test(f"{name}_backward", grad, *tensors, *numbers, True, True, True, deterministic)
    for tensor, wanted_grad, of in zip(got, wanted, ("value", "weights", "offsets")):
        assert_close(tensor, wanted_grad, TOLERANCE[dtype], f"gradient of {of}, {what}")
    alone = under_test(f"{name}_backward", grad, *tensors, *numbers, True, False, False, deterministic)
    assert_close(alone[0], wanted[0], TOLERANCE[dtype], f"gradient of the value alone, {what}")
    assert alone[1].shape == alone[2].shape == (0,)


def check_search_flow(
    under_test: Ops,
    dtype: torch.dtype,
    deterministic: bool,
    temporal_window: int = 1,
    stride: int = 1,
    causal: bool = False,
    frames: int = 5,
    wild: bool = False,
) -> None:
    """search_flow and its gradient are those of the reference."""
    draw = torch.Generator().manual_seed(4)
    flows = [2 * torch.randn(2, frames, 2, 6, 7, generator=draw, dtype=dtype) for _ in range(2)]
    if wild:
        flows[0][0, 1, 0, 2, 3] = float("nan")
        flows[1][1, 2, 1, 0, 0] = float("inf")
        flows[0][1] *= 1000
    forward, backward = (flow.requires_grad_() for flow in flows)
    expected = ops.search_flow(
        forward, backward, temporal_window=temporal_window, stride=stride, causal=causal, backend="reference"
    )
    settings = (temporal_window, stride, causal)
    tolerance = TOLERANCE[dtype] * (
        100 if wild else 10
    )  # each look-up magnifies the rounding of the one before
    found = under_test("search_flow", forward.detach(), backward.detach(), *settings)[0]
    assert_close(found, expected.detach(), tolerance, f"search_flow {settings}")
    grad = torch.randn(expected.shape, generator=draw, dtype=dtype)
    wanted = torch.autograd.grad(expected, [forward, backward], grad, allow_unused=True)
    got = under_test(
        "search_flow_backward", grad, forward.detach(), backward.detach(), *settings, deterministic
    )
    for tensor, wanted_grad in zip(got, wanted):
        assert_close(tensor, wanted_grad, tolerance, f"gradient of search_flow {settings}")
