"""Reflection about the first and the last of a row of things: what is taken where there is nothing."""

from __future__ import annotations

from collections.abc import Iterable


def reflect(positions: Iterable[int], length: int) -> list[int]:
    """Fold positions into `[0, length)`, back and forth: 0 1 2 1 0 1 2 ... for length 3, and 0 for length 1."""
    period = max(1, 2 * (length - 1))
    return [min(p % period, period - p % period) if length > 1 else 0 for p in positions]
