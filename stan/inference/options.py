"""`Options`: all that can be chosen about denoising, in one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from stan.errors import ConfigError, StanError

if TYPE_CHECKING:
    import torch

    from stan.flow import FlowPair
    from stan.inference.clip import FlowOf
    from stan.inference.precision import DType
    from stan.inference.tiling import TilePlan


class Progress(Protocol):
    """What is told how far the work is."""

    def __call__(self, done: float, total: int | None) -> None:
        """`done` frames of `total` (None: not known) are computed; part of a chunk counts as part of its
        frames."""


def _silent(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Options:
    """How to denoise; the same for videos in memory, files and streams.

    Attributes:
        sigma: standard deviation of the noise in 8-bit units [0, 255], or ``"auto"``: estimated frame by frame;
            for frames that do not bring their own. None is for blind models (files and streams then take
            ``"auto"`` for the others).
        strength: factor on sigma, given or estimated.
        scenes: whether to look for scene cuts, which no chunk crosses; False takes the video as one scene;
            known cuts are given as the index of each first frame of a new scene.
        tiles: how to cut the video; None chooses it from `memory`.
        memory: memory to use at most, on the model's device and beyond what is in use already: ``"4GiB"``, a
            number of bytes, or None for a part of what is free.
        window: frames that a stream sees at once (see `StreamDenoiser`); plays no part for videos and files.
        flow: displacements between neighbouring frames, for the whole video as `(T, 2, H, W)` or `(1, T, 2,
            H, W)` each, or what estimates them; None takes ``model.source``. Streams take the latter only.
        clamp: clamp the result to [0, 1].
        dtype: run the network under autocast in this type (``torch.bfloat16``, ``torch.float16``); None does
            not; ``"auto"`` takes bfloat16 where the device has instructions for it.
        device: where to run; the model is moved there. None is where the model is.
        progress: called as ``progress(frames done, frames in all)``.
        tell: called with each line worth telling a person.

    Raises:
        StanError: a sigma outside [0, 255], a strength that is not above 0.
        ConfigError: both `tiles` and `memory`.
    """

    sigma: float | Literal["auto"] | None = None
    strength: float = 1.0
    scenes: bool | Sequence[int] = True
    tiles: TilePlan | None = None
    memory: str | int | None = None
    window: int | None = None
    flow: FlowPair | FlowOf | None = None
    clamp: bool = False
    dtype: DType = None
    device: str | torch.device | None = None
    progress: Progress | None = None
    tell: Callable[[str], None] = _silent

    def __post_init__(self) -> None:
        if isinstance(self.sigma, str) and self.sigma != "auto":
            raise StanError(f"sigma={self.sigma!r} must be a number in 8-bit units [0, 255], or 'auto'")
        if self.sigma not in (None, "auto") and not 0 <= float(self.sigma) <= 255:
            raise StanError(
                f"sigma {self.sigma} is outside [0, 255]: it must be finite and at least 0, in 8-bit units"
            )
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise StanError(f"strength {self.strength} must be above 0: it is a factor on sigma")
        if self.tiles is not None and self.memory is not None:
            raise ConfigError(f"give either tiles or memory, not both: {self.tiles}, memory={self.memory!r}")


DEFAULTS = Options()
