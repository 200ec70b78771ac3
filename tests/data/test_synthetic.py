"""Synthetic video: its truth is true, its splits are apart, and what is written is read as DAVIS."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, minimum_filter

from stan.data import open_clips
from stan.data.synthetic import SyntheticClip, read_flow, synthetic_clips, write_synthetic
from stan.data.synthetic.dataset import RECORD, is_complete
from stan.data.synthetic.photos import TRAIN, VAL, photo
from stan.data.synthetic.scene import Outline
from stan.errors import ConfigError, DataError

SIZE = (80, 120)


@pytest.fixture(scope="module")
def clips() -> list[SyntheticClip]:
    return list(synthetic_clips("val", frames=6, size=SIZE, seed=4))


def warped(frame: torch.Tensor, flow: torch.Tensor) -> np.ndarray:
    """Look up `frame` (3, H, W) where `flow` (2, H, W) points, with scipy's cubic spline."""
    y, x = np.mgrid[: frame.shape[1], : frame.shape[2]].astype(float)
    at = [y + flow[1].numpy(), x + flow[0].numpy()]
    return np.stack([map_coordinates(plane, at, order=3, mode="nearest") for plane in frame.double().numpy()])


def away_from_edges(flow: torch.Tensor, hidden: torch.Tensor) -> np.ndarray:
    """Pixels that show one layer, with their neighbours: where the flow is smooth and nothing is hidden."""
    steps = np.abs(np.gradient(flow.numpy(), axis=(1, 2))).sum(axis=(0, 1))
    return minimum_filter((steps < 0.2) & ~hidden.numpy(), 7)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("t", [1, 3])
def test_following_the_flow_finds_the_same_thing(forward: bool, t: int, clips: list[SyntheticClip]) -> None:
    """Exact to a twentieth of a pixel: the error grows if the flow is shifted by that in any direction."""
    for clip in clips:
        flow = (clip.forward if forward else clip.backward)[t]
        hidden = (clip.occluded_forward if forward else clip.occluded_backward)[t]
        other = clip.frames[t + 1 if forward else t - 1]
        now = clip.frames[t].double().numpy()
        inner = away_from_edges(flow, hidden)
        assert inner.mean() > 0.5
        shifts = [(0, 0), (0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)]
        errors = [
            np.square(warped(other, flow + torch.tensor(shift).view(2, 1, 1)) - now)[:, inner].mean()
            for shift in shifts
        ]
        assert min(errors) == errors[0], clip.name
        assert errors[0] < 0.2 * np.square(other.double().numpy() - now)[:, inner].mean(), clip.name


def test_flow_agrees_with_an_estimate(clips: list[SyntheticClip]) -> None:
    """A method that knows nothing of us finds the same motion, in the same (x, y) order and sign."""
    for clip in clips:
        grey = [cv2.cvtColor(f.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for f in clip.frames]
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        for t, other, flow, hidden in (
            (2, 3, clip.forward, clip.occluded_forward),
            (2, 1, clip.backward, clip.occluded_backward),
        ):
            found = dis.calc(grey[t], grey[other], None).transpose(2, 0, 1)
            error = np.linalg.norm(found - flow[t].numpy(), axis=0)[~hidden[t].numpy()]
            assert np.median(error) < 0.35, clip.name


def test_there_and_back_is_where_it_began(clips: list[SyntheticClip]) -> None:
    """Forward flow, then the backward flow found there, cancel where nothing is hidden."""
    for clip in clips:
        seen = ~clip.occluded_forward[2].numpy()
        y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
        ahead = clip.forward[2].numpy()
        back = np.stack(
            [
                map_coordinates(p, [y + ahead[1], x + ahead[0]], order=1, mode="nearest")
                for p in clip.backward[3].numpy()
            ]
        )
        error = np.linalg.norm(ahead + back, axis=0)[seen]
        assert np.quantile(error, 0.9) < 1e-3, clip.name  # a lookup across an edge mixes two motions


def test_shapes_ends_and_types(clips: list[SyntheticClip]) -> None:
    clip = clips[0]
    assert clip.frames.shape == (6, 3, *SIZE)
    assert clip.frames.dtype == torch.uint8
    assert clip.forward.shape == clip.backward.shape == (6, 2, *SIZE)
    assert clip.forward.dtype == clip.backward.dtype == torch.float32
    assert not clip.forward[-1].any()
    assert not clip.backward[0].any()
    assert clip.occluded_forward[-1].all()
    assert clip.occluded_backward[0].all()
    assert len(clip.clip) == 6
    assert clip.clip.size == SIZE


def test_occlusion_is_there_but_rare(clips: list[SyntheticClip]) -> None:
    for clip in clips:
        assert 0 < clip.occluded_forward[:-1].float().mean() < 0.15
        assert 0.5 < clip.forward[:-1].norm(dim=1).mean() < 8


def test_a_clip_depends_on_seed_and_number_alone(clips: list[SyntheticClip]) -> None:
    again = list(synthetic_clips("val", 2, frames=6, size=SIZE, seed=4))
    for a, b in zip(clips, again):
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.forward, b.forward)
    other = next(iter(synthetic_clips("val", 1, frames=6, size=SIZE, seed=5)))
    assert not torch.equal(other.frames, clips[0].frames)


def test_without_speed_nothing_moves() -> None:
    clip = next(iter(synthetic_clips("train", 1, frames=3, size=(40, 60), speed=0)))
    assert clip.forward.abs().max() < 1e-9
    assert torch.equal(clip.frames[0], clip.frames[2])
    assert not clip.occluded_forward[:-1].any()


