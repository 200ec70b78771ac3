from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch

from stan.errors import ConfigError
from stan.flow import FlowPair
from stan.inference import TilePlan, planning
from stan.inference.clip import ClipRunner
from stan.inference.memory import peak_allocation
from stan.inference.planning import fit, measure, plan_tiles
from stan.models import VideoDenoiser, build
from stan.models.base import joined
from tests.inference.networks import Convolutions, StandIn, identity

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No measurement of another test, and none of the user's."""
    monkeypatch.setattr(planning, "_measured", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny() -> VideoDenoiser:
    return build("unet_tiny").eval()


def test_the_line_through_the_largest_two() -> None:
    model = fit([(10, 5000), (100, 1300), (200, 2300)])
    assert (model.base, model.per_pixel) == (300, 10)
    assert fit([(100, 900), (200, 2000)]).base == 0  # never below the origin
    assert fit([(100, 900), (200, 2000)]).per_pixel >= 10
    assert fit([(100, 900)]).per_pixel == 9


@pytest.mark.parametrize("size", [(6, 256, 256), (12, 200, 330), (7, 301, 150)])
def test_larger_tiles_are_predicted(tiny: VideoDenoiser, size: tuple[int, int, int]) -> None:
    """Tiles 2 to 5 times as large as any that was measured, of other shapes and odd sizes."""
    runner = ClipRunner(tiny)
    needs = measure(runner)
    frames, height, width = size
    noisy, sigma = torch.rand(frames, 3, height, width), torch.full((frames, 1, 1, 1), 25.0)
    flow = tiny.source(noisy[None])
    pair = FlowPair(flow.forward[0], flow.backward[0])
    with torch.no_grad():
        actual = peak_allocation(torch.device("cpu"), lambda: runner.tile(noisy, sigma, pair))
    assert needs.tile(tiny, *size) == pytest.approx(actual, rel=0.25)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["unet_tiny", "unet_small"])
