"""Networks run pass by pass: the result is that of the network on each whole scene, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.flow import FlowPair, OffsetSource, SteadyFlow, ZeroFlow
from stan.inference import Options, TilePlan, denoise, denoise_chunks, mark_scenes
from stan.inference.denoise import prepare
from stan.inference.levels import NoiseLevels
from stan.inference.passes import PassDenoiser, denoiser
from stan.inference.stream import stream_denoiser
from stan.models import Cleaned, VideoDenoiser, build

pytestmark = pytest.mark.timeout(120)


class Smooth(OffsetSource):
    """Motion that follows from two frames without a jump: what differs by rounding stays so. DIS reads bytes."""

    name = "smooth"
    pairwise = True

    def estimate(self, video: Tensor) -> FlowPair:
        """A pan by nearly a pixel a frame, more where brightness changes."""
        grey = torch.nn.functional.avg_pool2d(video.mean(2), 5, 1, 2)  # (B, T, H, W)
        change = grey.diff(dim=1).mul(2)
        there = torch.stack([change - 0.9, change], 2)  # (B, T-1, 2, H, W)
        none = torch.zeros_like(there[:, :1])
        return FlowPair(torch.cat([there, none], 1), torch.cat([none, -there], 1))


def network(flow: str = "smooth", **changes: object) -> VideoDenoiser:
    settings = {
        "channels": [8, 8],
        "depths": [1, 1],
        "temporal_window": 1,
        "features": 3,
        "patch": 3,
        "window": 3,
    }
    other = {} if flow == "smooth" else {"flow": flow}
    if flow == "steady":
        other["flow_settings"] = {"channels": 4}  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("stan_tiny", **settings | changes | other).eval()
    if flow == "smooth":
        model.source = Smooth()
    elif isinstance(model.source, SteadyFlow):
        model.source.base = Smooth()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return model


def video(t: int, h: int = 20, w: int = 27) -> Tensor:
    random = torch.Generator().manual_seed(t)
    still = torch.nn.functional.avg_pool2d(torch.rand(3, h + 8, w + 8 + t, generator=random), 9, 1)
    moving = torch.stack([still[..., k : k + w] for k in range(t)])  # a pan by a pixel a frame
    return (moving - 0.5) * 4 + 0.5 + 0.1 * torch.randn(t, 3, h, w, generator=random)


def whole(model: VideoDenoiser, noisy: Tensor, sigma: Tensor, cuts: list[int]) -> Tensor:
    """Each scene through the network in one piece."""
    ends = [*cuts, len(noisy)]
    with torch.no_grad():
        return torch.cat(
            [model(noisy[None, a:b], sigma[None, a:b])[0] for a, b in zip([0, *cuts], ends) if b > a]
        )


def same(ours: Tensor, expected: Tensor) -> None:
    """Equal but for rounding: a convolution over fewer frames may add up in another order."""
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 30])
@pytest.mark.parametrize("cuts", [[], [1, 3, 8]])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": True},
        {"passes": 3},
        {"temporal_window": 2},
        {"flow": "steady"},
        {"flow": "steady", "causal": True},
        {"flow": "steady", "passes": 3},
    ],
    ids=str,
)
def test_groups_give_what_the_whole_scene_gives(
    frames: int, cuts: list[int], changes: dict[str, Any]
) -> None:
    model, noisy, sigma = network(**changes), video(13), torch.linspace(15, 35, 13)
    ours = denoise(model, noisy, sigma, tiles=TilePlan(frames, 0), scenes=cuts)
    same(ours, whole(model, noisy, sigma, cuts))


@pytest.mark.parametrize("shape", [(20, 27), (7, 1, 20, 27)])
def test_maps_of_the_noise_level(shape: tuple[int, ...]) -> None:
    model, noisy = network(), video(7)
    sigma = 10 + 30 * torch.rand(shape, generator=torch.Generator().manual_seed(1))
    every = sigma if len(shape) == 4 else sigma.expand(7, 1, 20, 27)
    ours = denoise(model, noisy, sigma, tiles=TilePlan(5, 2), scenes=False)
    torch.testing.assert_close(ours, whole(model, noisy, every, []), atol=1e-6, rtol=0)


def test_bytes_and_clamping() -> None:
    model = network()
    noisy = (video(5).clamp(0, 1) * 255).round().byte()
    expected = whole(model, noisy.float() / 255, torch.full((5,), 25.0), [])
    ours = denoise(model, noisy, 25, tiles=TilePlan(4, 2), scenes=False, clamp=True)
    same(ours, expected.clamp(0, 1))


def test_tiles_with_context_are_close_to_the_whole() -> None:
    model, noisy = network(flow="zero"), video(5, 96, 128)
    expected = whole(model, noisy, torch.full((5,), 25.0), [])
    plan = TilePlan(4, 2, height=80, width=96, overlap=48)
    assert (denoise(model, noisy, 25, tiles=plan, scenes=False) - expected).abs().mean() < 5e-5


def test_nothing_is_computed_twice_and_little_held() -> None:
    model, counts = network(flow="zero"), {"first": 0, "flow": 0, "taken": 0}
    first, flow = model.first_pass, model.source.estimate

    def counted_pass(noisy: Tensor, level: Tensor | None) -> object:
        counts["first"] += noisy.shape[1]
        return first(noisy, level)

    def counted_flow(clip: Tensor) -> FlowPair:
        counts["flow"] += clip.shape[1] - 1
        return flow(clip)

    def frames() -> Iterator[Tensor]:
        for frame in video(40):
            counts["taken"] += 1
            yield frame

    model.first_pass = counted_pass  # type: ignore[assignment, method-assign]
    model.source.estimate = counted_flow  # type: ignore[method-assign]
    assert isinstance(model.source, ZeroFlow)
    plan = TilePlan(6, 2)
    for n, _ in enumerate(denoise_chunks(model, frames(), 25, tiles=plan, scenes=False)):
        assert counts["taken"] <= n + 6 + 2
    assert counts == {"first": 40, "flow": 39, "taken": 40}


@pytest.mark.parametrize("when", [0, 1], ids=["at once", "after some frames"])
def test_less_memory_means_smaller_groups(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    monkeypatch.setattr("stan.models.two_pass.TOGETHER", 2)
    model, noisy = network(), video(12)
    following = model.next_pass

    def greedy(noisy: Tensor, *rest: object) -> Iterator[Cleaned]:
        for n, part in enumerate(following(noisy, *rest)):  # type: ignore[arg-type]
            if noisy.shape[1] > 4 and n == when:
                raise MemoryError
            yield part

    expected = whole(model, noisy, torch.full((12,), 25.0), [])
    model.next_pass = greedy  # type: ignore[assignment, method-assign]
    same(denoise(model, noisy, 25, tiles=TilePlan(8, 2), scenes=False), expected)
    assert "trying again in chunks of 3 frames" in caplog.text


def test_the_first_pass_runs_ahead_and_the_rest_is_the_same() -> None:
    model, noisy, sigma = network(), video(9), torch.full((9,), 25.0)
    options = Options(sigma=25.0, tiles=TilePlan(5, 2), scenes=[4])
    ready = prepare(map(Frame, noisy), NoiseLevels(model, options), options)
    run = denoiser(model, options, ahead=True)
    assert isinstance(run, PassDenoiser)
    same(torch.stack([f.rgb for f in run(ready)]), whole(model, noisy, sigma, [4]))


def test_a_flow_that_is_given_goes_with_chunks() -> None:
    options = Options(flow=lambda noisy: FlowPair(noisy[:, :, :2] * 0, noisy[:, :, :2] * 0))
    assert not isinstance(denoiser(network(), options), PassDenoiser)


@pytest.mark.parametrize("flow", ["smooth", "steady"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_stream_comes_out_after_the_delay_and_ends_as_the_whole(causal: bool, flow: str) -> None:
    model, noisy = network(flow, causal=causal), video(9)
    stream = stream_denoiser(model, Options(sigma=25.0))
    assert isinstance(stream, PassDenoiser)
    assert stream.delay == (0 if causal else 2 if flow == "steady" else 1)
    taken = 0

    def incoming() -> Iterator[Frame]:
        nonlocal taken
        for rgb in noisy:
            taken += 1
            yield Frame(rgb, sigma=torch.full((1, 1, 1), 25.0))

    given = []
    for frame in stream(mark_scenes(incoming(), False, look_ahead=False)):
        given.append(frame.rgb)
        assert taken <= min(len(given) + stream.delay, 9)
    expected = whole(model, noisy, torch.full((9,), 25.0), [])
    start = 0 if causal else stream.delay  # the first frames see one side of its window only
    same(torch.stack(given)[start:], expected[start:])
