"""Random numbers from keys: the same key gives the same numbers, whatever ran before.

`TorchRandom` draws on a device and is meant for training. `NumpyRandom` draws on the CPU from numpy's PCG64
and is meant for evaluation, where the numbers must be the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch

Key = int | float | str


def entropy(*key: Key) -> list[int]:
    """Turn a key into eight 32-bit words: the SHA-256 of its parts.

    Parts are told apart (`("a", "b")` is not `("ab",)`), and so are numbers and strings (`30` is not `"30"`);
    numbers that are equal give the same words whatever their type (`30`, `30.0`, `numpy.float32(30)`).

    Args:
        key: any number of integers, finite floats and strings.

    Raises:
        TypeError: a part is something else.
        ValueError: a part is NaN or infinite.
    """
    digest = hashlib.sha256()
    for part in key:
        text = _spell(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return np.frombuffer(digest.digest(), dtype="<u4").tolist()


def _spell(part: Key) -> str:
    if isinstance(part, str):
        return f"s{part}"
    if isinstance(part, (bool, np.bool_)):
        raise TypeError(f"a random key holds numbers and strings, not {part!r}")
    if isinstance(part, (int, np.integer)):
        return f"n{int(part)}"
    if isinstance(part, (float, np.floating)):
        value = float(part)
        if not math.isfinite(value):
            raise ValueError(f"a random key needs finite numbers, got {value}")
        return f"n{int(value)}" if value.is_integer() else f"n{value.hex()}"
    raise TypeError(f"a random key holds numbers and strings, not {type(part).__name__} {part!r}")


class Random(ABC):
    """What noise needs of a source of random numbers. All draws are float32 tensors on `device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: dict[str, Random] = {}

    @abstractmethod
    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw standard normal numbers."""

    @abstractmethod
    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw uniform numbers in [0, 1)."""

    @abstractmethod
    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Draw one Poisson count for each rate (any shape, not negative)."""

    def stream(self, name: str) -> Random:
        """Give the independent source with `name` added to the key; its draws go on where the last ones stopped."""
        if name not in self._streams:
            self._streams[name] = self.fresh(name)
        return self._streams[name]

    @abstractmethod
    def fresh(self, name: str) -> Random:
        """Give the same source at its beginning, at every call: for what a clip given in pieces must share."""


class TorchRandom(Random):
    """Draws on a device with a `torch.Generator` of its own.

    The same key gives the same numbers on the same kind of device; CPU and CUDA differ from each other.
    (torch's CPU generator uses 32 bits of the seed, its CUDA generator 64.)

    Args:
        device: where the numbers are made and stay.
        key: integers, finite floats and strings; see `entropy`.
    """

    def __init__(self, device: torch.device | str, *key: Key) -> None:
        super().__init__(torch.device(device))
        self.key = key
        words = entropy(*key)
        self.generator = torch.Generator(self.device).manual_seed(words[0] | (words[1] & 0x7FFFFFFF) << 32)

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw standard normal numbers of the given shape."""
        return torch.randn(tuple(shape), generator=self.generator, device=self.device)

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw uniform numbers in [0, 1) of the given shape."""
        return torch.rand(tuple(shape), generator=self.generator, device=self.device)

    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Draw one Poisson count for each rate (any shape, not negative); counts as float32."""
        return torch.poisson(rate.to(self.device, torch.float32), generator=self.generator)

    def fresh(self, name: str) -> TorchRandom:
        """Give the same source at its beginning, at every call."""
        return TorchRandom(self.device, *self.key, name)


class PerClip(Random):
    """One source for each clip of a batch: what a clip gets depends on its own key, not on its neighbours.

    Every draw must have the batch as its first axis.

    Args:
        sources: one for each clip, on the same device.
    """

    def __init__(self, sources: Sequence[Random]) -> None:
        super().__init__(sources[0].device)
        self.sources = list(sources)

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw standard normal numbers of the given shape `(B, ...)`."""
        return torch.stack([source.normal(shape[1:]) for source in self._of(shape[0])])

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw uniform numbers in [0, 1) of the given shape `(B, ...)`."""
        return torch.stack([source.uniform(shape[1:]) for source in self._of(shape[0])])

    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Draw one Poisson count for each rate `(B, ...)`, not negative."""
        return torch.stack([source.poisson(own) for source, own in zip(self._of(len(rate)), rate)])

    def fresh(self, name: str) -> PerClip:
        """Give the same sources at their beginning, at every call."""
        return PerClip([source.fresh(name) for source in self.sources])

    def _of(self, count: int) -> list[Random]:
        if count != len(self.sources):
            raise ValueError(f"a draw for {count} clips from the sources of {len(self.sources)}")
        return self.sources


class NumpyRandom(Random):
    """Draws on the CPU with numpy's PCG64, seeded by `numpy.random.SeedSequence` from the SHA-256 of the key.

    The numbers depend on the key alone. They are made one after the other by a single thread in float64 and
    rounded to float32 at the end, so that a last-bit difference between C libraries does not show. Drawing a
    clip in pieces gives the same numbers as drawing it at
    once: the first ten frames of a long draw are the draw of ten frames.

    Args:
        key: integers, finite floats and strings; see `entropy`.
    """

    def __init__(self, *key: Key) -> None:
        super().__init__(torch.device("cpu"))
        self.key = key
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy(*key))))

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw standard normal numbers of the given shape."""
        return _in_pieces(shape, lambda start, n: self.generator.standard_normal(n))

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw uniform numbers in [0, 1) of the given shape."""
        # 24 random bits fill a float32 exactly: rounding a float64 could give 1.0.
        return _in_pieces(shape, lambda start, n: self.generator.integers(0, 1 << 24, n) / (1 << 24))

    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Draw one Poisson count for each rate (any shape, not negative); counts as float32."""
        rates = rate.detach().cpu().flatten()
        return _in_pieces(
            rate.shape, lambda start, n: self.generator.poisson(rates[start : start + n].double().numpy())
        )

    def fresh(self, name: str) -> NumpyRandom:
        """Give the same source at its beginning, at every call."""
        return NumpyRandom(*self.key, name)


_PIECE = 1 << 20


def _in_pieces(shape: Sequence[int], draw: Callable[[int, int], np.ndarray]) -> torch.Tensor:
    """Fill a float32 tensor from draws (from where on, how many) without a second full-size array."""
    out = torch.empty(tuple(shape), dtype=torch.float32)
    flat = out.view(-1)
    for start in range(0, flat.numel(), _PIECE):
        count = min(_PIECE, flat.numel() - start)
        flat[start : start + count] = torch.from_numpy(draw(start, count).astype(np.float32))
    return out
