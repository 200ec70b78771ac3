"""The source that learns, against motion that is known and slopes that are measured."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import stan.cli
import stan.flow
import stan.models
from stan import ops
from stan.errors import ConfigError
from stan.flow import LearnedFlow
from stan.models.two_pass import TwoPass, TwoPassSettings
from tests.flow.constant import Constant

from .test_sources import errors, texture

UNET: dict[str, Any] = {"temporal_window": 1, "channels": [16, 16], "depths": [1, 0]}


def moving(motion: tuple[float, float], seed: int, size: tuple[int, int], frames: int = 2) -> Tensor:
    """`(1, T, 3, H, W)`: a periodic texture of its own for each seed, that moves by exactly (dx, dy) a frame."""
    spectrum = np.fft.fft2(texture(*size, seed=seed))
    dx, dy = motion
    clip = [np.fft.ifft2(ndimage.fourier_shift(spectrum, (t * dy, t * dx))).real for t in range(frames)]
    return torch.from_numpy(np.stack(clip)).float()[None, :, None].expand(-1, -1, 3, -1, -1)


def fresh(**settings: Any) -> LearnedFlow:
    torch.manual_seed(0)
    source = stan.flow.build("learned", **settings)
    assert isinstance(source, LearnedFlow)
    return source


def awake(**settings: Any) -> LearnedFlow:
    """A source whose zeros are replaced, so that it says something."""
    source = fresh(**settings)
    with torch.no_grad():
        for step in source.steps:
            step.trust.fill_(0.05)
            step.correct[-1].weight.normal_(std=0.1)
    return source


def shown(source: LearnedFlow, clips: list[tuple[tuple[float, float], Tensor]]) -> float:
    """Mean end-point error of the flow to the frame before."""
    with torch.no_grad():
        found = [errors(source(clip).backward[0, 1], (-dx, -dy)) for (dx, dy), clip in clips]
    return float(torch.stack([e.mean() for e in found]).mean())


def test_it_learns_motion_through_the_gradient_of_the_search() -> None:
    """No motion is told: only how alike the patches are that a search of one place finds where the flow points."""
    source = fresh()
    motions = [(3.0, -2.0), (-5.0, 1.5), (4.0, 4.5), (-2.5, -4.0)]
    held_out = [(m, moving(m, 1000 + n, (64, 96))) for n, m in enumerate(motions)]
    before = shown(source, held_out)
    assert before == pytest.approx(np.mean([math.hypot(*m) for m in motions]), abs=1e-4)  # it said zero
    search = ops.ShiftedNLS(window=1, topk=1, patch=7, temporal_window=1, select="each", causal=True)
    optimizer = torch.optim.AdamW(source.parameters(), lr=3e-3)
    random = np.random.default_rng(0)
    for step in range(40):
        x, y = random.uniform(-6, 6, 2)
        clips = torch.cat([moving((x, y), 2 * step, (48, 48)), moving((-y, x), 2 * step + 1, (48, 48))])
        scores = search(clips, clips, source(clips).backward[:, :, None]).scores
        loss = -scores[:, 0, 1:, ..., 1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shown(source, held_out) < 0.4 * before


def slope(source: LearnedFlow, value: Callable[[], Tensor], name: str, index: int) -> tuple[float, float]:
    """The gradient of `value` by one number of a parameter, and by a central difference."""
    parameter = dict(source.named_parameters())[name]
    source.zero_grad()
    value().backward()
    assert parameter.grad is not None
    numbers, step, found = parameter.data.view(-1), 1e-6, []
    for sign in (1, -1):
        numbers[index] += sign * step
        found.append(value().item())
        numbers[index] -= sign * step
    return float(parameter.grad.view(-1)[index]), (found[0] - found[1]) / (2 * step)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("enter.0.weight", 5),
        ("downs.0.1.weight", 77),
        ("steps.0.trust", 0),
        ("steps.0.sharpness", 0),
        ("steps.1.correct.0.weight", 40),
        ("steps.2.correct.4.weight", 3),
    ],
)
def test_gradients_through_both_searches_are_the_slopes(name: str, index: int) -> None:
    """From the scores of a search, through its flow, through the searches inside the source."""
    source = awake(channels=8).double()
    video = moving((1.3, -0.7), 3, (40, 56), frames=3).double()
    search = ops.ShiftedNLS(window=3, topk=9, temporal_window=1)

    def value() -> Tensor:
        flow = source(video)
        follow = ops.search_flow(flow.forward, flow.backward, temporal_window=1)
        return search(video, video, follow).scores.mean()

    found, measured = slope(source, value, name, index)
    assert abs(measured) > 1e-9
    assert found == pytest.approx(measured, rel=2e-3)


def test_a_fresh_source_says_zero_and_leaves_the_other_weights_of_a_network_alone() -> None:
    video = moving((2.0, 1.0), 0, (33, 47), frames=3)
    assert not any(f.any() for f in fresh()(video))
    networks = []
    for flow in ("learned", "zero"):
        torch.manual_seed(3)
        networks.append(stan.models.build("unet_tiny", flow=flow, **UNET).eval())
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    with torch.no_grad():
        assert torch.equal(networks[0](video, 20.0), networks[1](video, 20.0))


def test_clips_batches_frames_and_directions() -> None:
    source = awake()
    video = torch.cat([moving((1.0, 2.0), n, (37, 50), frames=4) for n in range(2)])
    with torch.no_grad():
        flow, turned = source(video), source(video.flip(1))
        assert torch.allclose(flow.forward, turned.backward.flip(1), atol=1e-4)
        alone = source(video[1:])
        assert all(torch.allclose(f[1:], a, atol=1e-4) for f, a in zip(flow, alone))
        pairs = [source(video[:, t : t + 2]) for t in range(3)]  # it is pairwise
        for t, pair in enumerate(pairs):
            assert torch.allclose(flow.forward[:, t], pair.forward[:, 0], atol=1e-4)
            assert torch.allclose(flow.backward[:, t + 1], pair.backward[:, 1], atol=1e-4)
        assert flow.forward.abs().max() > 0.1
        assert not source(video[:, :1]).forward.any()
        assert source(video[:0]).forward.shape == (0, 4, 2, 37, 50)


@pytest.mark.parametrize("settings", [{}, {"levels": 1, "finest": 1}, {"levels": 5, "window": 3, "patch": 1}])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (40, 33)])
def test_any_size_has_finite_flow_and_gradients(settings: dict[str, int], size: tuple[int, int]) -> None:
    source = awake(channels=4, **settings)
    video = torch.rand(1, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    video[0, 0, :, 0] = float("nan")
    video[0, 1, :, 0] = float("inf")
    flow = source(video)
    assert all(f.isfinite().all() and f.shape == (1, 3, 2, *size) for f in flow)
    sum(f.square().sum() for f in flow).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in source.parameters())


def test_autocast_changes_nothing() -> None:
    source, video = awake(), moving((2.0, 1.0), 0, (32, 40))
    plain = source(video)
    with torch.autocast("cpu", torch.bfloat16):
        cast = source(video)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(plain, cast))
    assert source(video.bfloat16()).forward.dtype == torch.float32


def networks() -> dict[str, stan.models.VideoDenoiser]:
    deformable = UNET | {"attention": "deformable", "search_matches": 6, "matches": 6}
    return {
        "unet_tiny": stan.models.build("unet_tiny", flow="learned", **UNET),
        "recomputed": stan.models.build("unet_tiny", flow="learned", recompute=True, **UNET),
        "causal": stan.models.build("unet_tiny", flow="learned", causal=True, **UNET),
        "deformable": stan.models.build("unet_tiny", flow="learned", **deformable),
        "stan_tiny": TwoPass(
            "stan_tiny", TwoPassSettings(flow="learned", channels=(8,), depths=(1,), temporal_window=2)
        ),
    }


@pytest.mark.parametrize("name", ["unet_tiny", "recomputed", "causal", "deformable", "stan_tiny"])
def test_the_gradient_reaches_it_in_every_network_that_looks_at_flow(name: str) -> None:
    torch.manual_seed(0)
    network = networks()[name].train()
    video = moving((2.0, 1.0), 0, (40, 36), frames=3)
    noisy = video + 0.1 * torch.randn(video.shape)
    (network.estimates(noisy, 25.0)[-1] - video).square().mean().backward()
    gradients = {k: p.grad for k, p in network.source.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    for n in range(3):
        assert gradients[f"steps.{n}.trust"].any()
        assert gradients[f"steps.{n}.correct.4.bias"].any()


def test_the_merge_of_a_two_pass_network_draws_the_flow_to_the_motion() -> None:
    """Through the places that are gathered alone: everything else is a constant to it."""
    torch.manual_seed(0)
    settings = TwoPassSettings(
        channels=(8,), depths=(0,), temporal_window=1, window=1, correction=0, flow="zero"
    )
    network = TwoPass("stan_tiny", settings)
    network.source = source = Constant()
    truth, distances = torch.tensor([1.4, -0.9]), []
    optimizer = torch.optim.Adam([source.motion], lr=0.1)
    clean = moving((1.4, -0.9), 5, (64, 64), frames=3)
    level = torch.full((1, 3, 1, 32, 32), 0.02)  # strong noise would draw it to half pixels, which average it
    for _ in range(25):
        noisy = clean + 0.02 * torch.randn(clean.shape)
        features = clean.new_zeros(1, 3, 0, 32, 32)
        merged = network.merge(noisy, clean, features, level, source(clean))
        loss = (merged.noisy - clean).square()[..., 8:-8, 8:-8].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(float((source.motion.detach() - truth).norm()))
    assert distances[-1] < 0.25 * truth.norm()
    assert all(b < a for a, b in pairwise(distances[:8]))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("unet_tiny", {"attention": "unshifted"}, "attention='unshifted' looks at no flow"),
        ("unet_tiny", {"attention": "none"}, "looks at no other frame"),
        ("unet_tiny", {"temporal_window": 0}, "looks at no other frame"),
        ("stan_tiny", {"passes": 1}, "with passes=1 nothing looks at flow"),
    ],
)
def test_it_is_refused_where_it_would_never_learn(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"flow='learned' would never learn: .*{words}"):
        stan.models.build(name, flow="learned", **settings)


@pytest.mark.parametrize("setting", [{"finest": 3}, {"window": 4}, {"levels": 0}, {"channels": 0}])
def test_impossible_settings_are_named(setting: dict[str, int]) -> None:
    ((key, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        stan.flow.build("learned", **setting)


def weights(path: Path) -> dict[str, Tensor]:
    content: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return content["weights"]


def test_the_command_trains_resumes_and_evaluates_it(
    run_stan: Callable, davis_root: Path, tmp_path: Path
) -> None:
    """A run that was stopped ends in the bits of one that was not; the checkpoint rebuilds the source."""
    words = [
        "train", "train/davis_tiny.yaml", f"data.root={davis_root}", "model.name=unet_tiny", "model.flow=learned",
        "model.settings={temporal_window: 1, channels: [8, 8], flow_settings: {channels: 8}}", "data.crop=32",
        "data.frames=3", "data.batch_size=1", "data.workers=0", "validation.every=0", "trainer.accelerator=cpu",
        "optimizer.lr=1e-2", "optimizer.warmup_steps=0", "optimizer.rates={source.*: 0.5}", "logger=none",
        "optimizer.schedule=constant",
    ]  # fmt: skip
    assert stan.cli.main([*words, f"output={tmp_path / 'straight'}", "trainer.max_steps=4"]) == 0
    for steps in (2, 4):
        run_stan(*words, f"output={tmp_path / 'parts'}", f"trainer.max_steps={steps}")
    one, two = (weights(tmp_path / name / "last.ckpt") for name in ("straight", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one | two)
    assert any(key.startswith("source.steps.0") for key in one)
    assert all(one[f"source.steps.{n}.trust"] != 0 for n in range(3))  # it was trained, and averaged
    network = stan.models.load(tmp_path / "parts/last.ckpt")
    assert network.source.settings["channels"] == 8
    with torch.no_grad():
        assert network.source(moving((2.0, 1.0), 0, (40, 40))).forward.any()
    evaluate = [
        "evaluate", "evaluate/davis.yaml", f"data.root={davis_root}", f"output={tmp_path / 'tables'}",
        f"checkpoint=[{tmp_path / 'straight/last.ckpt'},{tmp_path / 'parts/last.ckpt'}]", "evaluation.split=val",
        "evaluation.protocol=quick", "evaluation.sigmas=[30]",
    ]  # fmt: skip
    assert stan.cli.main(evaluate) == 0
    rows = list(csv.DictReader((tmp_path / "tables/results.csv").open()))
    figures = {row["method"]: row["psnr"] for row in rows if row["sequence"] == "d"}
    assert len(figures) == 2
    assert len(set(figures.values())) == 1


@pytest.mark.cuda
def test_a_gpu_gives_the_flow_and_the_gradients_of_a_cpu() -> None:
    source, video = awake(), moving((2.0, 1.0), 0, (37, 50), frames=3)
    results = []
    for device in ("cpu", "cuda"):
        source.to(device).zero_grad()
        flow = source(video.to(device))
        flow.forward.square().sum().backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in source.parameters() if p.grad is not None])
        results.append((flow.forward.detach().cpu(), gradient))
    for cpu, gpu in zip(*results):
        assert torch.allclose(cpu, gpu, rtol=1e-2, atol=1e-2 * float(cpu.abs().max()))
