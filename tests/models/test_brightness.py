"""Brightness that changes: what is there is found, what is noise is not believed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stan.flow import FlowPair
from stan.models.brightness import own_brightness
from stan.models.merge import Merge

LEVEL = 20 / 255


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * LEVEL


def white(departs: Tensor) -> Tensor:
    return torch.full((*departs.shape[:2], 1, *(side // 2 for side in departs.shape[-2:])), LEVEL**2)


def waves(height: int, width: int) -> Tensor:
    """A change of brightness as of light through smoke: `(1, 1, 3, H, W)`, waves of 120 and 160 pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wave = torch.sin(x * 6.28 / 160) * torch.cos(y * 6.28 / 120)
    return torch.stack([wave, 0.7 * wave, 0.4 * wave])[None, None] * 12 / 255


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (18, 34), (60, 26), (96, 200)])
def test_without_noise_a_constant_is_found_in_all_places(height: int, width: int) -> None:
    departs = torch.tensor([0.1, -0.2, 0.05]).view(1, 1, 3, 1, 1).expand(2, 2, 3, height, width)
    found = own_brightness(departs, torch.zeros(2, 2, 1, height // 2, width // 2))
    assert torch.allclose(found, departs, atol=1e-5)


@pytest.mark.parametrize("offset", [3.0, -8.0])
def test_a_flicker_is_found_in_noise(offset: float) -> None:
    departs = noise(1, 2, 3, 128, 192) + offset / 255
    found = own_brightness(departs, white(departs)) * 255
    assert float((found - offset).abs().mean()) < 0.6
    assert float((found - offset).square().mean().sqrt()) < 0.8  # each pixel alone tells it to 20


def test_what_changes_over_the_picture_is_found() -> None:
    change = waves(240, 320)
    departs = noise(1, 1, 3, 240, 320) + change
    left = change - own_brightness(departs, white(departs))
    assert float(left.square().mean()) < 0.12 * float(change.square().mean())


def test_of_white_noise_next_to_nothing_is_believed() -> None:
    departs = noise(1, 6, 3, 240, 320)
    found = own_brightness(departs, white(departs))
    squares = F.avg_pool2d(departs.flatten(0, 1), 24)
    assert float(found.square().mean()) < 0.05 * float(squares.square().mean())


def test_noise_in_coarse_colour_is_not_taken_for_brightness() -> None:
    """As video files bring it: all channels share the noise of the luma, and chroma is of 2x2 squares."""
    luma = noise(6, 1, 240, 320)
    chroma = F.interpolate(noise(6, 2, 120, 160, seed=1), scale_factor=2, mode="bilinear")
    blue, red = chroma.split(1, 1)
    departs = torch.cat([luma + 1.57 * red, luma - 0.47 * red - 0.19 * blue, luma + 1.86 * blue], 1)[None]
    found = own_brightness(departs, white(departs))
    squares = F.avg_pool2d(departs.flatten(0, 1), 24)
    assert float(squares.square().mean()) > 2 * LEVEL**2 / 24**2  # coarser than white
    assert float(found.square().mean()) < 0.05 * float(squares.square().mean())
    change = waves(240, 320)
    left = change - (own_brightness(departs + change, white(departs)) - found)
    assert float(left.square().mean()) < 0.25 * float(change.square().mean())


def test_each_frame_is_judged_by_itself() -> None:
    departs = torch.cat([noise(1, 2, 3, 64, 96), 20 * noise(1, 1, 3, 64, 96, seed=1)], 1)
    together = own_brightness(departs, white(departs))
    for n in range(3):
        one = departs[:, n : n + 1]
        assert torch.allclose(together[:, n : n + 1], own_brightness(one, white(one)), atol=1e-6)


def test_a_merge_keeps_the_brightness_of_each_frame() -> None:
    """A still clip that flickers by 3 % of full scale."""
    still = torch.rand(1, 1, 3, 16, 20, generator=torch.Generator().manual_seed(2))
    still = F.interpolate(still[0], size=(128, 160), mode="bicubic").clamp(0.2, 0.8)[None]
    gains = torch.tensor([1.0, 1.06, 0.97, 1.02, 0.94, 1.03]).view(1, -1, 1, 1, 1)
    clean = still * gains
    noisy = clean + noise(*clean.shape)
    zero = torch.zeros(1, 6, 2, 128, 160)
    level = torch.full((1, 6, 1, 64, 80), LEVEL)
    left = {}
    for keeps in (False, True):
        merge = Merge(temporal_window=3, window=1, patch=7, brightness=keeps)
        with torch.no_grad():
            merged = merge(noisy, clean, zero[:, :, :0, ::2, ::2], level, FlowPair(zero, zero))
        for means in (merged.noisy - clean, merged.cleaned - clean):
            left.setdefault(keeps, []).append(float(F.avg_pool2d(means.flatten(0, 1), 16).square().mean()))
    assert left[True][0] < 0.2 * left[False][0]
    assert left[True][1] < 0.2 * left[False][1]


def test_gradients_pass_through() -> None:
    departs = (noise(1, 2, 3, 48, 64) + 5 / 255).requires_grad_()
    own_brightness(departs, white(departs)).square().sum().backward()
    assert departs.grad is not None
    assert bool(departs.grad.isfinite().all())
    assert float(departs.grad.abs().sum()) > 0
