"""The native kernels as a backend, and what torch has to know of their ops: shapes, gradients, autocast.

The kernels and schemas are in the library (csrc/). The functions that `backend.py` describes call the ops in
`torch.ops.stan`; here each op gets

- a fake kernel: shapes and types of its outputs, for torch.compile and for the meta device;
- its gradient: another op, so that it can be compiled and tested by itself. There are no second derivatives;
  Nor is there a forward mode, which torch would take for a derivative of zero: the functions refuse it;
- an autocast rule: nothing is cast down, since scores of half precision would reorder the matches. Features
  stay as they are, mixed types meet at the wider one, and what belongs to scores (flow, offsets, weights) is
  brought to the type of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import no_tangent
from .types import GatherSpec, Matches, RefineSpec, SearchSpec, score_dtype

Grads = tuple[Tensor | None, ...]
ops = torch.ops.stan
_library = torch.library.Library("stan", "FRAGMENT")


def search(query: Tensor, key: Tensor, flow: Tensor | None, spec: SearchSpec) -> Matches:
    """See `stan.ops.shifted_nls`."""
    no_tangent("search", query, key, flow)
    return _placed(Matches(*ops.search(query, key, flow, **spec.settings())), flow)


def refine(query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, spec: RefineSpec) -> Matches:
    """See `stan.ops.refine`."""
    no_tangent("refine", query, key, offsets)
    return _placed(Matches(*ops.refine(query, key, offsets, frames, **spec.settings())[:3]), offsets)


def _placed(found: Matches, around: Tensor | None) -> Matches:
    """Places depend on what they were searched around alone: without a gradient there, no gather has to make theirs."""
    moves = around is not None and around.requires_grad
    return found if moves else Matches(found.scores, found.offsets.detach(), found.frames)


def search_flow(forward: Tensor, backward: Tensor, temporal_window: int, stride: int, causal: bool) -> Tensor:
    """See `stan.ops.search_flow`."""
    no_tangent("search_flow", forward, backward)
    return ops.search_flow(forward, backward, temporal_window, stride, causal)


def gather(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather`."""
    no_tangent("gather", value, weights, offsets)
    settings = (spec.patch, spec.dilation, spec.stride, spec.block, False)
    return ops.gather(value, weights, offsets, frames, *settings)


def gather_stack(value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, spec: GatherSpec) -> Tensor:
    """See `stan.ops.gather_stack`."""
    no_tangent("gather", value, weights, offsets)
    return ops.gather(value, weights, offsets, frames, 1, 1, spec.stride, spec.block, True)


def scatter(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, size: tuple[int, int], spec: GatherSpec
) -> Tensor:
    """See `stan.ops.scatter`."""
    no_tangent("scatter", source, weights, offsets)
    settings = (spec.patch, spec.dilation, spec.stride)
    return ops.scatter(source, weights, offsets, frames, *size, *settings)


