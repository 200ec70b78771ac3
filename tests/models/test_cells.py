"""Means over squares, against torch's own pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stan.models.cells import smoothed


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 4), (16, 31)])
def test_smoothed_is_the_mean_inside_the_frame(side: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = x.clone()
    pooled = F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
    torch.testing.assert_close(smoothed(x, side), pooled)
    assert torch.equal(x, before)
