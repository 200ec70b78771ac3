"""The source that corrects the flow of another, against motion that is known."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stan.flow
import stan.models
from stan.errors import ConfigError
from stan.flow import FlowPair, OffsetSource, SteadyFlow
from stan.flow.steady import slopes_of, step, warped
from stan.models.two_pass import TwoPass
from stan.training.flow import FlowClips, flow_loss

from .test_sources import errors, translated

ROOT = Path(__file__).parents[2]


def awake(**settings: Any) -> SteadyFlow:
    """A source whose network says something."""
    source = stan.flow.build("steady", **settings)
    assert isinstance(source, SteadyFlow)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=drawn))
    return source.eval()


def noisy(motion: tuple[float, float], frames: int = 5, seed: int = 0, level: float = 0.04) -> Tensor:
    clean = translated(motion, frames)
    return clean + level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def test_a_clip_in_reverse_has_the_same_flow_in_reverse() -> None:
    source, video = awake(), noisy((1.5, -0.75))
    with torch.no_grad():
        flow, turned = source(video), source(video.flip(1))
    torch.testing.assert_close(flow.forward, turned.backward.flip(1), atol=1e-5, rtol=0)
    assert (flow.forward - source.measured(video).forward).abs().mean() > 0.01  # it does something


def test_it_looks_at_no_more_frames_than_it_says() -> None:
    source, video = awake(), noisy((1.5, -0.75), 7)
    before = source.measured(video)
    with torch.no_grad():
        whole = source.corrected(video, before)
        part = source.corrected(video[:, 1:6], FlowPair(*(f[:, 1:6] for f in before)))
    inner = slice(1, 3)  # frames 2 and 3: their flow to the next one has a frame on both sides in the part
    torch.testing.assert_close(part.forward[:, inner], whole.forward[:, 2:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.backward[:, 2:4], whole.backward[:, 3:5], atol=1e-5, rtol=0)
    assert not torch.allclose(part.forward[:, 3], whole.forward[:, 4], atol=1e-3)  # but it does look


def test_nothing_tells_a_causal_network_of_later_frames() -> None:
    network = stan.models.build("stan_tiny", flow="steady", causal=True, channels=(8,), depths=(1,))
    assert network.source.causal
    source, video = awake(), noisy((1.5, -0.75))
    other = torch.cat([video[:, :3], video[:, 3:].flip(4)], 1)
    with torch.no_grad():
        assert not torch.equal(source(video).backward[:, 2], source(other).backward[:, 2])
        source.causal = True
        assert torch.equal(source(video).backward[:, :3], source(other).backward[:, :3])
        assert torch.equal(source(video).forward[:, :2], source(other).forward[:, :2])


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 18), (97, 123)])
def test_any_size_batch_and_number_of_frames(size: tuple[int, int]) -> None:
    source = awake()
    video = torch.rand(2, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        flow, alone = source(video), source(video[1:])
        for both, one in zip(flow, alone):
            assert both.shape == (2, 3, 2, *size)
            assert both.isfinite().all()
            torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=0)
        assert not any(f.any() for f in source(video[:, :1]))
    # With a gradient all pairs are computed at once, without one by one.
    torch.testing.assert_close(source(video).forward.detach(), flow.forward, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("x.ckpt", "model.flow=zero", "model.flow=zero has no weights"),
        ("x.ckpt", "data.crop=20", "data.crop=20 must be a multiple of 8"),
        ("x.pth", "seed=1", "must end in .safetensors or .ckpt"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    davis_root: Path, tmp_path: Path, name: str, change: str, words: str
) -> None:
    command = [sys.executable, "scripts/train_flow.py", "stan_tiny", str(tmp_path / name)]
    command += ["configs/train/stan_tiny_flow.yaml", f"data.root={davis_root}", "data.crop=24", change]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("motion", [(0.4, 0.0), (0.0, -0.3), (-0.25, 0.35)])
def test_a_step_by_brightness_is_the_motion(motion: tuple[float, float]) -> None:
    """Lucas and Kanade's step from no motion at all, over the whole picture."""
    pictures = torch.nn.functional.avg_pool2d(translated(motion, 2)[0, :, :1], 5, 1, 2)
    slopes = slopes_of(pictures[:1], pictures[1:])
    found = step(slopes[..., 4:-4, 4:-4].mean((2, 3), keepdim=True)).flatten()
    torch.testing.assert_close(found, torch.tensor(motion), atol=0.05, rtol=0)


