"""The offset sources against motion that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import stan.flow
from stan.errors import ConfigError, DataError
from tests.flow.constant import Constant

ESTIMATED = ["dis", "farneback", "tvl1"]

Needed = Callable[[str], dict[str, Any]]


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random texture `(H, W)` in [0, 1], periodic, so that any translation of it is exact."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    smooth = sum(ndimage.gaussian_filter(noise, s, mode="wrap") * s for s in (1.5, 4.0, 10.0))
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def translated(motion: tuple[float, float], frames: int = 3, size: tuple[int, int] = (96, 120)) -> Tensor:
    """`(1, T, 3, H, W)`: a texture that moves by exactly `motion` = (dx, dy) pixels a frame."""
    spectrum = np.fft.fft2(texture(*size))
    dx, dy = motion
    clip = [np.fft.ifft2(ndimage.fourier_shift(spectrum, (t * dy, t * dx))).real for t in range(frames)]
    return torch.from_numpy(np.stack(clip)).float()[None, :, None].expand(-1, -1, 3, -1, -1)


def errors(flow: Tensor, motion: tuple[float, float]) -> Tensor:
    """End-point error of `(2, H, W)` against a translation, away from the border, where the texture wraps."""
    truth = torch.tensor(motion).reshape(2, 1, 1)
    return (flow - truth).square().sum(0).sqrt()[16:-16, 16:-16]


@pytest.mark.parametrize("name", ESTIMATED)
@pytest.mark.parametrize("motion", [(3.0, 0.0), (0.0, -2.0), (1.3, 0.6), (-4.5, 2.25)])
def test_translation_is_found(name: str, motion: tuple[float, float]) -> None:
    flow = stan.flow.build(name)(translated(motion))
    back = (-motion[0], -motion[1])
    for t in range(2):
        assert errors(flow.forward[0, t], motion).mean() < 0.2
        assert errors(flow.backward[0, t + 1], back).mean() < 0.2


def test_the_smooth_preset_is_moved_less_by_what_is_left_of_noise() -> None:
    def error(preset: str) -> float:
        source = stan.flow.build("dis", preset=preset)
        found = []
        for seed, motion in enumerate([(3.0, 0.0), (0.0, -2.0), (1.3, 0.6), (-4.5, 2.25)] * 2):
            clean = translated(motion, frames=2)
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
            found.append(errors(source(clean + 0.04 * noise).forward[0, 0], motion).mean())
        return float(torch.stack(found).mean())

    assert error("smooth") < 0.9 * min(error("fast"), error("medium"))


@pytest.mark.parametrize("name", ESTIMATED)
@pytest.mark.parametrize("downscale", [2, 4])
def test_translation_is_found_at_reduced_size(name: str, downscale: int) -> None:
    """In the pixels of the whole frame, also where its sides (here 97 x 123) are no multiple of the reduction."""
    motion = (-4.5, 2.25)
    flow = stan.flow.build(name, downscale=downscale)(translated(motion, size=(97, 123)))
    assert flow.forward.shape == (1, 3, 2, 97, 123)
    for t in range(2):
        assert errors(flow.forward[0, t], motion).median() < 0.1 * downscale
        assert errors(flow.backward[0, t + 1], (4.5, -2.25)).median() < 0.1 * downscale
    assert not flow.forward[:, -1].any()
    assert not flow.backward[:, 0].any()


def test_reduced_frames_are_area_averages() -> None:
    """A frame whose blocks of 4 x 4 pixels are even looks to the estimator like the frame of its blocks."""
    small = translated((1.0, 0.5))
    large = small.repeat_interleave(4, -1).repeat_interleave(4, -2)
    expected = stan.flow.build("dis")(small).forward
    flow = stan.flow.build("dis", downscale=4)(large).forward
    inner = flow.unflatten(-1, (-1, 4)).mean(-1).unflatten(-2, (-1, 4)).mean(-2) / 4  # of each block
    assert (inner - expected)[..., 2:-2, 2:-2].abs().median() < 0.02


@pytest.mark.parametrize("name", ESTIMATED)
def test_flow_survives_noise(name: str) -> None:
    clean = translated((2.0, 1.0))
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 15 / 255
    flow = stan.flow.build(name)(noisy)
    assert errors(flow.forward[0, 0], (2.0, 1.0)).median() < 0.5


@pytest.mark.parametrize("name", ESTIMATED)
def test_other_frame_warped_by_the_flow_is_this_frame(name: str) -> None:
    video = translated((2.5, -1.5), frames=2)
    flow = stan.flow.build(name)(video).forward[0, 0].numpy()
    rows, columns = np.mgrid[: flow.shape[1], : flow.shape[2]]
    here, there = video[0, 0, 0].numpy(), video[0, 1, 0].numpy()
    warped = ndimage.map_coordinates(there, [rows + flow[1], columns + flow[0]], order=1, mode="nearest")
    inner = (slice(16, -16), slice(16, -16))
    before, after = np.abs(there - here)[inner].mean(), np.abs(warped - here)[inner].mean()
    assert after < 0.15 * before


@pytest.mark.parametrize("name", stan.flow.names())
def test_last_forward_and_first_backward_are_zero(name: str, needed: Needed) -> None:
    forward, backward = stan.flow.build(name, **needed(name))(translated((2.0, 0.0)))
    assert forward.dtype == backward.dtype == torch.float32
    assert forward.shape == backward.shape == (1, 3, 2, 96, 120)
    assert not forward[:, -1].any()
    assert not backward[:, 0].any()


def test_zero_is_zero() -> None:
    flow = stan.flow.build("zero")(translated((2.0, 0.0)))
    assert not any(f.any() for f in flow)


EVERY = [*((name, {}) for name in stan.flow.names()), *((name, {"downscale": 4}) for name in ESTIMATED)]


@pytest.mark.parametrize(("name", "settings"), EVERY)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (15, 16), (17, 31), (20, 400), (400, 20)])
def test_any_size_gives_finite_flow(
    name: str, settings: dict[str, int], size: tuple[int, int], needed: Needed
) -> None:
    video = torch.rand(1, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    for flow in stan.flow.build(name, **needed(name), **settings)(video):
        assert flow.shape == (1, 2, 2, *size)
        assert flow.isfinite().all()


@pytest.mark.parametrize("name", ESTIMATED)
def test_still_constant_and_not_finite_frames(name: str) -> None:
    source = stan.flow.build(name)
    assert source(torch.full((1, 3, 3, 32, 40), 0.4)).forward.abs().max() < 1e-3
    video = torch.rand(1, 2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    video[0, 0, :, 5:9, 5:9] = float("nan")
    video[0, 1, :, 20:22] = float("inf")
    assert all(f.isfinite().all() for f in source(video))


def test_threads_and_batches_do_not_change_the_flow() -> None:
    video = torch.cat([translated((1.0, 2.0)), translated((-2.0, 0.5))])
    one = stan.flow.build("dis", threads=1)(video)
    two = stan.flow.build("dis", threads=2)(video)
    single = stan.flow.build("dis")(video[1:])
    assert torch.equal(one.forward, two.forward)
    assert torch.equal(one.backward, two.backward)
    assert torch.equal(one.forward[1:], single.forward)


@pytest.mark.parametrize("downscale", [1, 2])
def test_one_frame_and_empty_batch(downscale: int) -> None:
    source = stan.flow.build("dis", downscale=downscale)
    assert not source(torch.rand(2, 1, 3, 32, 32)).forward.any()
    assert source(torch.rand(0, 3, 3, 32, 32)).forward.shape == (0, 3, 2, 32, 32)


def test_half_precision_video_gives_float32_flow() -> None:
    flow = stan.flow.build("dis")(translated((3.0, 0.0)).bfloat16())
    assert flow.forward.dtype == torch.float32
    assert errors(flow.forward[0, 0], (3.0, 0.0)).mean() < 0.3


@pytest.mark.parametrize(
    "video",
    [torch.zeros(3, 3, 8, 8), torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)],
)
def test_another_layout_is_an_error(video: Tensor) -> None:
    with pytest.raises(DataError, match="float video"):
        stan.flow.build("dis")(video)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'farneback'"):
        stan.flow.build("farnback")
    with pytest.raises(ConfigError, match="did you mean 'preset'"):
        stan.flow.build("dis", presets="fast")
    with pytest.raises(ConfigError, match="no setting 'blur'"):
        stan.flow.build("zero", blur=1.0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dis", {"preset": "slow"}),
        ("dis", {"blur": -1.0}),
        ("dis", {"threads": 0}),
        ("dis", {"downscale": 3}),
        ("farneback", {"neighbourhood": 6}),
        ("farneback", {"levels": 0}),
        ("tvl1", {"attachment": 0.0}),
    ],
)
def test_impossible_settings_are_named(name: str, settings: dict[str, object]) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(ConfigError, match=key) as caught:
        stan.flow.build(name, **settings)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", stan.flow.names())
def test_settings_rebuild_the_source(name: str, needed: Needed) -> None:
    source = stan.flow.build(name, **needed(name))
    assert stan.flow.build(source.name, **source.settings).settings == source.settings


def test_a_learned_source_fits_the_interface() -> None:
    """A source with parameters passes its gradient on; nothing in the base class cuts it."""
    source = Constant()
    source(torch.rand(1, 2, 3, 4, 4)).forward.sum().backward()
    assert source.motion.grad is not None
    assert source.motion.grad.tolist() == [32.0, 32.0]
