from __future__ import annotations

import logging
import math
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stan
from stan.errors import ConfigError, StanError
from stan.flow import FlowPair, OffsetSource
from stan.inference import Options, SigmaRangeWarning, TilePlan, denoise, denoise_chunks
from stan.models import Trained
from tests.inference.networks import Convolutions, StandIn, identity

SMALL = TilePlan(frames=6, frame_overlap=2, height=32, width=40, overlap=16)


def video(t: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.rand(t, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    frames, overlap = draw(st.integers(1, 9)), draw(st.integers(0, 24))
    side = st.none() | st.integers(overlap + 1, overlap + 40)
    return TilePlan(frames, draw(st.integers(0, frames - 1)), draw(side), draw(side), overlap)


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


def test_all_kinds_of_video_are_taken() -> None:
    model = identity()
    levels = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    expected = levels.float() / 255
    assert torch.equal(denoise(model, levels), expected)
    assert torch.equal(denoise(model, levels.numpy()), expected)
    assert torch.equal(denoise(model, expected.double().numpy()), expected)
    assert denoise(model, expected.half()).dtype == torch.float32
    transposed = expected.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(denoise(model, transposed, tiles=SMALL, clamp=True), expected)
    assert denoise(model, levels[:0]).shape == (0, 3, 20, 24)
    assert denoise(model, expected.requires_grad_()).requires_grad is False


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


class Noted(StandIn):
    """Returns its noise map in every channel."""

    def __init__(self) -> None:
        super().__init__(self._run, blind=False, multiple=4)

    @staticmethod
    def _run(noisy: Tensor, noise_map: Tensor | None, flow: FlowPair) -> Tensor:
        assert noise_map is not None
        return noise_map.expand_as(noisy).contiguous()


@pytest.mark.parametrize("shape", [(), (1,), (11,), (11, 1, 1, 1), (40, 60), (1, 1, 40, 60), (11, 1, 40, 60)])
def test_sigma_reaches_every_pixel(shape: tuple[int, ...]) -> None:
    sigma = torch.rand(shape) * 50
    result = denoise(Noted(), video(11, 40, 60), sigma, tiles=SMALL)
    aligned = sigma[:, None, None, None] if sigma.shape == (11,) else sigma
    assert torch.allclose(result, aligned.expand(11, 3, 40, 60) / 255, atol=1e-6)


def test_sigma_as_number_list_and_stream() -> None:
    noisy = video(4, 8, 8)
    assert torch.allclose(denoise(Noted(), noisy, 51), torch.tensor(0.2))
    assert torch.allclose(
        denoise(Noted(), noisy, [0, 51, 102, 153])[:, 0, 0, 0], torch.tensor([0, 0.2, 0.4, 0.6])
    )
    mixed = iter([51.0, torch.full((8, 8), 102.0), torch.tensor(153), 204])
    frames = denoise_chunks(Noted(), iter(noisy), mixed)
    assert torch.allclose(torch.stack(list(frames))[:, 0, 5, 5], torch.tensor([0.2, 0.4, 0.6, 0.8]))


def test_sigma_auto_is_the_noise_of_the_video() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.linspace(0.2, 0.8, 128).expand(7, 3, 96, 128)
    noisy = clean + torch.randn(clean.shape, generator=generator) * 30 / 255
    result = denoise(Noted(), noisy, "auto") * 255
    assert (result - 30).abs().max() < 1.5


@pytest.mark.parametrize(
    ("sigma", "words"),
    [
        (None, "needs sigma"),
        (-1, "at least 0"),
        (math.nan, "finite"),
        (math.inf, "finite"),
        ("25", "'25'"),
        ([1, 2, 3], r"\(3,\)"),
        (torch.ones(8, 9), r"\(8, 9\)"),
        (torch.ones(4, 3, 8, 8), r"\(4, 3, 8, 8\)"),
    ],
)
def test_wrong_sigma_gets_one_clear_line(sigma: object, words: str) -> None:
    with pytest.raises(StanError, match=words) as caught:
        denoise(Noted(), video(4, 8, 8), sigma)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_stream_of_levels_that_ends_early() -> None:
    with pytest.raises(StanError, match="2 values"):
        list(denoise_chunks(Noted(), iter(video(4, 8, 8)), iter([1.0, 2.0])))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(4, 8, 8, 3), r"\(4, 8, 8, 3\)"),
        (torch.zeros(4, 3, 0, 8), r"\(4, 3, 0, 8\)"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int32), "int32"),
        (np.zeros((4, 3, 8, 8), np.complex64), "complex64"),
        (torch.full((4, 3, 8, 8), 200.0), "divide by 255"),
    ],
)
def test_wrong_videos_get_one_clear_line(wrong: Tensor, words: str) -> None:
    with pytest.raises(StanError, match=words) as caught:
        denoise(identity(), wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_pixels_that_are_no_numbers_are_refused(value: float, dtype: torch.dtype) -> None:
    noisy = torch.full((4, 3, 8, 8), 0.5, dtype=dtype)
    noisy[2, 1, 3, 3:5] = value
    with pytest.raises(StanError, match="frame 2 has 2 pixels that are NaN or infinite"):
        denoise(identity(), noisy)


def test_a_device_that_cannot_compute_gets_one_line() -> None:
    for name, words in (("meta", "computes nothing"), ("abacus", "no such device"), ("cpu:x", "no such")):
        with pytest.raises(ConfigError, match=words):
            denoise(identity(), video(2, 8, 8), device=name)


def test_options_are_one_record_or_its_fields() -> None:
    noisy = video(4, 8, 8)
    options = Options(sigma=51, strength=2.0, clamp=True)
    once = denoise(Noted(), noisy, options=options)
    assert torch.allclose(once, torch.tensor(0.4))
    assert torch.equal(once, denoise(Noted(), noisy, 51, strength=2.0, clamp=True))
    assert torch.allclose(denoise(Noted(), noisy, 25.5, options), torch.tensor(0.2))
    with pytest.raises(TypeError, match="tile"):
        denoise(Noted(), noisy, 51, tile=SMALL)


def test_frames_of_different_sizes_are_named() -> None:
    frames = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(StanError, match="frame 2"):
        list(denoise_chunks(identity(), frames))


def test_tiles_and_memory_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not both"):
        denoise(identity(), video(2, 8, 8), tiles=SMALL, memory="1GiB")


def test_a_level_the_model_was_not_trained_for_is_warned_of_once() -> None:
    model = Noted()
    model.trained = Trained("gaussian", (10, 50), 100)
    noisy = video(12, 8, 8)
    with pytest.warns(SigmaRangeWarning, match="sigma 60 .*10 to 50") as caught:
        denoise(model, noisy, 60, tiles=TilePlan(3, 1))
    assert len(caught) == 1
    with pytest.warns(SigmaRangeWarning, match="frame 1"):
        denoise(model, noisy, [20.0, 5.0] * 6)
    with pytest.warns(SigmaRangeWarning, match="20 to 70"):
        denoise(model, noisy, torch.tensor([20.0, 70.0]).repeat(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoise(model, noisy, [10.0, 50.0] * 6)


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


def test_out_of_memory_is_halved_and_retried_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    limit = 6 * 32 * 32

    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        if noisy[:, :, 0].numel() > limit:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"
            )
        return noisy

    noisy = video(20, 64, 100)
    with caplog.at_level(logging.WARNING, "stan.inference"):
        result = denoise(StandIn(core), noisy, tiles=TilePlan(8, 2, None, None, 16))
    assert (result - noisy).abs().max() < 1e-6
    lines = [record.getMessage() for record in caplog.records]
    assert 2 <= len(lines) <= 8
    assert all(
        line.startswith("out of memory; trying again in chunks of ") and "\n" not in line for line in lines
    )


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_to_the_end_is_an_error(error: Exception) -> None:
    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        raise error

    with pytest.raises(
        StanError, match=r"out of memory on cpu even in chunks of \d+ frames .* smaller model"
    ):
        denoise(StandIn(core), video(9, 64, 64), tiles=TilePlan(8, 2, None, None, 16))


def test_other_errors_pass_through() -> None:
    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        raise RuntimeError("the size of tensor a must match")

    with pytest.raises(RuntimeError, match="must match"):
        denoise(StandIn(core), video(2, 8, 8))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource limits are Linux's")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_real_memory_limit_is_survived(limit: str, tmp_path: Path) -> None:
    """A network that takes about 500 MiB for the whole frames, in a process that may not grow by more than
    200."""
    script = tmp_path / "limited.py"
    script.write_text(
        textwrap.dedent(f"""
        import logging, resource, torch
        torch.set_num_threads(1)
        from stan.inference import TilePlan, denoise
        from stan.inference.memory import process_memory
        from tests.inference.networks import StandIn
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        model = StandIn(lambda noisy, _, __: noisy.repeat(1, 1, 40, 1, 1)[:, :, 60:63] * 2)
        noisy = torch.rand(8, 3, 360, 384)
        denoise(model, noisy[:2, :, :64, :64], tiles=TilePlan(2, 0))
        used = process_memory()["VmSize" if {limit!r} == "RLIMIT_AS" else "VmData"]
        resource.setrlimit(resource.{limit}, (used + (200 << 20),) * 2)
        result = denoise(model, noisy, tiles=TilePlan(8, 2, None, None, 64), scenes=False)
        print(result.shape, float((result - 2 * noisy).abs().max()) < 1e-5)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([8, 3, 360, 384]) True\n"
    lines = done.stderr.strip().splitlines()
    assert lines
    assert all(line.startswith("out of memory; trying again in ") for line in lines), done.stderr


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
