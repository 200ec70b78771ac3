"""The noise level of each frame on its way from a file to the network: given, or estimated."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from stan.data.video import Frame
from stan.errors import StanError
from stan.inference.noise_level import NoiseTracker

if TYPE_CHECKING:
    from stan.models import VideoDenoiser


class NoiseLevel:
    """The noise level of each frame: given, or estimated from the frames themselves; in 8-bit units, times
    ``strength``.

    Raises:
        StanError: a sigma that is no noise level, or has no meaning for the model.
    """

    def __init__(
        self,
        model: VideoDenoiser,
        sigma: float | Literal["auto"] | None,
        strength: float,
    ) -> None:
        if not (math.isfinite(strength) and strength > 0):
            raise StanError(f"strength {strength} must be above 0: it is a factor on sigma")
        if sigma is not None and sigma != "auto" and not 0 <= float(sigma) <= 255:
            raise StanError(f"sigma {sigma} is outside [0, 255], the range of 8-bit values")
        self.notes: list[str] = []
        self.blind = model.blind
        if model.blind and strength != 1.0:
            raise StanError(f"strength {strength} has no meaning for a blind model: it takes no noise level")
        if model.blind and sigma is not None:
            self.notes.append(f"the model is blind: sigma {sigma} is not used")
        if not model.blind and sigma is None:
            self.notes.append("no sigma given: the noise level is estimated frame by frame (--sigma auto)")
        self._given = None if sigma in (None, "auto") else float(sigma)
        self._strength = strength
        self._tracker = NoiseTracker()
        self._waiting: deque[float] = deque()
        self._count, self._sum, self._low, self._high = 0, 0.0, math.inf, 0.0

    def measure(self, frame: Frame) -> None:
        """Note the level of the next frame."""
        if self.blind:
            return
        level = self._given
        if level is None:
            level = self._tracker.update(frame.rgb)
        level *= self._strength
        self._waiting.append(level)
        self._count += 1
        self._sum += level
        self._low, self._high = min(self._low, level), max(self._high, level)

    def per_frame(self) -> Iterator[float] | None:
        """The levels noted and not yet taken, one a frame; None for a blind model."""
        return None if self.blind else iter(self._waiting.popleft, None)

    @property
    def summary(self) -> tuple[float, float, float] | None:
        """Lowest, mean and highest level so far."""
        return (self._low, self._sum / self._count, self._high) if self._count else None
