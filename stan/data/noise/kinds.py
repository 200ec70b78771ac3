"""Kinds of noise, each set by one level: sigma, a standard deviation in 8-bit units.

Where the standard deviation depends on the signal (`poisson`, `poisson_gaussian`), sigma is its value at mid
grey (0.5). The variance of these kinds grows linearly with the signal (Foi, Trimeche, Katkovnik and
Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data", IEEE TIP
2008), so a clip whose mean level is mid grey gets noise of that standard deviation overall, and levels
compare across kinds. A level tied to the mean of the clip at hand would change from crop to crop.

Every kind works on any device. Arithmetic is limited to single additions, products, quotients, roots and
roundings, which IEEE 754 fixes to the last bit: with `NumpyRandom` the noisy video is the same bits on every
machine and device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import torch

from stan.data.noise.random import Random
from stan.registry import noises
from stan.settings import between, complete


class Noise(ABC):
    """Makes a clean video noisy: `noise(clean, sigma, random)`.

    A subclass is registered in `stan.registry.noises`, hands its settings to this constructor, which checks them as
    the subclass declares them, and implements `_add`.

    Attributes:
        kind: the name under which it is registered.
        settings: what `build(kind, **settings)` needs to make it again.
    """

    kind: ClassVar[str] = "own"

    def __init__(self, **settings: Any) -> None:
        self.settings = complete(type(self), settings, f"noise kind {self.kind!r}", prefix="noise ")

    def __call__(self, clean: torch.Tensor, sigma: float | torch.Tensor, random: Random) -> torch.Tensor:
        """Add noise.

        Args:
            clean: `(..., T, 3, H, W)`, floating point, [0, 1]; the sum is made in float32.
            sigma: level in 8-bit units; a number, or a tensor whose axes are the first ones of `clean`: `()`,
                `(B,)` or `(B, T)`. Level 0 gives the clean video back (rounded or clipped where the kind does
                so).
            random: source of random numbers; its draws go on where the last call stopped. A clip given in
                pieces along time gets the same noise as in one call.

        Returns:
            The noisy video in the shape, type and device of `clean`; outside [0, 1] where the noise takes it
            there, unless the kind clips.

        Raises:
            TypeError: `clean` is not floating point.
            ValueError: a negative or NaN level, or a tensor of levels that does not fit `clean`.
        """
        std = _spread(sigma, clean)
        # A number is divided in double precision and then rounded: what others will do who follow the page.
        std = std * (1 / 255) if isinstance(sigma, torch.Tensor) else torch.full_like(std, sigma / 255)
        return self._add(clean.float(), std, random).to(clean.dtype)

    def level_map(self, video: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Give the standard deviation that each pixel's noise has, before any clipping and rounding.

        Args:
            video: `(..., T, 3, H, W)`, [0, 1]: the clean video for the true map, the noisy one for an
                estimate of it (values are clamped to [0, 1] first).
            sigma: as for the call.

        Returns:
            `(..., T, 1, H, W)` float32, 8-bit units: the root mean square over the three channels.
        """
        level = _spread(sigma, video)
        gain = self._relative_variance(video.float().clamp(0, 1).mean(dim=-3, keepdim=True)).sqrt()
        return (level * gain).expand_as(gain)

    @abstractmethod
    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        """Add noise of standard deviation `std` (value units [0, 1], broadcasts to `clean`)."""

    def _relative_variance(self, clean: torch.Tensor) -> torch.Tensor:
        """Give the variance at each value as a multiple of sigma squared."""
        return torch.ones_like(clean)

    def __repr__(self) -> str:
        inner = ", ".join([repr(self.kind), *(f"{name}={value:g}" for name, value in self.settings.items())])
        return f"noise.build({inner})"


@noises.register("gaussian")
class Gaussian(Noise):
    """White Gaussian noise, independent for every frame, pixel and channel; the noise of published tables.

    Neither clipped nor rounded.
    """

    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        return clean + _normal(clean, random) * std


@noises.register("gaussian_clipped")
class ClippedGaussian(Gaussian):
    """White Gaussian noise, then clipped to [0, 1]; sigma is the standard deviation before clipping."""

    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        return super()._add(clean, std, random).clamp(0, 1)


@noises.register("gaussian_rounded")
class RoundedGaussian(ClippedGaussian):
    """White Gaussian noise, clipped to [0, 1] and rounded to 8 bits: what a noisy file on disk holds."""

    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        levels = (super()._add(clean, std, random) * 255).round()
        # A quotient of tensors: CUDA replaces division by a number with a product, which is off by the last bit.
        return levels / torch.full_like(levels[..., :1], 255)


