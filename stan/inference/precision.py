"""The type to compute in, from what the device is fast at."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

DType = torch.dtype | Literal["auto"] | None
"""The type of `torch.autocast`, None for float32 without it, "auto" for what is fast."""


def fast_type(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device has instructions for it (AVX512-BF16 or AMX, a GPU from Ampere on), else None: float32.

    Elsewhere bfloat16 is emulated, and slower.
    """
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return None


def is_emulated(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether it is bfloat16 on a device without instructions for it: up to ten times slower than float32."""
    return dtype == torch.bfloat16 and fast_type(device) is None


def type_of(dtype: DType, device: torch.device) -> torch.dtype | None:
    """The type that an option names, for `torch.autocast`; None is float32, without it."""
    return fast_type(device) if isinstance(dtype, str) else dtype


def casting(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
    """The context in which a network runs in a type that `type_of` gave."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
