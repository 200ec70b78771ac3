"""Argument checks of `stan.ops.functional`: each error names the argument, its value and what was expected.

All checks look at shapes, types and devices only, never at values in a tensor: they cost nothing on a GPU and
disappear under `torch.compile`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

# What the native kernels take (csrc/geometry.h, csrc/settings.h). It bounds the reference too, so that they agree.
LARGEST = 2**23
LARGEST_WINDOW, LARGEST_PATCH, LARGEST_DILATION = 2**14, 255, 2**15


def whole(name: str, value: int, least: int, most: int = LARGEST) -> int:
    """Return `value` if it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name}: expected at most {most}, got {value}")
    return value


def patch_of(side: int, dilation: int) -> None:
    """Check the side of a patch, which is odd, and the distance of its pixels."""
    if whole("patch", side, 1, LARGEST_PATCH) % 2 == 0:
        raise ValueError(f"patch: expected an odd number, so that it has a centre, got {side}")
    whole("dilation", dilation, 1, LARGEST_DILATION)


def positive(name: str, value: float) -> float:
    """Return `value` as a float if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return float(value)


def scale_of(name: str, value: float | Tensor, heads: int) -> float | Tensor:
    """Return `value` if it is a finite number above 0, or a tensor of one or of one per head."""
    if not isinstance(value, Tensor):
        return positive(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if tuple(value.shape) not in ((), (1,), (heads,)):
        raise ValueError(f"{name}: expected a number or shape (HD,) = ({heads},), got {tuple(value.shape)}")
    return value


def flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")
    return value


def floating(name: str, tensor: Tensor, rank: int, axes: str) -> Tensor:
    """Return `tensor` if it is a floating-point tensor of the given rank; `axes` is for the message."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor {axes}, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
    return ranked(name, tensor, rank, axes)


def integers(name: str, tensor: Tensor, rank: int, axes: str) -> Tensor:
    """Return `tensor` if it is int32 or int64 and of the given rank."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor {axes}, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected an int32 or int64 tensor, got {tensor.dtype}")
    return ranked(name, tensor, rank, axes)


def ranked(name: str, tensor: Tensor, rank: int, axes: str) -> Tensor:
    """Return `tensor` if it has `rank` axes."""
    if tensor.dim() != rank:
        raise ValueError(f"{name}: expected {rank} axes {axes}, got shape {tuple(tensor.shape)}")
    return tensor


def shaped(name: str, tensor: Tensor, shape: Sequence[int | None], axes: str) -> Tensor:
    """Return `tensor` if its shape is `shape`, where None stands for any size."""
    for size, expected in zip(tensor.shape, shape):
        if expected is not None and size != expected:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"{name}: expected shape {axes} = ({wanted}), got {tuple(tensor.shape)}")
    return tensor


def video(name: str, tensor: Tensor, heads: int) -> Tensor:
    """Return `tensor` if it is a floating-point video (B, T, HD*C, H, W) with pixels and whole heads."""
    floating(name, tensor, 5, "(B, T, HD*C, H, W)")
    if min(tensor.shape[1:]) < 1:
        raise ValueError(
            f"{name}: expected T, channels, H and W of at least 1, got shape {tuple(tensor.shape)}"
        )
    if tensor.shape[2] % heads:
        raise ValueError(
            f"heads: expected a divisor of the {tensor.shape[2]} channels of {name}, got {heads}"
        )
    return tensor


def same_device(reference_name: str, reference: Tensor, **tensors: Tensor | None) -> None:
    """Raise unless all `tensors` are on the device of `reference`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != reference.device:
            raise ValueError(
                f"{name}: expected device {reference.device}, as {reference_name}, got {tensor.device}"
            )


def same_dtype(reference_name: str, reference: Tensor, **tensors: Tensor) -> None:
    """Raise unless all `tensors` have the type of `reference`."""
    for name, tensor in tensors.items():
        if tensor.dtype != reference.dtype:
            raise TypeError(f"{name}: expected {reference.dtype}, as {reference_name}, got {tensor.dtype}")


def at_most_candidates(topk: int, candidates: int, origin: str) -> int:
    """Return `topk` if there are that many candidates; `origin` says where their number comes from."""
    if topk > candidates:
        raise ValueError(
            f"topk: expected at most {candidates}, the number of candidates ({origin}), got {topk}"
        )
    return topk


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one carries a tangent of forward-mode differentiation, which the native ops would drop in silence."""
    if torch.compiler.is_compiling():  # it traces no such thing
        return False
    return any(tensor is not None and unpack_dual(tensor).tangent is not None for tensor in tensors)


def no_tangent(op: str, *tensors: Tensor | None) -> None:
    """Raise where `op` would have to differentiate in forward mode."""
    if has_tangent(*tensors):
        raise RuntimeError(f"stan::{op} has no forward-mode derivative, only a backward one")