@noises.register("correlated")
class CorrelatedGaussian(Noise):
    """Spatially correlated Gaussian noise: white noise blurred within each frame and channel, then scaled
    back to sigma.

    Denoising in a camera, demosaicing and resizing leave noise of this sort. Two pixels at distance d have
    correlation exp(-d^2 / (4 blur^2)). The statistics are the same up to the border.

    Args:
        blur: standard deviation of the Gaussian kernel in pixels; 0 is white noise.
    """

    def __init__(self, *, blur: Annotated[float, between(0, 10)] = 1.0) -> None:
        super().__init__(blur=blur)
        taps = bell(blur)
        norm = math.sqrt(math.fsum(tap * tap for tap in taps))  # white noise keeps its variance
        self.taps = [round(tap / norm, 12) for tap in taps]

    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        reach = len(self.taps) - 1
        *lead, height, width = clean.shape
        white = random.normal((*lead, height + reach, width + reach)).to(clean.device)
        noise = filtered(filtered(white, -2, height, self.taps), -1, width, self.taps)
        return clean + noise * std


@noises.register("poisson_gaussian")
class PoissonGaussian(Noise):
    """Shot noise plus read noise: gain * Poisson(clean / gain) + Gaussian, of variance `a * clean + b` (Foi
    et al. 2008).

    With s = sigma / 255, the gain is a = 2 * shot * s^2 and the read variance b = (1 - shot) * s^2, so that
    the variance at mid grey is s^2.

    Args:
        shot: share of the variance at mid grey that is shot noise.
    """

    def __init__(self, *, shot: Annotated[float, between(0, 1)] = 0.5) -> None:
        super().__init__(shot=shot)
        self.shot = shot

    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        # Two streams, so that a clip given in pieces gets the same noise as in one call.
        noisy = clean
        if self.shot > 0:
            noisy = _shot(clean, std * std * (2 * self.shot), random.stream("shot"))
        if self.shot < 1:
            read = (std * std * (1 - self.shot)).sqrt()
            noisy = noisy + _normal(clean, random.stream("read")) * read
        return noisy

    def _relative_variance(self, clean: torch.Tensor) -> torch.Tensor:
        return 2 * self.shot * clean + (1 - self.shot)


@noises.register("poisson")
class Poisson(PoissonGaussian):
    """Shot noise alone: photon counts, scaled back to [0, 1]; sigma 30 is 36 photons at white."""

    shot = 1.0

    def __init__(self) -> None:
        Noise.__init__(self)


def build(kind: str, **settings: Any) -> Noise:
    """Make a kind of noise by name; see its class for the settings.

    Raises:
        ConfigError: an unknown kind or setting, or a value that is out of range.
    """
    return noises.build(kind, **settings)


def _spread(level: float | torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Check both, and give the level as a float32 tensor on the video's device that broadcasts to the video."""
    if not video.is_floating_point():
        raise TypeError(f"noise needs a floating point video in [0, 1], got {video.dtype}")
    if video.dim() < 4 or video.shape[-3] != 3:
        raise ValueError(f"noise needs a video (..., T, 3, H, W), got shape {tuple(video.shape)}")

    if not isinstance(level, torch.Tensor):
        if not (math.isfinite(level) and level >= 0):
            raise ValueError(f"sigma must be a level from 0 up in 8-bit units, got {level}")
        return torch.tensor(level, dtype=torch.float32, device=video.device)
    if level.dim() > 0 and level.shape != video.shape[: level.dim()]:
        raise ValueError(f"sigma of shape {tuple(level.shape)} does not fit a video {tuple(video.shape)}")
    level = level.to(video.device, torch.float32)
    return level.reshape(level.shape + (1,) * (video.dim() - level.dim()))  # (B, 1, 1, 1, 1)


def _normal(like: torch.Tensor, random: Random) -> torch.Tensor:
    return random.normal(like.shape).to(like.device)


def _shot(clean: torch.Tensor, gain: torch.Tensor, random: Random) -> torch.Tensor:
    """Count photons, clean / gain of them on average, times gain; a gain of 0 means no noise."""
    silent = gain == 0
    rate = clean.clamp(min=0) / torch.where(silent, torch.ones_like(gain), gain)
    counts = random.poisson(rate).to(clean.device)
    return torch.where(silent, clean, counts * gain)


def bell(blur: float) -> list[float]:
    """A Gaussian of deviation `blur` (pixels) and height 1, cut at 4 deviations. Round what is made of it to 12 digits,
    beyond which C libraries may differ."""
    reach = math.ceil(4 * blur)
    return [math.exp(-0.5 * (i / blur) ** 2) if blur else 1.0 for i in range(-reach, reach + 1)]


def filtered(values: torch.Tensor, dim: int, size: int, taps: list[float]) -> torch.Tensor:
    """The first `size` sums of neighbours along `dim`, weighted by `taps`.

    In a fixed order instead of by a convolution, whose order depends on the machine.
    """
    out = values.narrow(dim, 0, size) * taps[0]
    for i, tap in enumerate(taps[1:], 1):
        out = out + values.narrow(dim, i, size) * tap
    return out
