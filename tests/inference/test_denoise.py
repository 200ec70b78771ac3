"""`denoise`: a video is cut into chunks and tiles, a network sees them, and what it gives is joined again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stan
from stan.errors import StanError
from stan.flow import FlowPair, OffsetSource
from stan.inference import TilePlan, denoise, denoise_chunks
from tests.inference.networks import Convolutions, StandIn, identity
from tests.inference.videos import SMALL, plans, video


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.integers(1, 24),
    st.integers(1, 70),
    st.integers(1, 70),
    plans(),
    st.sampled_from([1, 4, 8]),
    st.lists(st.integers(1, 30), max_size=4),
)
def test_an_identity_network_returns_its_input(
    t: int, h: int, w: int, plan: TilePlan, multiple: int, cuts: list[int]
) -> None:
    noisy = video(t, h, w)
    result = denoise(identity(multiple), noisy, tiles=plan, scenes=cuts)
    assert result.shape == noisy.shape
    assert (result - noisy).abs().max() <= 1e-6


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (2, 400)])
def test_odd_sizes_with_the_automatic_plan(size: tuple[int, int]) -> None:
    noisy = video(3, *size)
    assert torch.equal(denoise(identity(32), noisy), noisy)


def test_tiles_with_context_equal_the_whole() -> None:
    """A pixel sees 14 pixels around it: with 64 shared, a quarter of which has no weight, no tile lacks
    any."""
    model = Convolutions()
    noisy = video(9, 150, 190)
    whole = denoise(model, noisy, tiles=TilePlan(9, 0), scenes=False)
    tiled = denoise(model, noisy, tiles=TilePlan(6, 4, 96, 100, 64), scenes=False)
    assert len({size[-2:] for size in model.sizes}) > 1
    assert (whole - noisy).abs().mean() > 0.01
    assert (tiled - whole).abs().max() < 1e-5


def test_too_little_context_shows() -> None:
    """The check of the test above can fail: without shared pixels the borders differ."""
    model = Convolutions()
    noisy = video(4, 150, 190)
    whole = denoise(model, noisy, tiles=TilePlan(4, 0), scenes=False)
    tiled = denoise(model, noisy, tiles=TilePlan(4, 0, 96, 100, 0), scenes=False)
    assert (tiled - whole).abs().max() > 1e-3


def test_one_chunk_of_whole_frames_is_the_network_itself() -> None:
    model = Convolutions(blind=False).eval()
    noisy = video(5, 33, 50)
    with torch.no_grad():
        expected = model(noisy[None], 25.0)[0]
    assert torch.equal(denoise(model, noisy, 25, tiles=TilePlan(5, 0), scenes=False), expected)


def test_the_same_bits_every_time() -> None:
    model, noisy = Convolutions(), video(13, 70, 90)
    once, again = (denoise(model, noisy, tiles=SMALL) for _ in range(2))
    assert torch.equal(once, again)


def test_the_result_is_clamped_only_when_asked() -> None:
    noisy = video(3, 8, 8)
    assert denoise(identity(), noisy).max() > 1
    assert torch.equal(denoise(identity(), noisy, clamp=True), noisy.clamp(0, 1))


def test_frames_come_in_order_and_few_are_held() -> None:
    """Of an endless stream no more frames are taken ahead than a chunk and the look-ahead."""
    taken = 0

    def endless() -> Iterator[Tensor]:
        nonlocal taken
        while True:
            yield torch.full((3, 40, 48), taken / 1000)
            taken += 1

    frames = denoise_chunks(identity(), endless(), tiles=SMALL)
    for t in range(60):
        frame = next(frames)
        assert frame.shape == (3, 40, 48)
        assert frame.untyped_storage().nbytes() == frame.nbytes  # no view that keeps a chunk alive
        assert torch.allclose(frame, torch.tensor(t / 1000), atol=1e-6)
        assert taken - t <= SMALL.frames + 4


def test_frames_are_computed_only_when_asked_for() -> None:
    model = identity()
    frames = denoise_chunks(model, iter(video(30, 20, 20)), tiles=TilePlan(5, 1))
    assert model.sizes == []
    next(frames)
    assert len(model.sizes) == 1


def test_every_chunk_has_full_length_where_the_scene_has() -> None:
    model = identity()
    denoise(model, video(20, 8, 8), tiles=TilePlan(6, 2), scenes=[13])
    assert [size[1] for size in model.sizes] == [6, 6, 6, 6, 6]  # 13 = 6+4+4 -> 3 chunks, 7 = 6+4 -> 2 chunks
    model.sizes.clear()
    denoise(model, video(20, 8, 8), tiles=TilePlan(6, 2), scenes=[3])
    assert model.sizes[0][1] == 3  # a scene shorter than a chunk


def frames_together(seen: list[list[int]]) -> StandIn:
    """Notes which frames (by their values, t/100) a chunk holds."""

    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        seen.append([round(float(v) * 100) for v in noisy[0, :, 0, 0, 0]])
        return noisy

    return StandIn(core)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=5), plans())
def test_no_chunk_crosses_a_cut(length: int, cuts: list[int], plan: TilePlan) -> None:
    seen: list[list[int]] = []
    numbered = (torch.arange(length) / 100)[:, None, None, None].expand(-1, 3, 4, 4)
    result = denoise(
        frames_together(seen), numbered, scenes=cuts, tiles=TilePlan(plan.frames, plan.frame_overlap)
    )
    assert torch.allclose(result, numbered, atol=1e-6)
    assert {t for chunk in seen for t in chunk} == set(range(length))
    for chunk in seen:
        assert chunk == list(range(chunk[0], chunk[-1] + 1))
        assert not any(chunk[0] < cut <= chunk[-1] for cut in cuts)


def test_cuts_are_found_in_the_video() -> None:
    a, b = (video(1, 72, 128, seed).expand(9, -1, -1, -1) for seed in (1, 2))
    smooth = torch.nn.functional.interpolate(torch.cat([a, b])[:, :, ::12, ::12], (72, 128), mode="bilinear")
    model = StandIn(lambda noisy, _, __: noisy.mean(1, keepdim=True).expand_as(noisy))
    averaged = denoise(model, smooth, tiles=TilePlan(8, 4))
    assert torch.allclose(averaged, smooth, atol=1e-5)  # no average over both scenes
    assert not torch.allclose(denoise(model, smooth, tiles=TilePlan(8, 4), scenes=False), smooth, atol=1e-2)


def test_the_model_is_left_as_it_was() -> None:
    modes: list[bool] = []
    model = StandIn(lambda noisy, _, __: (modes.append(model.training), noisy)[1])
    model.frozen = torch.nn.Dropout()
    model.train()
    model.frozen.eval()
    denoise(model, video(3, 8, 8))
    assert modes == [False]
    assert model.training
    assert not model.frozen.training
    with pytest.raises(ZeroDivisionError):
        denoise(StandIn(lambda noisy, _, __: noisy * (1 // 0)).train(), video(3, 8, 8))
    assert torch.is_grad_enabled()


def test_progress_rises_to_the_number_of_frames() -> None:
    told: list[tuple[float, int | None]] = []
    denoise(
        identity(), video(15, 40, 60), tiles=SMALL, progress=lambda done, total: told.append((done, total))
    )
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert len(done) > 10
    assert done[-1] == pytest.approx(15)
    assert {total for _, total in told} == {15}


class Slow(torch.nn.Module):
    """Changes nothing, and takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


