"""Gaussian blur."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from stan.data.degradation.base import Degradation, levels_within
from stan.data.noise import Random, parse_levels
from stan.data.noise.kinds import bell, filtered
from stan.reflection import reflect
from stan.registry import tasks

LEAST, MOST = 0.1, 10.0


@tasks.register("deblur")
class Deblur(Degradation):
    """Gaussian blur within each frame, the same in all frames of a clip; mirrored at the border, rounded to 8 bits.

    Args:
        blur: standard deviation of the Gaussian, pixels.
    """

    word = "blurred"

    def __init__(self, *, blur: Annotated[Any, levels_within(LEAST, MOST)] = "0.8..2.4") -> None:
        super().__init__(blur=blur)
        self.levels = parse_levels(blur, "blur", LEAST, MOST)

    def _degrade(self, clean: Tensor, random: Random) -> Tensor:
        blurs = self.levels.draw(random, len(clean)).tolist()
        return torch.stack([blurred(clip, blur) for clip, blur in zip(clean, blurs)])


def blurred(frames: Tensor, blur: float) -> Tensor:
    """Frames `(T, 3, H, W)` uint8, blurred with a Gaussian of standard deviation `blur` pixels."""
    taps = gaussian_taps(blur)
    reach = len(taps) // 2
    out = torch.empty_like(frames)
    for t, frame in enumerate(frames):  # (3, H, W)
        x = frame.float()
        for dim in (1, 2):
            side = x.shape[dim]
            index = torch.tensor(reflect(range(-reach, side + reach), side), device=x.device)
            x = filtered(x.index_select(dim, index), dim, side, taps)
        out[t] = x.round().clamp(0, 255).to(torch.uint8)
    return out


def gaussian_taps(blur: float) -> list[float]:
    """Taps of a Gaussian that sum to one."""
    taps = bell(blur)
    return [round(tap / math.fsum(taps), 12) for tap in taps]
