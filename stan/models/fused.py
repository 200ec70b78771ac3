"""Convolutions that finish their own output: ReLU or an addition in the same pass over memory, where no gradient is
wanted. On a CPU a network like `UNet` waits for memory more than for arithmetic, and a unit takes 0.6 of the time so.

The fused forms are oneDNN's, as `torch.compile` uses them (torch/_inductor/fx_passes/mkldnn_fusion.py); elsewhere the
same is done step by step. A sum is rounded once instead of twice, so results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`relu(conv(x))`, `(N, C, H, W)`."""
    if not _can_fuse(x):
        return F.relu(conv(x), inplace=True)
    return torch.ops.mkldnn._convolution_pointwise(*_operands(conv, x), *_shape(conv), "relu", [], "")


def conv_add(conv: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """`conv(x) + other`, `(N, C, H, W)`."""
    if not _can_fuse(x):
        return added(conv(x), other)
    x, weight, bias = _operands(conv, x)
    fused = torch.ops.mkldnn._convolution_pointwise.binary
    return fused(x, other.to(x.dtype), weight, bias, *_shape(conv), "add", 1.0, None, [], None)


def added(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum; where no gradient is wanted it takes the place of `fresh`, which nobody else holds."""
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _can_fuse(x: Tensor) -> bool:
    """Whether they are fused: on a CPU, without gradients, in a type that oneDNN has kernels for here."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # an exported graph is for other machines too
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and has_kernels(_type(x))
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


def _operands(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias in the type that autocast would give them."""
    dtype = _type(x)
    bias = None if conv.bias is None else conv.bias.to(dtype)
    return x.to(dtype), conv.weight.to(dtype), bias


def _shape(conv: nn.Conv2d) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    assert not isinstance(conv.padding, str)
    return conv.padding, conv.stride, conv.dilation, conv.groups
