"""Low resolution."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from stan.data.degradation.base import Degradation
from stan.data.degradation.size import shrink
from stan.data.noise.random import Random
from stan.registry import tasks
from stan.settings import between


@tasks.register("super_resolution")
class SuperResolution(Degradation):
    """Frames made smaller by an antialiased cubic filter and rounded to 8 bits; enlarged again for the network.

    Args:
        factor: how many times smaller their sides are.
    """

    word = "bicubic"

    def __init__(self, *, factor: Annotated[int, between(2, 8)] = 2) -> None:
        super().__init__(factor=factor)
        self.scale = factor

    def _degrade(self, clean: Tensor, random: Random) -> Tensor:
        small = [shrink(frame.float(), self.scale) for frame in clean.flatten(0, 1).split(1)]
        return torch.cat(small).round().clamp(0, 255).to(torch.uint8).unflatten(0, clean.shape[:2])
