"""`Degradation`: what is done to clean clips before noise is added, and must be undone. A task is named after it.

A video that is degraded has been stored since: degraded frames are whole 8-bit levels. A degradation that makes frames
smaller says so by `scale`; its frames are enlarged again (bicubic) behind the noise, so that networks, flow, tiles and
measures see one size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from stan.data.degradation.size import enlarge
from stan.data.noise import Noise, Random, parse_levels
from stan.errors import ConfigError
from stan.registry import tasks
from stan.settings import Limit, complete


class Degradation(ABC):
    """Makes clean clips worse: `degradation(clean, random)`.

    A subclass is registered in `stan.registry.tasks`, hands its settings to this constructor, which checks them as
    the subclass declares them, and implements `_degrade`.

    Attributes:
        task: the name under which it is registered.
        word: what its result is called in tables ("blurred").
        settings: what `build(task, **settings)` needs to make it again.
        scale: how many times smaller the sides of its frames are.
    """

    task: ClassVar[str] = "own"
    word: ClassVar[str] = "degraded"
    scale: int = 1

    def __init__(self, **settings: Any) -> None:
        self.settings = complete(type(self), settings, f"task {self.task!r}", prefix="task_settings.")

    def __call__(self, clean: Tensor, random: Random) -> Tensor:
        """Degrade.

        Args:
            clean: `(B, T, 3, H, W)` uint8.
            random: source of random numbers, drawn from once for each clip.

        Returns:
            `(B, T, 3, h, w)` uint8 on the device of `clean`, with h = H / scale and w = W / scale, rounded up.

        Raises:
            TypeError: `clean` is not uint8.
            ValueError: another layout, or a subclass that gives another one.
        """
        if clean.dtype != torch.uint8:
            raise TypeError(f"a degradation takes uint8 clips, got {clean.dtype}")
        if clean.dim() != 5 or clean.shape[2] != 3:
            raise ValueError(f"a degradation takes clips (B, T, 3, H, W), got shape {tuple(clean.shape)}")
        degraded = self._degrade(clean, random)
        height, width = (-(-side // self.scale) for side in clean.shape[-2:])
        expected = (*clean.shape[:3], height, width)
        if degraded.dtype != torch.uint8 or degraded.shape != expected:
            raise ValueError(
                f"task {self.task!r} gave {degraded.dtype} {tuple(degraded.shape)}, expected uint8 {expected}"
            )
        return degraded.to(clean.device)

    def worsened(self, clean: Tensor, noise: Noise, sigma: float | Tensor, random: Random) -> Tensor:
        """What a network gets to see: degraded, then noisy, then at the size of the clean clip again.

        Args:
            clean: `(B, T, 3, H, W)` uint8.
            noise: kind of noise.
            sigma: its level, as `noise` takes it.
            random: for the noise; what the degradation draws does not move its numbers.

        Returns:
            `(B, T, 3, H, W)` float32.
        """
        degraded = self(clean, random.fresh("task")).float() / 255
        return self.enlarged(noise(degraded, sigma, random), (clean.shape[-2], clean.shape[-1]))

    def enlarged(self, video: Tensor, size: tuple[int, int]) -> Tensor:
        """A degraded float video `(..., 3, h, w)` at the `(H, W)` of the clean one."""
        return enlarge(video, self.scale)[..., : size[0], : size[1]] if self.scale > 1 else video

    @abstractmethod
    def _degrade(self, clean: Tensor, random: Random) -> Tensor:
        """Degrade checked clips `(B, T, 3, H, W)`."""

    def __repr__(self) -> str:
        inner = ", ".join([repr(self.task), *(f"{name}={value}" for name, value in self.settings.items())])
        return f"degradation.build({inner})"


@tasks.register("denoise")
class Denoise(Degradation):
    """Nothing beside the noise."""

    word = "noisy"

    def _degrade(self, clean: Tensor, random: Random) -> Tensor:
        return clean


def build(task: str, **settings: Any) -> Degradation:
    """Make the degradation that a task undoes; see its class for the settings.

    Raises:
        ConfigError: an unknown task or setting, or a value that is out of range.
    """
    return tasks.build(task, **settings)


def levels_within(low: float, high: float) -> Limit:
    """Strengths that are drawn for each clip, written as `noise.sigma` is: for settings of type `Any`."""

    def holds(value: Any) -> bool:
        try:
            parse_levels(value, "the setting", low, high)
        except ConfigError:
            return False
        return True

    return Limit(
        holds, f"from {low:g} to {high:g}: a number, a list [a, b] or a range a..b, drawn for each clip"
    )
