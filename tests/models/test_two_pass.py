"""The two-pass network: what the merge claims is measured on clips whose motion and noise are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stan.errors import ConfigError
from stan.flow import FlowPair
from stan.flow.classical import ZeroFlow
from stan.models import Cleaned, TwoPass, build
from stan.models.base import joined
from stan.models.cells import BLOCK, CELL, spread
from stan.models.merge import Merge

SIGMA = 30 / 255


def waves(t: int, h: int, w: int, shift: tuple[float, float]) -> Tensor:
    """A smooth texture that moves by `shift` (x, y) pixels a frame, known at every position: `(1, t, 3, h, w)`."""
    y, x = torch.meshgrid(torch.arange(h) * 1.0, torch.arange(w) * 1.0, indexing="ij")
    frames = []
    for k in range(t):
        u, v = x - k * shift[0], y - k * shift[1]
        planes = [
            torch.sin(0.21 * u + 0.13 * v) + torch.sin(0.11 * u - 0.32 * v + 1),
            torch.sin(0.17 * u - 0.25 * v) + torch.cos(0.29 * u + 0.05 * v),
            torch.cos(0.08 * u + 0.3 * v) + torch.sin(0.27 * u - 0.1 * v + 2),
        ]
        frames.append(torch.stack(planes) / 8 + 0.5)
    return torch.stack(frames)[None]


def flow_of(shift: tuple[float, float], t: int, h: int, w: int) -> FlowPair:
    ahead = torch.tensor(shift).view(1, 1, 2, 1, 1).expand(1, t, 2, h, w).contiguous()
    return FlowPair(ahead, -ahead)


def noise_like(video: Tensor, seed: int = 0) -> Tensor:
    return SIGMA * torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))


def level_of(video: Tensor, sigma: float = SIGMA) -> Tensor:
    return torch.full((*video.shape[:2], 1, video.shape[3] // 2, video.shape[4] // 2), sigma)


def nothing(video: Tensor) -> Tensor:
    """No features."""
    return video.new_zeros(*video.shape[:2], 0, video.shape[3] // 2, video.shape[4] // 2)


def merge_of(**changes: object) -> Merge:
    settings = {"temporal_window": 2, "window": 3, "patch": 5, **changes}
    return Merge(**settings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, -2.0), (0.5, 0.0), (0.25, 0.5), (-1.3, 0.8)])
def test_the_remaining_noise_is_what_it_says(shift: tuple[float, float]) -> None:
    """Known motion: all frames agree, and what noise their mean has is measured against `remaining`."""
    clean = waves(7, 64, 96, shift)
    noisy = clean + noise_like(clean)
    with torch.no_grad():
        merged = merge_of()(noisy, clean, nothing(clean), level_of(clean), flow_of(shift, 7, 64, 96))
    inside = (slice(None), slice(2, 5), slice(None), slice(12, -12), slice(16, -16))  # no border in any frame
    blurred = clean_mean(merged.weights, *merged.places(), clean)
    left = (merged.noisy - blurred)[inside].square().mean().sqrt()
    told = spread(merged.remaining, BLOCK, clean)[inside].square().mean().sqrt()
    assert float(told) == pytest.approx(float(left), rel=0.03)
    assert float(told) < 0.5 * SIGMA  # five frames: at most 1/sqrt(5) = 0.447, and less where sampling blurs


def clean_mean(weights: Tensor, offsets: Tensor, frames: Tensor, clean: Tensor) -> Tensor:
    """The weighted mean of the matches in `clean`, by grid_sample: an independent gather."""
    t, h, w = clean.shape[1], *clean.shape[3:]
    y, x = torch.meshgrid(torch.arange(h) * 1.0, torch.arange(w) * 1.0, indexing="ij")
    out = torch.zeros_like(clean)
    for k in range(weights.shape[2]):
        for s in range(t):
            move = spread(offsets[0, s, ..., k, :].permute(2, 0, 1), CELL, clean)  # (2, H, W)
            source = spread(frames[0, s, ..., k], CELL, clean)
            weight = spread(weights[0, s, k], CELL, clean)
            grid = torch.stack([(x + move[0]) / (w - 1) * 2 - 1, (y + move[1]) / (h - 1) * 2 - 1], -1)[None]
            for f in source.unique().tolist():
                if f >= 0:
                    seen = torch.nn.functional.grid_sample(
                        clean[0, f][None], grid, padding_mode="reflection", align_corners=True
                    )[0]
                    out[0, s] += weight * seen * (source == f)
    return out


def test_still_frames_are_averaged_evenly() -> None:
    clean = waves(5, 48, 48, (0, 0))
    with torch.no_grad():
        merged = merge_of()(
            clean + noise_like(clean), clean, nothing(clean), level_of(clean), flow_of((0, 0), 5, 48, 48)
        )
    assert torch.allclose(merged.weights, torch.full_like(merged.weights, 0.2), atol=1e-5)
    assert torch.allclose(
        merged.remaining, torch.full_like(merged.remaining, SIGMA / math.sqrt(5)), rtol=1e-4
    )


def test_frames_of_something_else_are_left_out() -> None:
    """A flash in one frame: the others give it no weight, and it keeps itself."""
    clean = waves(5, 48, 48, (0, 0))
    clean[:, 2] = 1 - clean[:, 2] * 0.7
    with torch.no_grad():  # at a low level: a difference of a tenth of grey is far beyond the noise
        merged = merge_of()(
            clean, clean, nothing(clean), level_of(clean, SIGMA / 10), flow_of((0, 0), 5, 48, 48)
        )
    own = merged.weights[0, 2, 0]
    assert float(own.mean()) > 0.9
    strange = torch.cat([torch.zeros(1, 12, 12) > 0, merged.frames[0, 0] == 2])  # (K, h', w')
    assert float(merged.weights[0, 0][strange].mean()) < 0.02


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_a_short_clip_is_merged_with_its_own_frames_only(frames: int) -> None:
    """Copies of a frame share its noise: averaging them would gain nothing and claim to."""
    clean = waves(frames, 48, 48, (0, 0))
    noisy = clean + noise_like(clean)
    with torch.no_grad():
        merged = merge_of(brightness=False)(
            noisy, clean, nothing(clean), level_of(clean), flow_of((0, 0), frames, 48, 48)
        )
    places = merged.places()[1]
    assert int(places.max()) == frames - 1
    used = torch.where(places.permute(0, 1, 4, 2, 3) >= 0, merged.weights, torch.zeros(()))
    assert torch.allclose(used.sum(2), torch.ones_like(used.sum(2)), atol=1e-5)
    assert torch.allclose(merged.noisy, noisy.mean(1, keepdim=True).expand_as(noisy), atol=1e-5)
    assert torch.allclose(
        merged.remaining, torch.full_like(merged.remaining, SIGMA / math.sqrt(frames)), rtol=1e-4
    )


def test_features_are_merged_like_frames() -> None:
    """Frames at half size as features, shifted by whole blocks: their merged mean is that of the frames."""
    clean = waves(5, 48, 64, (2.0, -4.0))
    small = torch.nn.functional.avg_pool2d(clean[0], 2)[None]
    with torch.no_grad():
        merged = merge_of()(clean, clean, small, level_of(clean), flow_of((2.0, -4.0), 5, 48, 64))
    mean = torch.nn.functional.avg_pool2d(merged.noisy[0], 2)[None]
    inside = (
        0,
        2,
        slice(None),
        slice(8, -8),
        slice(10, -10),
    )  # no match of the middle frame leaves the picture
    assert float((merged.features - mean)[inside].abs().max()) < 1e-5


def tiny(**changes: object) -> TwoPass:
    torch.manual_seed(0)
    settings = {"channels": [8, 8], "depths": [1, 1]}
    network = build("stan_tiny", **{**settings, **changes}).eval()
    assert isinstance(network, TwoPass)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # away from the start, where much is zero
    return network


def test_frames_alone_equal_clips_of_one_frame() -> None:
    network = tiny()
    noisy = noise_like(torch.zeros(3, 1, 3, 20, 28)) + 0.5
    with torch.no_grad():
        together = network(noisy, 30.0)
        apart = torch.cat([network(frame[None], 30.0) for frame in noisy])
    assert torch.allclose(together, apart, atol=1e-6)


def test_a_causal_network_does_not_look_ahead() -> None:
    network = tiny(causal=True)
    noisy = waves(6, 24, 32, (1.0, 0.0)) + noise_like(torch.zeros(1, 6, 3, 24, 32))
    changed = noisy.clone()
    changed[:, 4:] = 0.3
    with torch.no_grad():
        assert torch.equal(network(noisy, 30.0)[:, :4], network(changed, 30.0)[:, :4])
        assert not torch.equal(network(noisy, 30.0)[:, 4], network(changed, 30.0)[:, 4])


def test_the_last_estimate_is_the_output_and_both_passes_learn() -> None:
    network = tiny()
    noisy = waves(5, 24, 32, (0.5, 0.5)) + noise_like(torch.zeros(1, 5, 3, 24, 32))
    first, last = network.estimates(noisy, 30.0)
    assert torch.allclose(last, network(noisy, 30.0), atol=1e-6)
    (first.square().mean() + last.square().mean()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    network.zero_grad()
    network.estimates(noisy, 30.0)[1].square().mean().backward()
    leave = network.clean.leave.weight.grad
    assert leave is not None
    assert bool(leave[12:].flatten(1).any(1).all())  # the second pass teaches the first what to hand on


@pytest.mark.parametrize(("height", "width", "frames"), [(1, 1, 1), (7, 13, 2), (33, 18, 6)])
def test_any_size_and_length(height: int, width: int, frames: int) -> None:
    network = tiny()
    noisy = noise_like(torch.zeros(2, frames, 3, height, width)) + 0.5
    with torch.no_grad():
        out, maps = network(noisy, torch.tensor([10.0, 40.0]), return_matches=True)
    assert out.shape == noisy.shape
    assert bool(out.isfinite().all())
    assert float(maps[0].weights.sum(-1).sub(1).abs().max()) < 1e-5


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 250.0])
def test_extreme_levels_stay_finite(sigma: float) -> None:
    with torch.no_grad():
        assert bool(tiny()(waves(5, 24, 24, (3.0, 1.0)), sigma).isfinite().all())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("patch", 4),
        ("window", 0),
        ("channels", []),
        ("depths", [1]),
        ("key_stride", 0.0),
        ("key_stride", 1e7),  # beyond what the kernels take, as the next
        ("patch", 257),
        ("passes", 0),
    ],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=setting):
        tiny(**{setting: value})


@pytest.mark.parametrize("features", [0, 5])
def test_without_gradient_the_same_is_computed(features: int) -> None:
    """Where no gradient is wanted, the input is laid out, the first convolution folded and sums taken in place."""
    network = tiny(features=features)
    noisy = waves(6, 24, 32, (1.0, -0.5)) + noise_like(torch.zeros(1, 6, 3, 24, 32))
    sigma = torch.linspace(10, 40, 6)[None]
    expected = [e.detach() for e in network.estimates(noisy, sigma)]
    with torch.no_grad():
        for ours, theirs in zip(network.estimates(noisy, sigma), expected):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_passes_one_by_one_are_the_whole() -> None:
    """First pass, flow, next pass of a part of the frames: bit for bit what the network gives for these."""
    network = tiny()
    noisy = waves(11, 24, 32, (1.0, -0.5)) + noise_like(torch.zeros(1, 11, 3, 24, 32))
    with torch.no_grad():
        whole = network(noisy, 30.0)
        level = torch.full((1, 11, 1, 1, 1), 30 / 255)
        first = joined(network.first_pass(f, level[:, :1]) for f in noisy.split(1, 1))
        flow = network.source(first.frames)
        again = joined(network.next_pass(noisy, level, first, flow, slice(4, 7)))
        middle = slice(1, 10)  # the frames that 4 to 6 look at
        part = joined(
            network.next_pass(
                noisy[:, middle],
                level[:, middle],
                Cleaned(*(x[:, middle] for x in first)),
                FlowPair(*(f[:, middle] for f in flow)),
                slice(3, 6),
            )
        )
    assert torch.equal(again.frames, whole[:, 4:7])
    assert torch.equal(part.frames, whole[:, 4:7])


def test_flow_sees_a_part_of_the_noise() -> None:
    """In training, on whole clips and pass by pass alike."""
    seen: list[torch.Tensor] = []

    class Seeing(ZeroFlow):
        def estimate(self, video: torch.Tensor) -> FlowPair:
            seen.append(video)
            return super().estimate(video)

    network = tiny(flow="zero", flow_noise=0.2)
    network.source = Seeing()
    noisy = waves(4, 24, 32, (1.0, 0.0)) + noise_like(torch.zeros(1, 4, 3, 24, 32))
    first = network.estimates(noisy, 30.0)[0].detach()
    expected = 0.8 * first + 0.2 * noisy
    with torch.no_grad():
        network(noisy, 30.0)
    assert all(torch.allclose(video, expected, atol=1e-5) for video in seen)
    assert len(seen) == 2
    assert torch.equal(tiny().flow_view(noisy, first), first)
