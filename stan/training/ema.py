"""Exponential moving average of the weights, on torch's own AveragedModel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A frozen copy of ``model`` whose ``update_parameters(model)`` moves it by 1 - decay, faster at first.

    The copy is ``result.module``; buffers are copied from the model, not averaged.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        # Young averages would be mostly their random start, so the decay grows into its value.
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(model, multi_avg_fn=update)
    average.requires_grad_(False)
    return average.eval()
