"""3x3 convolutions in float32 on CPUs, by Winograd's minimal filtering in our own kernel (csrc/cpu/winograd.h).

No library that torch brings has one for CPUs without AVX-512: oneDNN computes the sum as it is written, at nearly the
speed of the processor, so that only a way with fewer products can be faster. Results differ from it by rounding (about
1e-5 of the largest output). See docs/benchmarks.md for figures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backend, checks, library


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` can be used for such an input, and is faster than torch.

    It is not where the pictures are so small that the weights take longer than the pixels, nor is it known to be on
    processors without AVX2. It has no forward-mode derivative. STAN_BACKEND=reference takes torch's.

    Args:
        x: (N, C, H, W).
        weight: (outputs, C, 3, 3), or that of another convolution.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.shape[2:] == (3, 3)
        and pixels >= 2 * max(weight.shape[:2])
        and library.CAPABILITY in ("avx2", "avx512")
        and backend.DEFAULT != "reference"
        and not checks.has_tangent(x, weight)
    )


def convolve(
    x: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (outputs, C, 3, 3)
    bias: Tensor | None = None,  # (outputs,)
    *,
    add: Tensor | None = None,  # (N, outputs, H, W)
    relu: bool = False,
) -> Tensor:
    """The 3x3 convolution of stride 1 with a border of zeros, what is to be added, and the ReLU, in one pass.

    Differentiable in x, weight, bias and add, once. Pictures are read and written in torch's channels-last format;
    others are copied into it.

    Returns:
        (N, outputs, H, W), channels last.

    Raises:
        RuntimeError: an argument has the wrong type, shape or device or a forward-mode tangent, or the native kernels
            are not built.
    """
    checks.no_tangent("convolve", x, weight, bias, add)
    shown = None if add is None else add.permute(0, 2, 3, 1)  # (N, H, W, outputs)
    out = torch.ops.stan.convolve(x.permute(0, 2, 3, 1), weight, bias, shown, relu)  # (N, H, W, outputs)
    return out.permute(0, 3, 1, 2)  # (N, outputs, H, W)
