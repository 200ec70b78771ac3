"""Whether a state is finite: the one check that everything passes before it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def first_not_finite(state: Any, place: str = "") -> str | None:
    """Where in nested tables and lists the first tensor with NaN or infinite values is; None if all are finite."""
    if isinstance(state, Tensor):
        finite = not state.is_floating_point() or bool(state.isfinite().all())
        return None if finite else place
    items: Any = ()
    if isinstance(state, Mapping):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    for key, value in items:
        found = first_not_finite(value, f"{place}.{key}" if place else str(key))
        if found is not None:
            return found
    return None
