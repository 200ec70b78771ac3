"""Convolutions of all networks: the quickest way there is here, and outputs finished in the same pass.

On a CPU a network waits for arithmetic in float32, and for memory in shorter types. So 3x3 convolutions in float32
are `stan.ops.convolution`'s, with half of the time or less; others finish their own output (ReLU, an addition) where no
gradient is wanted, by oneDNN's fused forms, as `torch.compile` uses them (torch/_inductor/fx_passes/mkldnn_fusion.py).
Elsewhere all is done step by step. Results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan.ops.checks import has_tangent
from stan.ops.convolution import convolve, suits


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`layer(x)`, `(N, C, H, W)`."""
    return convolve(x, layer.weight, layer.bias) if _is_quick(layer, x) else layer(x)


def conv_3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` of weights `(outputs, C, 3, 3)` that no layer holds."""
    return convolve(x, weight, bias) if _suits(x, weight) else F.conv2d(x, weight, bias, padding=1)


def conv_relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`relu(layer(x))`, `(N, C, H, W)`."""
    if _is_quick(layer, x):
        return convolve(x, layer.weight, layer.bias, relu=True)
    if not _can_fuse(layer, x):
        return F.relu(layer(x), inplace=True)
    return torch.ops.mkldnn._convolution_pointwise(*_operands(layer, x), *_shape(layer), "relu", [], "")


def conv_add(layer: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """`layer(x) + other`, `(N, C, H, W)`."""
    if has_tangent(other):
        return added(layer(x), other)
    if _is_quick(layer, x):
        return convolve(x, layer.weight, layer.bias, add=other)
    if not _can_fuse(layer, x):
        return added(layer(x), other)
    x, weight, bias = _operands(layer, x)
    fused = torch.ops.mkldnn._convolution_pointwise.binary
    return fused(x, other.to(x.dtype), weight, bias, *_shape(layer), "add", 1.0, None, [], None)


def added(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum; where no gradient is wanted it takes the place of `fresh`, which nobody else holds."""
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _is_quick(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether our own kernel takes this layer."""
    shape = layer.stride, layer.padding, layer.dilation, layer.groups
    return shape == ((1, 1), (1, 1), (1, 1), 1) and layer.padding_mode == "zeros" and _suits(x, layer.weight)


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether our own kernel takes this input."""
    compiling = torch.compiler.is_compiling()  # an exported graph is for other machines too
    return _type(x) == torch.float32 and suits(x, weight) and not compiling


def _can_fuse(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether they are fused: on a CPU, without gradients, in a type that oneDNN has kernels for here."""
    return (
        x.device.type == "cpu"
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # an exported graph is for other machines too
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and has_kernels(_type(x))
        and not has_tangent(x, layer.weight, layer.bias)  # they would drop it
    )


def _type(x: Tensor) -> torch.dtype:
    """What autocast makes of `x`."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@cache
def has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for a type on this CPU; plain convolutions work in every type everywhere.

    Short types need newer instructions (bfloat16: AVX-512).
    """
    if dtype in (torch.bfloat16, torch.float16):
        asked = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
        return hasattr(torch.ops.mkldnn, asked) and bool(getattr(torch.ops.mkldnn, asked)())
    return dtype == torch.float32


def _operands(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias in the type that autocast would give them."""
    dtype = _type(x)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return x.to(dtype), layer.weight.to(dtype), bias


def _shape(layer: nn.Conv2d) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    assert not isinstance(layer.padding, str)
    return layer.padding, layer.stride, layer.dilation, layer.groups
