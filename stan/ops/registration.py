"""What torch has to know of the native ops beside their kernels: shapes, gradients, autocast.

The kernels and schemas are in the library (csrc/). Here each op gets

- a fake kernel: shapes and types of its outputs, for torch.compile and for the meta device;
- its gradient: another op, so that it can be compiled and tested by itself. There are no second derivatives;
- an autocast rule: nothing is cast down, since scores of half precision would reorder the matches. Features
  stay as they are, mixed types meet at the wider one, and what belongs to scores (flow, offsets, weights) is
  brought to the type of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .types import score_dtype

Grads = tuple[Tensor | None, ...]
ops = torch.ops.stan
_library = torch.library.Library("stan", "FRAGMENT")


def _side(length: int, stride: int) -> int:
    """Queries along an axis."""
    return (length - 1) // stride + 1


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _or_nothing(needed: bool, like: Tensor) -> Tensor:
    """The gradient of `like`, or the empty tensor that stands for one nobody asked for."""
    return torch.empty(like.shape if needed else (0,), dtype=like.dtype, device=like.device)


# ------------------------------------------------------------------------------------------------------------- search


@torch.library.register_fake("stan::search")
def _(
    query: Tensor, key: Tensor, flow: Tensor | None, window: int, temporal_window: int, topk: int, heads: int,
    patch: int, dilation: int, stride: int, key_stride: float, metric: str, select: str, self_match: str, slide: bool,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    slots = temporal_window + 1 if causal else 2 * temporal_window + 1
    matches = topk * slots if select == "each" else topk
    batch, frames, _, height, width = query.shape
    shape = (batch, heads, frames, _side(height, stride), _side(width, stride), matches)
    dtype = score_dtype(query)
    return (
        query.new_empty(shape, dtype=dtype),
        query.new_empty((*shape, 2), dtype=dtype),
        query.new_empty(shape, dtype=torch.int32),
    )


@torch.library.register_fake("stan::search_backward")
def _(
    grad_scores: Tensor, grad_offsets: Tensor, query: Tensor, key: Tensor, flow: Tensor | None, offsets: Tensor,
    frames: Tensor, temporal_window: int, heads: int, patch: int, dilation: int, stride: int, metric: str,
    causal: bool, need_query: bool, need_key: bool, need_flow: bool, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    flow_like = grad_scores if flow is None else flow
    return _or_nothing(need_query, query), _or_nothing(need_key, key), _or_nothing(need_flow, flow_like)


def _search_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, flow, _, temporal_window, _, heads, patch, dilation, stride, _, metric, _, _, _, causal = (
        inputs
    )
    ctx.save_for_backward(query, key, flow, output[1], output[2])
    ctx.settings = (temporal_window, heads, patch, dilation, stride, metric, causal)


def _search_gradient(ctx: Any, grad_scores: Tensor, grad_offsets: Tensor, _: Tensor | None) -> Grads:
    query, key, flow, offsets, frames = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    grads = ops.search_backward(
        grad_scores, grad_offsets, query, key, flow, offsets, frames, *ctx.settings, *needed, _deterministic()
    )
    return (*_asked(grads, needed), *[None] * 13)


# ------------------------------------------------------------------------------------------------------------- refine


@torch.library.register_fake("stan::refine")
def _(
    query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, window: int, topk: int, patch: int, dilation: int,
    stride: int, key_stride: float, metric: str, slide: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape = (*frames.shape[:5], topk)
    dtype = score_dtype(query)
    return (
        query.new_empty(shape, dtype=dtype),
        query.new_empty((*shape, 2), dtype=dtype),
        query.new_empty(shape, dtype=torch.int32),
        query.new_empty(shape, dtype=torch.int32),
    )


@torch.library.register_fake("stan::refine_backward")
def _(
    grad_scores: Tensor, grad_offsets: Tensor, query: Tensor, key: Tensor, offsets_in: Tensor, offsets: Tensor,
    frames: Tensor, parents: Tensor, patch: int, dilation: int, stride: int, metric: str, need_query: bool,
    need_key: bool, need_offsets: bool, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _or_nothing(need_query, query), _or_nothing(need_key, key), _or_nothing(need_offsets, offsets_in)


def _refine_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, offsets, _, _, _, patch, dilation, stride, _, metric, _ = inputs
    ctx.save_for_backward(query, key, offsets, *output[1:])
    ctx.settings = (patch, dilation, stride, metric)


def _refine_gradient(
    ctx: Any, grad_scores: Tensor, grad_offsets: Tensor, _frames: Tensor | None, _parents: Tensor | None
) -> Grads:
    needed = ctx.needs_input_grad[:3]
    grads = ops.refine_backward(
        grad_scores, grad_offsets, *ctx.saved_tensors, *ctx.settings, *needed, _deterministic()
    )
    return (*_asked(grads, needed), *[None] * 9)


# -------------------------------------------------------------------------------------------------------- search_flow


@torch.library.register_fake("stan::search_flow")
def _(forward: Tensor, backward: Tensor, temporal_window: int, stride: int, causal: bool) -> Tensor:
    batch, frames, _, height, width = forward.shape
    others = temporal_window if causal else 2 * temporal_window
    return forward.new_empty((batch, frames, others, 2, _side(height, stride), _side(width, stride)))


@torch.library.register_fake("stan::search_flow_backward")
def _(
    grad: Tensor,
    forward: Tensor,
    backward: Tensor,
    temporal_window: int,
    stride: int,
    causal: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    return _or_nothing(True, forward), _or_nothing(True, backward)


def _search_flow_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _search_flow_gradient(ctx: Any, grad: Tensor) -> Grads:
    grads = ops.search_flow_backward(grad, *ctx.saved_tensors, *ctx.settings, _deterministic())
    return (*grads, None, None, None)


# ------------------------------------------------------------------------------------------------- gather and scatter


@torch.library.register_fake("stan::gather")
def _(
    value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, patch: int, dilation: int, stride: int
) -> Tensor:
    return value.new_empty((*value.shape[:3], *weights.shape[3:5]))


@torch.library.register_fake("stan::gather_stack")
def _(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, stride: int) -> Tensor:
    batch, heads, times, height, width, matches = weights.shape
    return value.new_empty((batch, heads, matches, times, value.shape[2] // heads, height, width))


@torch.library.register_fake("stan::gather_backward")
def _(
    grad: Tensor, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, patch: int, dilation: int,
    stride: int, need_value: bool, need_weights: bool, need_offsets: bool, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        _or_nothing(need_value, value),
        _or_nothing(need_weights, weights),
        _or_nothing(need_offsets, offsets),
    )


@torch.library.register_fake("stan::gather_stack_backward")
def _(
    grad: Tensor, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, stride: int, need_value: bool,
    need_weights: bool, need_offsets: bool, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        _or_nothing(need_value, value),
        _or_nothing(need_weights, weights),
        _or_nothing(need_offsets, offsets),
    )


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def _gather_gradient(ctx: Any, grad: Tensor) -> Grads:
    needed = ctx.needs_input_grad[:3]
    grads = ops.gather_backward(grad, *ctx.saved_tensors, *ctx.settings, *needed, _deterministic())
    return (*_asked(grads, needed), *[None] * 4)


def _gather_stack_gradient(ctx: Any, grad: Tensor) -> Grads:
    needed = ctx.needs_input_grad[:3]
    grads = ops.gather_stack_backward(grad, *ctx.saved_tensors, *ctx.settings, *needed, _deterministic())
    return (*_asked(grads, needed), None, None)


# Scatter is the gradient of gather with respect to the value, so it needs no kernel of its own.
_library.define(
    "scatter(Tensor source, Tensor weights, Tensor offsets, Tensor frames, SymInt height, SymInt width, int patch, "
    "int dilation, int stride) -> Tensor"
)


def _scatter(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, height: int, width: int, *settings: int
) -> Tensor:
    shape_only = source.new_empty(()).expand(*source.shape[:3], height, width)
    needed = (True, False, False)
    return ops.gather_backward(
        source, shape_only, weights, offsets, frames, *settings, *needed, _deterministic()
    )[0]


_library.impl("scatter", _scatter, "CompositeExplicitAutograd")


@torch.library.register_fake("stan::scatter")
def _(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, height: int, width: int, *settings: int
) -> Tensor:
    return source.new_empty((*source.shape[:3], height, width))


def _scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[6:]


def _scatter_gradient(ctx: Any, grad: Tensor) -> Grads:
    # <scatter(source), grad> = <gather(grad), source>, and so are the gradients.
    source, weights, offsets, frames = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    to_source = ops.gather(grad, weights, offsets, frames, *ctx.settings) if needed[0] else None
    others = (False, *needed[1:])
    grads = ops.gather_backward(
        source, grad, weights, offsets, frames, *ctx.settings, *others, _deterministic()
    )
    return (to_source, *_asked(grads, others)[1:], *[None] * 6)


# ----------------------------------------------------------------------------------------------------------- autograd


def _asked(grads: tuple[Tensor, ...], needed: tuple[bool, ...]) -> Grads:
    return tuple(grad if wanted else None for grad, wanted in zip(grads, needed))


def _no_second_derivative(name: str) -> Callable[..., None]:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"stan::{name} cannot be differentiated: the operator has no second derivatives")

    return refuse


_GRADIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "search": (_search_gradient, _search_context),
    "refine": (_refine_gradient, _refine_context),
    "search_flow": (_search_flow_gradient, _search_flow_context),
    "gather": (_gather_gradient, _gather_context),
    "gather_stack": (_gather_stack_gradient, _gather_context),
    "scatter": (_scatter_gradient, _scatter_context),
}
for _name, (_gradient, _context) in _GRADIENTS.items():
    torch.library.register_autograd(f"stan::{_name}", _gradient, setup_context=_context)
for _name in ("search", "refine", "search_flow", "gather", "gather_stack"):
    torch.library.register_autograd(f"stan::{_name}_backward", _no_second_derivative(f"{_name}_backward"))


# ----------------------------------------------------------------------------------------------------------- autocast


def _meet(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors to the widest of their types."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _search_types(query: Tensor, key: Tensor, flow: Tensor | None, *settings: Any) -> tuple[Any, ...]:
    query, key = _meet(query, key)
    return (query, key, None if flow is None else flow.to(score_dtype(query)), *settings)


def _refine_types(query: Tensor, key: Tensor, offsets: Tensor, *rest: Any) -> tuple[Any, ...]:
    query, key = _meet(query, key)
    return (query, key, offsets.to(score_dtype(query)), *rest)


def _search_flow_types(forward: Tensor, backward: Tensor, *settings: Any) -> tuple[Any, ...]:
    return (*[flow.to(score_dtype(flow)) for flow in _meet(forward, backward)], *settings)


def _gather_types(value: Tensor, weights: Tensor, offsets: Tensor, *rest: Any) -> tuple[Any, ...]:
    dtype = score_dtype(value)
    return (value, weights.to(dtype), offsets.to(dtype), *rest)


def _register_autocast(name: str, types: Callable[..., tuple[Any, ...]]) -> None:
    op = getattr(ops, name).default

    def rule(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*types(*args))

    for key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(name, rule, key)


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_register_autocast("search", _search_types)
_register_autocast("refine", _refine_types)
_register_autocast("search_flow", _search_flow_types)
for _name in ("gather", "gather_stack", "scatter"):
    _register_autocast(_name, _gather_types)
