"""What training minimises: each loss takes denoised and clean `(B, T, C, H, W)` in [0, 1], gives a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from stan.registry import losses
from stan.settings import at_least

Loss = Callable[[Tensor, Tensor], Tensor]
Epsilon = Annotated[float, at_least(0)]


@losses.register("charbonnier")
def charbonnier(denoised: Tensor, clean: Tensor, *, epsilon: Epsilon = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + epsilon^2): L1 with a smooth foot (Charbonnier et al., ICIP 1994).

    Args:
        epsilon: smoothing near zero, in units of [0, 1] video.
    """
    return ((denoised - clean).square() + epsilon**2).sqrt().mean()


@losses.register("rmse")
def rmse(denoised: Tensor, clean: Tensor, *, epsilon: Epsilon = 1e-3) -> Tensor:
    """sqrt(mean(difference^2) + epsilon^2) over the whole batch: the loss of arXiv 2309.16849.

    Args:
        epsilon: smoothing near zero, in units of [0, 1] video.
    """
    return ((denoised - clean).square().mean() + epsilon**2).sqrt()


@losses.register("l1")
def l1(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (denoised - clean).abs().mean()


@losses.register("l2")
def l2(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference."""
    return (denoised - clean).square().mean()


@losses.register("psnr")
def psnr(denoised: Tensor, clean: Tensor) -> Tensor:
    """Minus the PSNR in dB, mean over the clips of the batch: easy and hard clips weigh the same."""
    mse = (denoised - clean).square().flatten(1).mean(1)  # (B,)
    return 10 * torch.log10(mse + 1e-8).mean()


build = losses.bind
"""The loss of that name with its settings filled in."""