def _side(length: int, stride: int) -> int:
    """Queries along an axis."""
    return (length - 1) // stride + 1


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _gradients(needed: tuple[bool, ...], likes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of `likes`; an empty tensor stands for one that nobody asked for."""
    return tuple(like.new_empty(like.shape if need else (0,)) for need, like in zip(needed, likes))


def _asked(grads: tuple[Tensor, ...], needed: tuple[bool, ...]) -> Grads:
    return tuple(grad if wanted else None for grad, wanted in zip(grads, needed))


# -------------------------------------------------------------------------------------------------- search and refine
# Their settings are keywords, those of SearchSpec and RefineSpec by name: what is said here does not list them.


def _found(query: Tensor, grid: tuple[int, ...], matches: int) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = (*grid, matches), score_dtype(query)
    return (
        query.new_empty(shape, dtype=dtype),
        query.new_empty((*shape, 2), dtype=dtype),
        query.new_empty(shape, dtype=torch.int32),
    )


@torch.library.register_fake("stan::search")
def _(query: Tensor, key: Tensor, flow: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    spec = SearchSpec(**settings)
    batch, frames, _, height, width = query.shape
    grid = (batch, spec.heads, frames, _side(height, spec.stride), _side(width, spec.stride))
    return _found(query, grid, spec.matches)


@torch.library.register_fake("stan::refine")
def _(
    query: Tensor, key: Tensor, offsets: Tensor, frames: Tensor, **settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spec = RefineSpec(incoming=frames.shape[5], **settings)
    found = _found(query, frames.shape[:5], spec.topk)
    return *found, torch.empty_like(found[2])


@torch.library.register_fake("stan::search_backward")
@torch.library.register_fake("stan::refine_backward")
def _(
    grad_scores: Tensor, grad_offsets: Tensor, query: Tensor, key: Tensor, shift: Tensor | None, *rest: Any,
    **settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *_, need_query, need_key, need_shift, _deterministic = rest  # after where the matches are
    likes = (query, key, grad_scores if shift is None else shift)
    return _gradients((need_query, need_key, need_shift), likes)


def _found_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, ...]
) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])  # query, key, flow or offsets; where the matches are
    ctx.nothing = (None,) * (len(inputs) - 3)
    ctx.settings = keyword_only_inputs


def _found_gradient(backward: Callable[..., Any]) -> Callable[..., Grads]:
    def gradient(ctx: Any, grad_scores: Tensor, grad_offsets: Tensor, *_: Tensor | None) -> Grads:
        needed = ctx.needs_input_grad[:3]
        saved, how = ctx.saved_tensors, (*needed, _deterministic())
        grads = backward(grad_scores, grad_offsets, *saved, *how, **ctx.settings)
        return *_asked(grads, needed), *ctx.nothing

    return gradient


# -------------------------------------------------------------------------------------------------------- search_flow


@torch.library.register_fake("stan::search_flow")
def _(forward: Tensor, backward: Tensor, temporal_window: int, stride: int, causal: bool) -> Tensor:
    batch, frames, _, height, width = forward.shape
    others = temporal_window if causal else 2 * temporal_window
    return forward.new_empty((batch, frames, others, 2, _side(height, stride), _side(width, stride)))


@torch.library.register_fake("stan::search_flow_backward")
def _(grad: Tensor, forward: Tensor, backward: Tensor, *settings: int) -> tuple[Tensor, ...]:
    return _gradients((True, True), (forward, backward))


def _search_flow_gradient(ctx: Any, grad: Tensor) -> Grads:
    grads = ops.search_flow_backward(grad, *ctx.saved_tensors, *ctx.settings, _deterministic())
    return (*grads, None, None, None)


# ------------------------------------------------------------------------------------------------- gather and scatter


@torch.library.register_fake("stan::gather")
def _(
    value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, patch: int, dilation: int, stride: int,
    block: int, stack: bool,
) -> Tensor:  # fmt: skip
    batch, heads, times, height, width, matches = weights.shape
    if block > 1:
        height, width = (_side(length, stride) for length in value.shape[3:])
    if stack:
        return value.new_empty((batch, heads, matches, times, value.shape[2] // heads, height, width))
    return value.new_empty((batch, times, value.shape[2], height, width))


@torch.library.register_fake("stan::gather_backward")
def _(
    grad: Tensor, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, patch: int, dilation: int,
    stride: int, block: int, stack: bool, *needed: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _gradients(needed, (value, weights, offsets))


def _gather_gradient(ctx: Any, grad: Tensor) -> Grads:
    needed = ctx.needs_input_grad[:3]
    grads = ops.gather_backward(grad, *ctx.saved_tensors, *ctx.settings, *needed, _deterministic())
    return *_asked(grads, needed), *[None] * 6


# Scatter is the gradient of gather with respect to the value, so it needs no kernel of its own.
_NO_BLOCK_NO_STACK = (1, False)  # the settings of gather that scatter has not
_library.define(
    "scatter(Tensor source, Tensor weights, Tensor offsets, Tensor frames, SymInt height, SymInt width, int patch, "
    "int dilation, int stride) -> Tensor"
)


def _scatter(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, height: int, width: int, *settings: int
) -> Tensor:
    shape_only = source.new_empty(()).expand(*source.shape[:3], height, width)
    how = (*settings, *_NO_BLOCK_NO_STACK, True, False, False, _deterministic())
    return ops.gather_backward(source, shape_only, weights, offsets, frames, *how)[0]


_library.impl("scatter", _scatter, "CompositeExplicitAutograd")


@torch.library.register_fake("stan::scatter")
def _(
    source: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor, height: int, width: int, *settings: int
) -> Tensor:
    return source.new_empty((*source.shape[:3], height, width))


def _scatter_gradient(ctx: Any, grad: Tensor) -> Grads:
    # <scatter(source), grad> = <gather(grad), source>, and so are the gradients.
    source, weights, offsets, frames = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    settings = (*ctx.settings[2:], *_NO_BLOCK_NO_STACK)
    to_source = ops.gather(grad, weights, offsets, frames, *settings) if needed[0] else None
    others = (False, *needed[1:])
    grads = ops.gather_backward(source, grad, weights, offsets, frames, *settings, *others, _deterministic())
    return (to_source, *_asked(grads, others)[1:], *[None] * 6)


# -------------------------------------------------------------------------------------------------------- convolution
# On pictures (N, H, W, C).


@torch.library.register_fake("stan::convolve")
def _(input: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, relu: bool) -> Tensor:
    return input.new_empty((*input.shape[:3], weight.shape[0]))


@torch.library.register_fake("stan::convolve_backward")
def _(grad: Tensor, input: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[3], input.shape[3], 3, 3))


def _convolve_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, _, relu = inputs
    ctx.save_for_backward(input, weight, output if relu else None)


def _convolve_gradient(ctx: Any, grad: Tensor) -> Grads:
    input, weight, output = ctx.saved_tensors
    of_input, of_weight, of_bias, of_add, _ = ctx.needs_input_grad
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    turned = weight.flip(2, 3).transpose(0, 1)  # the gradient of the input is a convolution by it
    return (
        ops.convolve(grad, turned, None, None, False) if of_input else None,
        ops.convolve_backward(grad, input) if of_weight else None,
        grad.sum((0, 1, 2)) if of_bias else None,
        grad if of_add else None,
        None,
    )


# ----------------------------------------------------------------------------------------------------------- autograd


def _saved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the tensors, which come first, and the settings behind them."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.settings = tuple(x for x in inputs if not isinstance(x, Tensor))


def _no_second_derivative(name: str) -> Callable[..., None]:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"stan::{name} cannot be differentiated: the operator has no second derivatives")

    return refuse


_GRADIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "search": (_found_gradient(ops.search_backward), _found_context),
    "refine": (_found_gradient(ops.refine_backward), _found_context),
    "search_flow": (_search_flow_gradient, _saved),
    "gather": (_gather_gradient, _saved),
    "scatter": (_scatter_gradient, _saved),
    "convolve": (_convolve_gradient, _convolve_context),
}
for _name, (_gradient, _context) in _GRADIENTS.items():
    torch.library.register_autograd(f"stan::{_name}", _gradient, setup_context=_context)
for _name in ("search", "refine", "search_flow", "gather", "convolve"):
    torch.library.register_autograd(f"stan::{_name}_backward", _no_second_derivative(f"{_name}_backward"))


# ----------------------------------------------------------------------------------------------------------- autocast


def _meet(first: Tensor, second: Tensor) -> list[Tensor]:
    """Bring two tensors to the wider of their types."""
    dtype = torch.promote_types(first.dtype, second.dtype)
    return [first.to(dtype), second.to(dtype)]


def _search_types(query: Tensor, key: Tensor, shift: Tensor | None, *rest: Tensor) -> tuple[Any, ...]:
    query, key = _meet(query, key)
    return (query, key, None if shift is None else shift.to(score_dtype(query)), *rest)


def _search_flow_types(forward: Tensor, backward: Tensor, *settings: Any) -> tuple[Any, ...]:
    return (*[flow.to(score_dtype(flow)) for flow in _meet(forward, backward)], *settings)


def _gather_types(value: Tensor, weights: Tensor, offsets: Tensor, *rest: Any) -> tuple[Any, ...]:
    dtype = score_dtype(value)
    return (value, weights.to(dtype), offsets.to(dtype), *rest)


def _register_autocast(name: str, types: Callable[..., tuple[Any, ...]]) -> None:
    op = getattr(ops, name).default

    def rule(*args: Any, **settings: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*types(*args), **settings)

    for key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(name, rule, key)


_CPU, _CUDA = torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA
_AUTOCAST = torch._C.DispatchKeySet(_CPU) | torch._C.DispatchKeySet(_CUDA)
_register_autocast("search", _search_types)
_register_autocast("refine", _search_types)
_register_autocast("search_flow", _search_flow_types)
_register_autocast("gather", _gather_types)
_register_autocast("scatter", _gather_types)
