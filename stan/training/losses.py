"""What training minimises: each loss takes denoised and clean `(B, T, C, H, W)` in [0, 1], gives a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stan.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


def charbonnier(denoised: Tensor, clean: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + epsilon^2): L1 with a smooth foot (Charbonnier et al., ICIP 1994)."""
    return ((denoised - clean).square() + epsilon**2).sqrt().mean()


def rmse(denoised: Tensor, clean: Tensor, epsilon: float = 1e-3) -> Tensor:
    """sqrt(mean(difference^2) + epsilon^2) over the whole batch: the loss of arXiv 2309.16849."""
    return ((denoised - clean).square().mean() + epsilon**2).sqrt()


def l1(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (denoised - clean).abs().mean()


def l2(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference."""
    return (denoised - clean).square().mean()


def psnr(denoised: Tensor, clean: Tensor) -> Tensor:
    """Minus the PSNR in dB, mean over the clips of the batch: easy and hard clips weigh the same."""
    mse = (denoised - clean).square().flatten(1).mean(1)  # (B,)
    return 10 * torch.log10(mse + 1e-8).mean()


def build(name: str, epsilon: float = 1e-3) -> Loss:
    """The loss of that name; ``epsilon`` is for charbonnier and rmse.

    Raises:
        ConfigError: for an unknown name.
    """
    if name in ("charbonnier", "rmse"):
        smooth = charbonnier if name == "charbonnier" else rmse
        return lambda denoised, clean: smooth(denoised, clean, epsilon)
    losses: dict[str, Loss] = {"l1": l1, "l2": l2, "psnr": psnr}
    if name not in losses:
        raise ConfigError(f"loss.name={name!r} is not known; valid: charbonnier, rmse, {', '.join(losses)}")
    return losses[name]
