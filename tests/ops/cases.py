"""Inputs for the operator tests.

Features are small whole numbers and flows are quarters of a pixel: all arithmetic of the search is then exact
in float32, so that results, ties included, must be equal and not only close.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan.ops import Matches, SearchSpec

DEFAULTS = SearchSpec(window=3, topk=4).settings()


@dataclass(frozen=True)
class Case:
    """One search: tensors and complete settings."""

    query: Tensor
    key: Tensor
    flow: Tensor | None
    settings: dict[str, Any]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def whole(random: np.random.Generator, *shape: int, reach: int = 3) -> Tensor:
    """Whole numbers in [-reach, reach] as float32."""
    return torch.from_numpy(random.integers(-reach, reach + 1, shape).astype(np.float32))


def quarters(random: np.random.Generator, *shape: int, reach: float = 4) -> Tensor:
    """Multiples of 1/4 in [-reach, reach] as float32."""
    steps = int(4 * reach)
    return torch.from_numpy(random.integers(-steps, steps + 1, shape).astype(np.float32) / 4)


def slots_of(settings: dict[str, Any]) -> int:
    wt = settings["temporal_window"]
    return wt + 1 if settings["causal"] else 2 * wt + 1


def case(
    seed: int = 0,
    *,
    batch: int = 1,
    frames: int = 3,
    queries: int | None = None,
    channels: int = 2,
    size: tuple[int, int] = (4, 5),
    key_size: tuple[int, int] | None = None,
    flow: str = "quarters",
    reach: float = 4,
    **settings: Any,
) -> Case:
    """A search on exact numbers; `channels` are per head, `flow` is "none", "quarters" or "heads", `queries` are the
    frames of the query, where it has fewer than the clip."""
    random = generator(seed)
    s = DEFAULTS | settings
    searching = frames if queries is None else queries
    query = whole(random, batch, searching, channels * s["heads"], *size)
    key = whole(random, batch, frames, channels * s["heads"], *(key_size or size))
    grid = tuple((n - 1) // s["stride"] + 1 for n in size)
    lead = (batch, s["heads"], searching) if flow == "heads" else (batch, searching)
    shift = None if flow == "none" else quarters(random, *lead, slots_of(s) - 1, 2, *grid, reach=reach)
    return Case(query, key, shift, s)


def matches_case(
    seed: int = 0,
    *,
    batch: int = 1,
    frames: int = 2,
    channels: int = 2,
    heads: int = 1,
    topk: int = 3,
    size: tuple[int, int] = (4, 5),
    value_size: tuple[int, int] | None = None,
    value_frames: int | None = None,
    stride: int = 1,
    block: int = 1,
) -> dict[str, Tensor]:
    """Values and weighted matches for gather, gather_stack and scatter; some are empty or far outside."""
    random = generator(seed)
    there = value_frames or frames
    lead = (batch, heads, frames, *((n - 1) // stride // block + 1 for n in size), topk)
    return {
        "value": whole(random, batch, there, heads * channels, *(value_size or size)),
        "weights": quarters(random, *lead, reach=1),
        "offsets": quarters(random, *lead, 2, reach=5),
        "frames": torch.from_numpy(random.integers(-1, there + 1, lead)).to(torch.int32),
    }


def on(device: str, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def array(tensor: Tensor | None) -> Any:
    """A tensor as a numpy array in float64 (whole numbers stay)."""
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def assert_equal_matches(found: Matches, scores: np.ndarray, offsets: np.ndarray, frames: np.ndarray) -> None:
    """Exact equality with the brute force's arrays."""
    np.testing.assert_array_equal(array(found.frames), frames)
    np.testing.assert_array_equal(array(found.offsets), offsets)
    np.testing.assert_array_equal(array(found.scores), scores)


def gradients(fn: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Gradients of fn's sum, weighted with fixed numbers, with respect to all inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = fn(*leaves)
    factor = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    torch.where(out.isfinite(), out * factor, 0.0).sum().backward()
    return [leaf.grad for leaf in leaves]