def test_splits_share_no_photograph() -> None:
    assert not set(TRAIN.values()) & set(VAL.values())
    assert {clip.name[:-3] for clip in synthetic_clips("val", frames=1, size=(16, 24))} == set(VAL)
    for name in (*TRAIN, *VAL):
        assert min(photo(name).shape[:2]) >= 300
        assert photo(name).shape[2] == 3


def test_edges_are_anti_aliased(clips: list[SyntheticClip]) -> None:
    """Moving by a fraction of a pixel changes edge pixels by a fraction: no jump as large as the edge."""
    for clip in synthetic_clips("val", 3, frames=2, size=SIZE, speed=0.05):
        step = (clip.frames[1].float() - clip.frames[0].float()).abs()
        moved = clip.forward[0].norm(dim=0).max()
        assert moved < 0.5
        # A pixel cannot change by more than the largest step in its neighbourhood times the motion.
        high = torch.nn.functional.max_pool2d(clip.frames[0].float(), 5, 1, 2)
        low = -torch.nn.functional.max_pool2d(-clip.frames[0].float(), 5, 1, 2)
        assert (step <= (high - low) * (moved + 0.15) + 3).float().mean() > 0.999


def test_outline_depth_is_the_distance_to_the_curve_along_the_radius() -> None:
    outline = Outline(20.0, np.array([[0.2, 0.3], [-0.1, 1.0]]))
    x, y = np.random.default_rng(0).uniform(-40, 40, (2, 500))
    angle = np.arctan2(y, x)
    curve = 20 * (1 + 0.2 * np.cos(2 * angle + 0.3) - 0.1 * np.cos(3 * angle + 1.0))
    depth = outline.depth(x, y)
    near = np.hypot(x, y) < outline.reach
    assert np.allclose(depth[near], (curve - np.hypot(x, y))[near])
    assert np.all(depth[~near] < 0)


def test_written_data_is_davis(tmp_path: Path) -> None:
    start = time.monotonic()
    root = write_synthetic(tmp_path / "synthetic", size=SIZE, frames=3, train=4, val=2, progress=False)
    assert time.monotonic() - start < 60
    train, val = open_clips("davis", root, "train"), open_clips("davis", root, "val")
    assert [len(clip) for clip in (*train, *val)] == [3] * 6
    for clip, made in zip(val, synthetic_clips("val", 2, frames=3, size=SIZE)):
        assert clip.name == made.name
        error = (clip.read().float() - made.frames.float()).square().mean()
        assert 10 * torch.log10(255**2 / error) > 38, "JPEG should cost little"
        truth = read_flow(root, clip.name)
        assert (truth["forward"] - made.forward).abs().max() < 1e-3
        assert (truth["backward"] - made.backward).abs().max() < 1e-3
        assert torch.equal(truth["occluded_forward"], made.occluded_forward)
        assert torch.equal(truth["occluded_backward"], made.occluded_backward)
    assert json.loads((root / "synthetic.json").read_text())["train"] == 4


def test_writing_again_does_nothing_and_other_settings_replace(tmp_path: Path) -> None:
    root = tmp_path / "s"
    small = {"size": (24, 32), "frames": 2, "train": 2, "val": 1, "progress": False}
    write_synthetic(root, **small)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    write_synthetic(root, **small)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")} == before
    next(iter(before)).unlink()
    assert not is_complete(root, json.loads((root / RECORD).read_text()))
    write_synthetic(root, **small)
    assert len(list(root.rglob("*.jpg"))) == 6
    write_synthetic(root, **{**small, "train": 1, "seed": 3})
    assert len(list(root.rglob("*.jpg"))) == 4


def test_other_data_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages/480p/dog").mkdir(parents=True)
    (tmp_path / "JPEGImages/480p/dog/00000.jpg").write_bytes(b"precious")
    with pytest.raises(DataError, match="holds other data"):
        write_synthetic(tmp_path, progress=False)
    assert (tmp_path / "JPEGImages/480p/dog/00000.jpg").read_bytes() == b"precious"


def test_a_broken_off_writing_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stan.data.synthetic import dataset

    small = {"size": (24, 32), "frames": 2, "train": 2, "val": 1, "progress": False}
    write = dataset._write_clip

    def stopped(root: Path, clip: SyntheticClip) -> None:
        if clip.name.endswith("-01"):
            raise KeyboardInterrupt
        write(root, clip)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_write_clip", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic(tmp_path / "s", **small)
    assert not (tmp_path / "s/synthetic.json").exists()
    write_synthetic(tmp_path / "s", **small)
    assert len(open_clips("davis", tmp_path / "s")) == 3


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split 'test'"):
        next(iter(synthetic_clips("test", 1)))
    with pytest.raises(ConfigError, match="at least 1"):
        next(iter(synthetic_clips("train", 1, frames=0)))
    with pytest.raises(ConfigError, match="at least one sequence"):
        write_synthetic(tmp_path, train=0)
    with pytest.raises(DataError, match="cannot be read"):
        read_flow(tmp_path, "dog")


def test_scikit_image_without_photographs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.resources

    photo.cache_clear()
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    try:
        with pytest.raises(DataError, match=r"astronaut\.png of scikit-image"):
            photo("astronaut")
    finally:
        photo.cache_clear()
    shutil.rmtree(tmp_path)
