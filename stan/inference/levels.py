"""The noise level that each frame takes to the network: its own, the one given, or estimated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.errors import StanError
from stan.inference.noise_level import NoiseTracker
from stan.inference.options import Options

if TYPE_CHECKING:
    from stan.models import VideoDenoiser


class SigmaRangeWarning(UserWarning):
    """The noise level asked for lies outside what the network was trained for."""


class NoiseLevels:
    """Gives each frame of a video its noise level in 8-bit units, times ``strength``; none for a blind model.

    A level that a frame brings along stays; else it is the one given, or with ``"auto"`` the median of the
    estimates of the last frames of the same scene.

    Args:
        model: the network.
        options: ``sigma``, ``strength`` and ``tell`` count.

    Raises:
        StanError: a strength for a model that takes no level.
    """

    def __init__(self, model: VideoDenoiser, options: Options) -> None:
        if model.blind and options.strength != 1.0:
            raise StanError(
                f"strength {options.strength} has no meaning for a blind model: it takes no noise level"
            )
        if model.blind and options.sigma is not None:
            options.tell(f"the model is blind: sigma {options.sigma} is not used")
        self._model, self._options = model, options
        self._count, self._sum, self._low, self._high = 0, 0.0, math.inf, 0.0

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames with their levels, `(1, 1, 1)` or `(1, H, W)` each.

        Raises:
            StanError: a level of another shape, that is not finite or below 0, or missing; frames too small
                to estimate it.
        """
        tracker = NoiseTracker()
        for t, frame in enumerate(frames):
            sigma = None
            if not self._model.blind:
                sigma = self._level(frame, t, tracker)
                self._note(float(sigma.mean()))
            yield replace(frame, sigma=sigma)

    @property
    def summary(self) -> tuple[float, float, float] | None:
        """Lowest, mean and highest level so far, of each frame's mean; None without any."""
        return (self._low, self._sum / self._count, self._high) if self._count else None

    def _level(self, frame: Frame, t: int, tracker: NoiseTracker) -> Tensor:
        given = self._options.sigma if frame.sigma is None else frame.sigma
        if given is None:
            raise StanError(
                f"model {self._model.name!r} needs sigma, the noise level in 8-bit units [0, 255] (or 'auto')"
            )
        if isinstance(given, str):
            given = tracker.update(frame.rgb, frame.begins_scene)
        level = torch.as_tensor(given * self._options.strength, dtype=torch.float32).detach().cpu()
        height, width = frame.rgb.shape[1:]
        if level.numel() == 1:
            level = level.reshape(1, 1, 1)
        elif level.shape[-2:] == (height, width) and level.numel() == height * width:
            level = level.reshape(1, height, width)
        else:
            raise StanError(
                f"sigma of frame {t} has shape {tuple(level.shape)}; expected a number or a map of the frame's "
                f"size {(height, width)}"
            )
        if not bool(torch.isfinite(level).all()) or bool((level < 0).any()):
            raise StanError(
                f"sigma of frame {t} must be finite and at least 0, in 8-bit units [0, 255]; "
                f"got {_range(level)}"
            )
        return level

    def _note(self, level: float) -> None:
        self._count += 1
        self._sum += level
        self._low, self._high = min(self._low, level), max(self._high, level)


def found_if_not_given(model: VideoDenoiser, options: Options) -> Options:
    """The options with ``"auto"`` for a model that needs a noise level and is given none, which is told.

    A model that undoes something else beside one level of noise is given that level: what is left of a blurred or
    compressed video's noise says little about it.
    """
    if model.blind or options.sigma is not None:
        return options
    trained = model.trained
    if trained is not None and trained.task != "denoise" and trained.low == trained.high:
        options.tell(f"no sigma given: {trained.levels}, which the network was trained for ({trained.task})")
        return replace(options, sigma=trained.low)
    options.tell("no sigma given: the noise level is estimated frame by frame (--sigma auto)")
    return replace(options, sigma="auto")


def warn_untrained(frames: Iterable[Frame], model: VideoDenoiser) -> Iterator[Frame]:
    """The frames as they are; warns once of a level that the model was not trained for."""
    trained, warned = model.trained, False
    for t, frame in enumerate(frames):
        level = frame.sigma
        if trained is not None and not warned and isinstance(level, Tensor):
            warned = float(level.min()) < trained.low or float(level.max()) > trained.high
            if warned:
                warnings.warn(
                    f"sigma {_range(level)} is outside what model {model.name!r} was trained for "
                    f"({trained.levels}), first at frame {t}; fine-tune it at this level for a good result",
                    SigmaRangeWarning,
                    stacklevel=2,
                )
        yield frame


def _range(level: Tensor) -> str:
    low, high = float(level.min()), float(level.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
