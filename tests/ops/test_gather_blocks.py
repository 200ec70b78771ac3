"""`block` of gather and gather_stack: matches that a block of queries has in common, against the expanded call."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stan import ops
from tests.ops.cases import generator, matches_case, quarters
from tests.ops.conftest import Place

DRAWS: dict[str, Any] = {
    "seed": st.integers(0, 2**32),
    "block": st.integers(1, 5),
    "size": st.tuples(st.integers(1, 9), st.integers(1, 19)),
    "channels": st.sampled_from([1, 3, 4, 5, 6, 8, 11, 16, 17, 35]),
    "heads": st.integers(1, 2),
    "stride": st.integers(1, 2),
    "topk": st.integers(1, 4),
}


def expanded(tensor: Tensor, block: int, height: int, width: int) -> Tensor:
    """What was given for blocks, for each query: the definition of `block`, by numpy-like repetition."""
    return tensor.repeat_interleave(block, 3).repeat_interleave(block, 4)[:, :, :, :height, :width]


def both_ways(
    name: str, place: Place, m: dict[str, Tensor], block: int, stride: int, **more: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The result and the gradients of value, weights and offsets: by blocks, and expanded."""
    grid = [(side - 1) // stride + 1 for side in m["value"].shape[3:]]
    results = []
    for by_block in (True, False):
        leaves = [m[n].to(place.device).requires_grad_() for n in ("value", "weights", "offsets")]
        frames = m["frames"].to(place.device)
        value, *matches = [*leaves, frames]
        if not by_block:
            matches = [expanded(tensor, block, *grid) for tensor in matches]
        blocks = {"block": block} if by_block else {}
        out = getattr(ops, name)(value, *matches, stride=stride, backend=place.backend, **blocks, **more)
        draw = torch.Generator().manual_seed(1)
        cotangent = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
    return results[0], results[1]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=tolerance, atol=tolerance * (1 + float(expected.abs().max()))
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**DRAWS, stack=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_blocks_are_the_expanded_call(
    place: Place, seed: int, block: int, stride: int, stack: bool, dtype: torch.dtype, **shape: Any
) -> None:
    m = matches_case(seed % 1000, stride=stride, block=block, **shape)
    m = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in m.items()}
    name = "gather_stack" if stack else "gather"
    assert_same(*both_ways(name, place, m, block, stride), 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("patch", [{"patch": 3}, {"patch": 5, "dilation": 2}], ids=str)
def test_blocks_of_patches(place: Place, block: int, patch: dict[str, int]) -> None:
    m = matches_case(3, size=(7, 9), block=block, heads=2)
    m = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in m.items()}
    assert_same(*both_ways("gather", place, m, block, 1, **patch), 1e-12)


@pytest.mark.parametrize("block", [2, 4])
def test_blocks_as_a_network_has_them(place: Place, block: int) -> None:
    """Many pixels, arbitrary fractions, reflections at all borders, odd sides."""
    random = generator(7)
    m = matches_case(7, frames=3, channels=6, size=(35, 61), block=block, topk=4)
    m["value"] = torch.from_numpy(random.random(m["value"].shape)).float()
    m["offsets"] = torch.from_numpy(random.normal(size=m["offsets"].shape)).float() * 6
    for name in ("gather", "gather_stack"):
        # near a whole position two neighbours may round to either side of it, where the slope jumps
        found, wanted = both_ways(name, place, m, block, 1)
        assert_same(found[:3], wanted[:3], 1e-5)
        differs = (found[3] - wanted[3]).abs() > 1e-3 * (1 + wanted[3].abs())
        assert differs.float().mean() < 1e-3


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("name", ["gather", "gather_stack"])
def test_more_matches_and_columns_than_are_held_at_a_time(place: Place, name: str, block: int) -> None:
    """Kernels take matches and columns by the dozen: the reference, which does not, gives the same."""
    m = matches_case(9, frames=3, channels=6, size=(11, 150), block=block, topk=37)
    m["offsets"] = quarters(generator(9), *m["offsets"].shape, reach=6)  # exact in float32, at every column
    found = getattr(ops, name)(
        *(t.to(place.device) for t in m.values()), block=block, backend=place.backend
    ).cpu()
    torch.testing.assert_close(found, getattr(ops, name)(*m.values(), block=block, backend="reference"))


def test_what_is_not_finite_stays_where_it_is(place: Place) -> None:
    """A NaN reaches the outputs that have it among their taps with a weight, no others; wild offsets count as zero."""
    m = matches_case(5, channels=3, size=(8, 10), block=2)
    m["value"][0, 0, 1, 4, 5] = math.nan
    m["offsets"] = quarters(generator(6), *m["offsets"].shape, reach=2)
    m["offsets"][..., 0, 0, :], m["offsets"][..., 1, 1, 0] = math.nan, math.inf
    m["offsets"][..., 2, 0, 1] = -3e38
    found, wanted = (
        ops.gather(*(t.to(place.device) for t in tensors), block=block, backend=place.backend)
        for block, tensors in (
            (2, list(m.values())),
            (1, [m["value"], *(expanded(m[n], 2, 8, 10) for n in ("weights", "offsets", "frames"))]),
        )
    )
    assert bool(wanted.isnan().any())
    assert torch.equal(found.isnan(), wanted.isnan())
    torch.testing.assert_close(found, wanted, equal_nan=True)