def test_larger_tiles_are_predicted_on_a_gpu(name: str) -> None:
    model = build(name).eval().cuda()
    runner = ClipRunner(model)
    needs = measure(runner)
    for frames, height, width in ((6, 256, 256), (12, 480, 854)):
        noisy = torch.rand(frames, 3, height, width, device="cuda")
        sigma = torch.full((frames, 1, 1, 1), 25.0, device="cuda")
        pair = FlowPair(*noisy.new_zeros(2, frames, 2, height, width))
        with torch.no_grad():
            actual = peak_allocation(noisy.device, partial(runner.tile, noisy, sigma, pair))
        assert needs.tile(model, frames, height, width) == pytest.approx(actual, rel=0.25)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "size", "plan"),
    [
        pytest.param("unet_tiny", (12, 320, 480), "TilePlan(8, 2, 160, 256, 32)", marks=pytest.mark.slow),
        pytest.param("unet_tiny", (12, 480, 480), "TilePlan(12, 0)", marks=pytest.mark.slow),
        pytest.param("unet_small", (10, 480, 854), "TilePlan(10, 2)", marks=pytest.mark.slow),
        pytest.param("unet_tiny", (40, 480, 854), "TilePlan(16, 4, 256, 448, 64)", marks=pytest.mark.slow),
        pytest.param("stan", (8, 256, 320), "TilePlan(8, 2)", marks=pytest.mark.slow),
        ("stan_tiny", (24, 320, 480), "TilePlan(12, 2)"),
        pytest.param("stan_tiny", (48, 480, 854), "TilePlan(32, 2)", marks=pytest.mark.slow),
        pytest.param("stan_tiny", (30, 480, 854), "TilePlan(10, 2, 256, 448, 64)", marks=pytest.mark.slow),
    ],
)
def test_the_process_grows_as_predicted(name: str, size: tuple[int, int, int], plan: str) -> None:
    """The whole of `denoise` in a process of its own, whose growth is read from the system: within 25 %."""
    script = f"""
        import ctypes, json, torch
        from pathlib import Path
        from stan.inference import TilePlan, denoise
        from stan.inference.clip import ClipRunner
        from stan.inference.memory import process_memory
        from stan.inference.planning import measure
        from stan.models import build
        torch.set_num_threads(2)
        model = build({name!r}).eval()
        plan, size = {plan}, {size}
        expected = measure(ClipRunner(model)).video(ClipRunner(model), plan, *size[1:], size[0])
        video = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8)
        out = torch.zeros(video.shape).mul_(2)  # what denoise returns is the caller's
        del out
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = process_memory()["VmRSS"]
        result = denoise(model, video, 25, tiles=plan, scenes=False)
        grown = process_memory()["VmHWM"] - before - result.nbytes
        print(json.dumps([expected, grown]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    expected, grown = json.loads(done.stdout)
    assert expected == pytest.approx(grown, rel=0.25)


@pytest.mark.parametrize("name", ["unet_tiny", "stan_tiny"])
def test_a_plan_fits_its_budget_and_no_larger_one_would_do_less_work(name: str) -> None:
    height, width = 480, 854
    model = build(name).eval()
    runner = ClipRunner(model)
    needs = measure(runner)
    for budget in ("500MiB", "1GiB", "4GiB", "64GiB"):
        allowed = planning.parse_size(budget)
        chosen = plan_tiles(model, (height, width), memory=budget)
        assert needs.video(runner, chosen, height, width) <= allowed
        work = planning.work_of(runner, chosen, height, width)
        for row in planning.candidates(model, height, width, None, chosen.overlap):
            for plan in row:
                if needs.video(runner, plan, height, width) <= allowed:
                    assert planning.work_of(runner, plan, height, width) >= work


def test_a_pass_is_told_apart_in_what_grows_with_frames_and_what_does_not() -> None:
    """Clips of other lengths and sizes than any that was measured, of a network that is run pass by pass."""
    model = build("stan_tiny").eval()
    runner = ClipRunner(model)
    needs = measure(runner)
    assert (
        needs.kept == 12 + 4 * model.settings["features"] / 4
    )  # float32: a frame, and features by 2x2 pixels
    for frames, height, width in ((8, 128, 160), (16, 192, 256), (20, 128, 160), (30, 96, 128)):
        noisy = torch.rand(1, frames, 3, height, width)
        level = torch.full((1, frames, 1, 1, 1), 0.1)
        flow = FlowPair(*noisy.new_zeros(2, 1, frames, 2, height, width))
        with torch.no_grad():
            left = model.first_pass(noisy, level)
            following = partial(model.next_pass, noisy, level, left, flow)
            actual = peak_allocation(torch.device("cpu"), lambda run=following: joined(run()))
        told = needs.tile(model, frames, height, width)
        if frames > 8:
            assert told == pytest.approx(actual, rel=0.15)
        else:  # as many as are averaged at a time, with none beside them
            assert actual < told < 1.3 * actual


def test_more_memory_means_less_work(tiny: VideoDenoiser) -> None:
    plans = [plan_tiles(tiny, (720, 1280), memory=n * GIB) for n in (1, 2, 4, 8, 64)]
    work = [plan.work(720, 1280, tiny.multiple) for plan in plans]
    assert work == sorted(work, reverse=True)
    assert plans[-1].height is plans[-1].width is None


def test_a_known_length_is_shared_evenly() -> None:
    assert plan_tiles(identity(), (480, 854), frames=40, memory="8GiB").frames == 22  # 22 + 22 - 4
    assert plan_tiles(identity(), (480, 854), frames=9, memory="8GiB").frames == 9
    assert plan_tiles(identity(), (480, 854), frames=1, memory="8GiB").frames == 1


def test_too_little_memory_is_said_and_tried(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_tiles(identity(), (2160, 3840), memory="1MiB")
    assert "even the smallest tiles" in caplog.text
    assert plan.frames == 6
    with pytest.raises(ConfigError, match="lots"):
        plan_tiles(identity(), (480, 854), memory="lots")


def test_a_small_video_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measure", lambda runner: pytest.fail("measured"))
    assert plan_tiles(identity(), (60, 80), frames=8) == TilePlan(frames=8)


def test_a_measurement_is_kept_and_known_by_what_it_depends_on(
    tiny: VideoDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ClipRunner(tiny)
    first = measure(runner)
    monkeypatch.setattr(planning, "_measured", {})
    monkeypatch.setattr(planning, "_measure", lambda runner: pytest.fail("measured again"))
    assert measure(runner) == first
    others = ClipRunner(tiny, dtype=torch.bfloat16), ClipRunner(build("unet_small"))
    keys = {planning._key(r) for r in (runner, *others)}
    assert len(keys) == 3
    cache = planning._cache_file(planning._key(runner))
    cache.write_text("{damaged")
    monkeypatch.setattr(planning, "_measured", {})
    monkeypatch.setattr(planning, "_measure", lambda runner: first)
    assert measure(runner) == first
    assert json.loads(cache.read_text())["per_pixel"] == first.per_pixel


def test_networks_from_elsewhere_are_kept_in_the_process_only() -> None:
    runner = ClipRunner(Convolutions())
    needs = measure(runner)
    assert measure(runner) is needs
    assert not planning._cache_file(planning._key(runner)).exists()


def test_running_out_while_measuring_uses_what_was_measured() -> None:
    def core(noisy: torch.Tensor, *_: object) -> torch.Tensor:
        if noisy[:, :, 0].numel() > 4 * 64 * 128:
            raise MemoryError
        return noisy * 2

    needs = measure(ClipRunner(StandIn(core)))
    assert needs.per_pixel > 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_memory_does_not_grow_with_the_number_of_frames(shared_data: Path, tmp_path: Path) -> None:
    """1280x720: the peak over 292 frames is that over 40, and near what was expected."""
    video, figures = shared_data / "videos" / "blocks_720p.mp4", tmp_path / "figures.json"
    small = json.dumps({"flow": "zero", "channels": [8, 16], "search_matches": 4, "matches": 4, "window": 3})
    command = [sys.executable, "scripts/bench_memory.py", str(video), "--frames", "40", "292"]
    command += ["--memory", "512MiB", "--model", "unet_tiny", "--settings", small, "--json", str(figures)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    few, many = json.loads(figures.read_text())
    assert (few["frames"], many["frames"]) == (40, 292)
    assert many["peak"] < 1.03 * few["peak"]
    assert many["peak"] - many["before"] < 1.25 * 512 * 2**20