class SlowSource(OffsetSource):
    name = "slow"

    def estimate(self, video: Tensor) -> FlowPair:
        time.sleep(0.3)
        zeros = video.new_zeros(*video.shape[:2], 2, *video.shape[-2:])
        return FlowPair(zeros, zeros)


@pytest.mark.parametrize("tiles", [TilePlan(8, 0), TilePlan(8, 0, 256, 150, 32)])
def test_progress_moves_with_the_time_from_the_first_chunk_on(tiles: TilePlan) -> None:
    """Of one chunk with flow and, in each tile, modules of different length: at each call the part that is said
    to be done is the part of the time that has passed."""

    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        for module in model.parts:
            noisy = module(noisy)
        return noisy

    model = StandIn(core, source=SlowSource())
    model.parts = torch.nn.ModuleList(Slow(s) for s in (0.1, 0.05, 0.2, 0.05, 0.1))
    told: list[tuple[float, float]] = []
    denoise(
        model,
        video(8, 256, 260),
        tiles=tiles,
        scenes=False,
        progress=lambda done, total: told.append((time.perf_counter(), done / 8)),
    )
    assert told[0][1] == 0
    assert told[-1][1] == pytest.approx(1)
    assert len(told) >= 6
    (began, _), (ended, _) = told[0], told[-1]
    shares = 0.3 / (ended - began)  # of the flow; the rehearsal had one tile, the chunk may have several
    allowed = 0.1 if tiles.width is None else 0.1 + abs(0.3 / 0.8 - shares)
    for when, done in told:
        assert done == pytest.approx((when - began) / (ended - began), abs=allowed)


