"""Noise levels as people write them: one number, a list, or a range."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stan.data.noise.random import Random
from stan.errors import ConfigError

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*")
_LOOKS_LIKE_RANGE = re.compile(rf"\s*({_NUMBER})\s*(?:-|:|,|to|\.\.\.)\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class SigmaRange:
    """The noise levels to draw from, in 8-bit units: a continuous range, or a list of levels taken with equal chance.

    Attributes:
        low, high: smallest and largest level.
        levels: the listed levels, or None for a continuous range. A single number is a list of one.
    """

    low: float
    high: float
    levels: tuple[float, ...] | None = None

    def draw(self, random: Random, n: int, *, ends: float = 0.0) -> torch.Tensor:
        """Draw n levels: `(n,)` float32 in 8-bit units, on the device of `random`.

        Args:
            random: where the numbers come from.
            n: how many.
            ends: share of the levels of a continuous range that is exactly its lowest one, and as many its highest.
        """
        u = random.uniform((n,))
        if self.levels is None:
            u = ((u - ends) / (1 - 2 * ends)).clamp(0, 1) if ends else u
            return self.low + (self.high - self.low) * u
        levels = torch.tensor(self.levels, dtype=torch.float32, device=u.device)
        return levels[(u * len(self.levels)).long().clamp_(max=len(self.levels) - 1)]

    def __contains__(self, sigma: float) -> bool:
        """Whether a level lies between `low` and `high` (levels between listed ones count as covered)."""
        return self.low <= sigma <= self.high

    def __str__(self) -> str:
        """Spell the levels so that `parse_sigma` reads them back."""
        if self.levels is None:
            return f"{self.low:g}..{self.high:g}"
        if len(self.levels) == 1:
            return f"{self.low:g}"
        return "[" + ", ".join(f"{level:g}" for level in self.levels) + "]"


def parse_sigma(value: float | str | Sequence[float | str] | SigmaRange) -> SigmaRange:
    """Read a noise level setting.

    Args:
        value: a number (`30`), a list of levels to choose from (`[10, 30, 50]`) or a range to draw from
            evenly (`"0..50"`); strings that hold a number or a bracketed list count as such. 8-bit units, [0,
            255].

    Returns:
        The levels, ready to draw from.

    Raises:
        ConfigError: not one of these, out of [0, 255], or a range whose ends are the wrong way round.
    """
    if isinstance(value, SigmaRange):
        return value
    return parse_levels(value, "noise.sigma", 0, 255, "in 8-bit units")


def parse_levels(value: Any, name: str, low: float, high: float, unit: str = "") -> SigmaRange:
    """Read the levels of anything else that is drawn for each clip, written as those of noise are.

    Args:
        value: as for `parse_sigma`.
        name: what messages call it.
        low, high: least and greatest level.
        unit: words for the unit of the levels, for messages.

    Raises:
        ConfigError: as `parse_sigma`.
    """
    within = f"{unit} from {low:g} to {high:g}".lstrip()
    way_out = f"write a number (30), a list ([10, 30, 50]) or a range (0..50), {within}"

    def level(item: object) -> float:
        if isinstance(item, bool) or not isinstance(item, (int, float, str)):
            raise ConfigError(f"{name}={value!r} is not understood: {way_out}")
        try:
            found = float(item)
        except ValueError:
            raise ConfigError(f"{name}={value!r} is not understood: {way_out}") from None
        if not (math.isfinite(found) and low <= found <= high):
            raise ConfigError(f"{name}={value!r} is out of range: levels are {within}")
        return found

    if isinstance(value, str):
        if match := _RANGE.fullmatch(value):
            first, last = map(level, match.groups())
            if first > last:
                raise ConfigError(f"{name}={value!r} runs from high to low: write {last:g}..{first:g}")
            return SigmaRange(first, last, (first,) if first == last else None)
        if match := _LOOKS_LIKE_RANGE.fullmatch(value):
            raise ConfigError(f"{name}={value!r} is not understood: write {match[1]}..{match[2]} for a range")
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            items = [item for item in text[1:-1].split(",") if item.strip()]
            return parse_levels(items, name, low, high, unit)
    listed = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    if not listed:
        raise ConfigError(f"{name} is an empty list: {way_out}")
    levels = tuple(map(level, listed))
    return SigmaRange(min(levels), max(levels), levels)