def test_warped_is_the_picture_elsewhere() -> None:
    picture = torch.rand(1, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(1, 2, 9, 11)
    flow[:, 0], flow[:, 1] = 2.0, -1.0
    torch.testing.assert_close(warped(picture, flow)[..., 1:, :-2], picture[..., :-1, 2:])
    flow[:, 0], flow[:, 1] = 0.5, 0.0
    between = (picture[..., :-1] + picture[..., 1:]) / 2
    torch.testing.assert_close(warped(picture, flow)[..., :-1], between)


@pytest.mark.parametrize("base", ["steady", "learned"])
def test_it_corrects_flow_of_two_frames_without_weights_only(base: str) -> None:
    with pytest.raises(ConfigError, match=f"not base='{base}'"):
        stan.flow.build("steady", base=base)


def test_the_settings_of_its_base_are_checked() -> None:
    with pytest.raises(ConfigError, match="preset='fats'"):
        stan.flow.build("steady", base_settings={"preset": "fats"})
    source = stan.flow.build("steady", base="farneback", base_settings={"levels": 3})
    again = stan.flow.build("steady", **source.settings)
    assert isinstance(again, SteadyFlow)
    assert again.base.settings["levels"] == 3


def test_the_loss_is_least_where_flow_meets_the_clean_picture() -> None:
    motion = (1.5, -0.75)
    clean = translated(motion, 3)
    truth = torch.tensor(motion).view(2, 1, 1).expand(1, 3, 2, *clean.shape[3:])

    def loss(x: float, y: float) -> float:
        moved = truth + torch.tensor([x, y]).view(2, 1, 1)
        clips = FlowClips(clean, clean, torch.tensor([0.1]), FlowPair(truth, -truth))
        return float(flow_loss(FlowPair(moved, -moved), clips))

    least = loss(0, 0)
    assert all(loss(x, y) > least + 0.005 for x, y in [(0.3, 0), (-0.3, 0), (0, 0.3), (0, -0.3)])
    assert loss(1.0, 0) > loss(0.3, 0)


def test_the_script_trains_the_source_alone(davis_root: Path, tmp_path: Path) -> None:
    """The script begins with the network's own weights, trains the source alone, and writes what can be loaded."""
    words = [
        "configs/train/stan_tiny_flow.yaml", f"data.root={davis_root}", "data.crop=24", "data.frames=4",
        "trainer.max_steps=12", "trainer.log_every=6", "optimizer.warmup_steps=1", "seed=1",
    ]  # fmt: skip
    for name in ("one", "two"):
        done = subprocess.run(
            [sys.executable, "scripts/train_flow.py", "stan_tiny", str(tmp_path / f"{name}.safetensors"), *words],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    shown = re.findall(r"step (\d+): loss ([\d.]+), ([\d.]+) without weights", done.stdout)
    assert [step for step, *_ in shown] == ["6", "12"]
    one, two = (stan.models.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    shipped = stan.models.load("stan_tiny")
    assert isinstance(one, TwoPass)
    assert (one.source.name, one.source.context) == ("steady", 1)
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])
        assert torch.equal(value, shipped.state_dict()[key]) == (not key.startswith("source.")), key


def nearness(source: OffsetSource) -> float:
    """Mean end-point error of its flow in noisy textures that move evenly, as a part of that of its base."""
    ours, base = [], []
    for seed, motion in enumerate([(3.0, 0.0), (0.0, -2.0), (1.3, 0.6), (-4.5, 2.25)]):
        video = noisy(motion, seed=100 + seed)
        with torch.no_grad():
            flow = source.measured(video)
            for found, into in ((flow, base), (source.corrected(video, flow), ours)):
                into += [errors(found.forward[0, t], motion).mean() for t in range(4)]
    return float(torch.stack(ours).mean() / torch.stack(base).mean())


def test_it_learns_to_be_nearer_to_the_truth_than_when_it_was_fresh() -> None:
    """By its loss alone, in motions and noise that it has not seen."""
    torch.manual_seed(0)
    source = stan.flow.build("steady", channels=8)
    fresh = nearness(source)
    optimizer = torch.optim.AdamW(source.requires_grad_(True).parameters(), lr=3e-2)
    motions = [(2.0, -1.0), (-3.0, 0.5), (0.6, 2.4), (-1.2, -2.2)]
    for n in range(60):
        motion = motions[n % 4]
        clean, seen = translated(motion, 4), noisy(motion, 4, seed=n)
        truth = torch.tensor(motion).view(2, 1, 1).expand(1, 4, 2, *clean.shape[3:])
        clips = FlowClips(seen, clean, torch.tensor([0.1]), FlowPair(truth, -truth))
        optimizer.zero_grad()
        flow_loss(source(seen), clips).backward()
        optimizer.step()
    learned = nearness(source.requires_grad_(False))
    assert learned < 0.8 * fresh


def test_the_shipped_flow_is_nearer_to_the_truth_than_its_base() -> None:
    source = stan.models.load("stan_tiny").source
    assert nearness(source) < 0.8


def test_training_the_network_leaves_it_as_it_is() -> None:
    settings: dict[str, Any] = {"channels": (8,), "depths": (1,), "temporal_window": 1}
    network = stan.models.build("stan_tiny", flow="steady", **settings)
    video = noisy((1.5, -0.75), 3)[..., :32, :48]
    network.estimates(video, 10.0)[-1].square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith("source."), name


def test_its_version_tells_its_weights() -> None:
    """By which a cache of flow knows what it was computed with."""
    source, other = stan.flow.build("steady"), awake()
    with torch.no_grad():
        source.load_state_dict(other.state_dict())
        assert source.version == other.version
        other.last.bias[0] += 1
    assert source.version != other.version


@pytest.mark.cuda
def test_a_gpu_gives_the_flow_of_a_cpu() -> None:
    source, video = awake(), noisy((1.5, -0.75))
    with torch.no_grad():
        flow = source.measured(video)
        cpu = source.corrected(video, flow)
        gpu = source.cuda().corrected(video.cuda(), FlowPair(*(f.cuda() for f in flow)))
    for one, other in zip(cpu, gpu):
        torch.testing.assert_close(one, other.cpu(), atol=2e-3, rtol=0)