class Shown(OffsetSource):
    """A flow that says which frame, row and column it belongs to, and counts its calls."""

    name = "shown"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def estimate(self, video: Tensor) -> FlowPair:
        self.calls += 1
        b, t, _, h, w = video.shape
        x = torch.arange(w).float().expand(b, t, h, w)
        y = torch.arange(h).float()[:, None].expand(b, t, h, w)
        pair = torch.stack([x, y], 2) / 1000
        return FlowPair(pair, video[:, :, :2] * 1.0)


def flow_shown(noisy: Tensor, _: Tensor | None, flow: FlowPair) -> Tensor:
    return torch.cat([flow.forward, flow.backward[:, :, :1]], 2)


def test_flow_is_estimated_once_per_chunk_on_whole_frames() -> None:
    source = Shown()
    model = StandIn(flow_shown, multiple=4, source=source)
    noisy = video(6, 50, 70)
    result = denoise(model, noisy, tiles=SMALL)
    assert source.calls == 1
    assert len(model.sizes) > 4
    assert torch.allclose(result[:, 0], torch.arange(70).expand(6, 50, 70) / 1000, atol=1e-6)
    assert torch.allclose(result[:, 1], torch.arange(50)[:, None].expand(6, 50, 70) / 1000, atol=1e-6)
    assert torch.allclose(result[:, 2], noisy[:, 0], atol=1e-6)


@pytest.mark.parametrize("batched", [False, True])
def test_a_given_flow_is_cut_like_the_video(batched: bool) -> None:
    model = StandIn(flow_shown, source=Shown())
    noisy, given_ = video(11, 24, 30), torch.rand(2, 11, 2, 24, 30)
    pair = FlowPair(given_[0], given_[1])
    plan = TilePlan(5, 1, 16, 20, 4)
    result = denoise(
        model, noisy, flow=FlowPair(*(f[None] for f in pair)) if batched else pair, tiles=plan, scenes=[4]
    )
    inner = [0, 1, 2, 5, 6, 7, 9]  # not next to the end of a chunk, where forward flow is zero
    assert torch.allclose(result[inner, :2], pair.forward[inner], atol=1e-6)
    assert torch.allclose(
        result[[1, 2, 3, 5, 6, 7, 10], 2], pair.backward[[1, 2, 3, 5, 6, 7, 10], 0], atol=1e-6
    )
    assert result[3, :2].abs().max() == 0  # the last frame of a scene has nowhere to go
    assert result[4, 2].abs().max() == 0
    assert model.source.calls == 0
    with pytest.raises(StanError, match="flow"):
        denoise(model, noisy, flow=FlowPair(given_[0, :7], given_[1, :7]), tiles=plan)


def test_autocast_gives_float32_near_the_exact_result() -> None:
    model, noisy = Convolutions(), video(5, 40, 44)
    exact = denoise(model, noisy, tiles=SMALL)
    half = denoise(model, noisy, tiles=SMALL, dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.05


@pytest.mark.cuda
def test_a_gpu_gives_what_the_cpu_gives_within_its_budget() -> None:
    model, noisy = Convolutions(blind=False), video(12, 300, 420)
    expected = denoise(model, noisy, 25, tiles=TilePlan(12, 0))
    result = denoise(model, noisy, 25, memory="256MiB", device="cuda")
    assert result.device.type == "cpu"
    assert (result - expected).abs().max() < 2e-3
    assert torch.cuda.max_memory_allocated() < 256 << 20


def test_stan_denoise_is_this_one() -> None:
    assert stan.denoise is denoise
