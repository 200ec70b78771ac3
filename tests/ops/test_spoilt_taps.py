"""A NaN or an infinity at a tap of weight zero reaches neither a result nor a gradient.

The truth is a bilinear sample written out for one position, in plain torch: at a whole coordinate the derivative
is the right-hand one, and a number there that is not finite counts as the pixel which has its weight.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stan import ops
from tests.ops.conftest import Place
from tests.ops.cuda_emulation.build import compiler, emulated_ops

HEIGHT, WIDTH = 4, 5
SPOILT = (1, 2)  # row and column of the pixel that is not finite
FRACTIONS = [(0.0, 0.0), (0.25, 0.0), (0.0, 0.25), (0.25, 0.5)]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def taps_of(x: int, fraction: float, side: int) -> list[tuple[int, float]]:
    """The two taps of a coordinate and their weights, the second reflected at the border."""
    second = x + 1 if x + 1 < side else x - 1
    return [(x, 1 - fraction), (second, fraction)]


def inputs(fraction: tuple[float, float], value: float) -> Inputs:
    """Query, key with `value` in the spoilt pixel, offsets, and frames: empty where that pixel has a weight."""
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, HEIGHT, WIDTH, generator=random, dtype=torch.float64) for _ in "qk")
    offsets = torch.tensor(fraction, dtype=torch.float64).expand(1, 1, 1, HEIGHT, WIDTH, 1, 2).clone()
    frames = torch.zeros(1, 1, 1, HEIGHT, WIDTH, 1, dtype=torch.int32)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if y + fraction[1] > HEIGHT - 1 or x + fraction[0] > WIDTH - 1:  # would be reflected
                frames[0, 0, 0, y, x, 0] = -1
            for row, down in taps_of(y, fraction[1], HEIGHT):
                for column, across in taps_of(x, fraction[0], WIDTH):
                    if (row, column) == SPOILT and down * across > 0:
                        frames[0, 0, 0, y, x, 0] = -1
    key[0, 0, 0, SPOILT[0], SPOILT[1]] = value
    return query, key, offsets, frames


def sample(key: Tensor, y: int, x: int, offset: Tensor) -> Tensor:
    """The key (H, W) at the query's position moved by `offset` (dx, dy) in [0, 1)."""
    fx, fy = offset
    rows, columns = taps_of(y, fy.item(), HEIGHT), taps_of(x, fx.item(), WIDTH)

    def at(i: int, j: int) -> Tensor:
        wanted = key[rows[i][0], columns[j][0]]
        if wanted.isfinite():
            return wanted
        return key[rows[i if fy > 0 else 0][0], columns[j if fx > 0 else 0][0]]

    top = at(0, 0) + fx * (at(0, 1) - at(0, 0))
    bottom = at(1, 0) + fx * (at(1, 1) - at(1, 0))
    return top + fy * (bottom - top)


def truth(fraction: tuple[float, float], value: float, kind: str) -> list[Tensor]:
    """Gradients of the sum of all scores (kind is a metric), or of all gathered values weighted by the query."""
    query, key, offsets, frames = inputs(fraction, value)
    leaves = [tensor.requires_grad_() for tensor in (query, key, offsets)]
    total = torch.zeros((), dtype=torch.float64)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if frames[0, 0, 0, y, x, 0] == 0:
                q, k = query[0, 0, 0, y, x], sample(key[0, 0, 0], y, x, offsets[0, 0, 0, y, x, 0])
                total = total + (-((q - k) ** 2) if kind == "l2" else q * k)
    return list(torch.autograd.grad(total, leaves))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.isfinite().all()
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fraction", FRACTIONS, ids=str)
@pytest.mark.parametrize("kind", ["l2", "dot", "gather"])
def test_gradients(place: Place, kind: str, fraction: tuple[float, float], value: float) -> None:
    query, key, offsets, frames = (tensor.to(place.device) for tensor in inputs(fraction, value))
    leaves = [tensor.requires_grad_() for tensor in (query, key, offsets)]
    if kind == "gather":
        weights = query.permute(0, 2, 1, 3, 4)[..., None]
        result = ops.gather(key, weights, offsets, frames, backend=place.backend)
    else:
        metric: Any = kind
        result = ops.refine(query, key, offsets, frames, metric=metric, backend=place.backend).scores
        result = result[frames == 0]
    assert result.isfinite().all()
    assert_same(list(torch.autograd.grad(result.sum(), leaves)), truth(fraction, value, kind))


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler to build the emulation with")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fraction", FRACTIONS, ids=str)
@pytest.mark.parametrize("kind", ["l2", "dot", "gather"])
def test_gradients_of_the_cuda_kernels(kind: str, fraction: tuple[float, float], value: float) -> None:
    query, key, offsets, frames = inputs(fraction, value)
    emulated, ones, needed = emulated_ops(), torch.ones(frames.shape, dtype=torch.float64), (True,) * 3
    for deterministic in (False, True):
        if kind == "gather":
            weights = query.permute(0, 2, 1, 3, 4)[..., None]
            grad = torch.ones_like(query)
            found = emulated.gather_backward(
                grad, key, weights, offsets, frames, 1, 1, 1, 1, False, *needed, deterministic
            )
            found = [found[1].reshape(query.shape), found[0], found[2]]
        else:
            spec = ops.RefineSpec(topk=1, metric=kind, incoming=1).settings()
            places = (offsets, offsets, frames, frames)
            found = emulated.refine_backward(
                ones, torch.zeros_like(offsets), query, key, *places, *needed, deterministic, **spec
            )
        assert_same(list(found), truth(fraction, value, kind))
