"""The offset source without a flow library, against motion that is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import stan.flow
from stan.data.synthetic import synthetic_clips
from stan.errors import ConfigError
from stan.flow.pyramid import median, resampled
from stan.models.two_pass import TwoPass, TwoPassSettings

from .test_sources import errors, translated


@pytest.mark.parametrize("motion", [(3.0, 0.0), (0.0, -2.0), (1.3, 0.6), (-4.5, 2.25), (-14.0, 9.5)])
def test_translation_is_found(motion: tuple[float, float]) -> None:
    flow = stan.flow.build("pyramid")(translated(motion))
    back = (-motion[0], -motion[1])
    for t in range(2):
        assert errors(flow.forward[0, t], motion).median() < 0.15
        assert errors(flow.backward[0, t + 1], back).median() < 0.15


@pytest.mark.parametrize("finest", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 3])
def test_flow_lies_where_its_pixels_are(finest: int, stride: int) -> None:
    """A zoom shows any shift between the grids of the levels and the pixels, which a translation would hide."""
    size, zoom = 96, 1.06
    y, x = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    truth = (zoom - 1) * torch.stack([x, y])  # frame 0 to 1, about the centre
    grid = torch.stack([x, y], -1)[None] / zoom * 2 / size
    first = translated((0.0, 0.0), frames=1, size=(size, size))[0]
    second = F.grid_sample(first, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    source = stan.flow.build(
        "pyramid", finest=finest, stride=stride, medians=0, subpixel=3
    )  # little smoothing
    flow = source(torch.stack([first[0], second[0]])[None])
    difference = (flow.forward[0, 0] - truth)[:, 16:-16, 16:-16]
    assert difference.square().sum(0).sqrt().median() < 0.15 * finest
    assert difference.median(-1).values.median(-1).values.abs().max() < 0.05 * finest


def test_subpixel_fit_pays() -> None:
    video = translated((1.3, 0.6))
    whole, fitted = (
        errors(stan.flow.build("pyramid", subpixel=side)(video).forward[0, 0], (1.3, 0.6)).mean()
        for side in (0, 5)
    )
    assert fitted < 0.5 * whole


def test_true_motion_of_rendered_scenes() -> None:
    """A moving camera and objects that cross: the error is a small part of that of no flow."""
    clip = next(iter(synthetic_clips("val", 1, frames=3)))
    pyramid, zero = (stan.flow.build(name)(clip.frames[None].float() / 255) for name in ("pyramid", "zero"))
    seen = ~clip.occluded_forward[:-1]
    found, none = (
        (f.forward[0, :-1] - clip.forward[:-1]).square().sum(1).sqrt()[seen].mean() for f in (pyramid, zero)
    )
    assert found < 0.5 * none


def test_noise_is_survived() -> None:
    clean = translated((2.0, 1.0))
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 15 / 255
    assert errors(stan.flow.build("pyramid")(noisy).forward[0, 0], (2.0, 1.0)).median() < 0.5


def test_clips_do_not_touch_each_other_and_come_out_the_same() -> None:
    video = torch.cat([translated((1.0, 2.0)), translated((-2.0, 0.5))])
    source = stan.flow.build("pyramid")
    both, again, single = source(video), source(video), source(video[1:])
    for flow, repeated, alone in zip(both, again, single):
        assert torch.equal(flow, repeated)
        assert torch.equal(flow[1:], alone)


def test_a_reversed_clip_swaps_the_directions() -> None:
    video = translated((2.0, -1.0))
    source = stan.flow.build("pyramid")
    flow, turned = source(video), source(video.flip(1))
    assert torch.equal(flow.forward, turned.backward.flip(1))
    assert torch.equal(flow.backward, turned.forward.flip(1))


def test_still_constant_and_not_finite_frames() -> None:
    source = stan.flow.build("pyramid")
    assert source(torch.full((1, 3, 3, 32, 40), 0.4)).forward.shape == (1, 3, 2, 32, 40)
    still = translated((1.0, 0.0), frames=1).expand(-1, 3, -1, -1, -1)
    assert all(f.abs().max() < 0.1 for f in source(still))  # the fit of scores is not exact
    video = torch.rand(1, 2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    video[0, 0, :, 5:9, 5:9] = float("nan")
    assert all(f.isfinite().all() for f in source(video))


@pytest.mark.parametrize("shape", [(2, 1, 3, 20, 20), (0, 3, 3, 20, 20)])
def test_nothing_to_compare_is_no_motion(shape: tuple[int, ...]) -> None:
    flow = stan.flow.build("pyramid")(torch.rand(shape))
    assert flow.forward.shape == (*shape[:2], 2, 20, 20)
    assert not any(f.any() for f in flow)


def test_median_and_resampling_against_torch() -> None:
    x = torch.rand(1, 2, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x[0], (1, 1, 1, 1), mode="replicate")
    expected = F.unfold(padded, 3).reshape(2, 2, 9, 7, 9).median(2).values
    assert torch.equal(median(x)[0], expected)
    large = F.interpolate(x[0], scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(resampled(x, 14, 18, step=0.5, first=-0.25)[0], large, atol=1e-6)


def test_impossible_settings_are_named() -> None:
    for setting, value in {
        "coarsest": 12,
        "finest": 3,
        "window": 4,
        "coarsest_window": 16385,
        "patch": 257,
        "stride": 2**23,
        "subpixel": 2,
        "steadiness": 0.0,
    }.items():
        with pytest.raises(ConfigError, match=f"{setting}={value}"):
            stan.flow.build("pyramid", **{setting: value})


def test_a_network_trains_with_it() -> None:
    network = TwoPass(
        "stan_tiny", TwoPassSettings(flow="pyramid", channels=(8,), depths=(1,), temporal_window=1)
    )
    network(torch.rand(1, 3, 3, 32, 32), 20.0).square().mean().backward()
    assert network.merge.trust.grad is not None
    assert network.merge.trust.grad.isfinite().all()
