"""Exponential moving average of the weights, on torch's own AveragedModel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        # Young averages would be mostly their random start, so the decay grows into its value.
        n = float(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, weight)

    return update


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A frozen copy of ``model`` whose ``update_parameters(model)`` moves it by 1 - decay, faster at first.

    The copy is ``result.module``; buffers are copied from the model, not averaged.
    """
    average = AveragedModel(model, multi_avg_fn=_average(decay))
    average.requires_grad_(False)
    average.eval()
    return average
