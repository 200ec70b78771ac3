from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stan.errors import StanError
from stan.inference.noise_level import NoiseTracker, _bases, _least, estimate_sigma, frame_sigma


def textured(seed: int = 0, size: tuple[int, int] = (200, 264)) -> Tensor:
    """A picture with smooth parts, edges and fine texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0] * 0.7 + 0.1
    picture[:, 40:80, 60:150] = 0.3
    picture[:, 100:180, 30:90] += (torch.rand(80, 60, generator=generator) - 0.5) * 0.4
    return picture.clamp(0, 1)


def with_noise(frame: Tensor, sigma: float, seed: int = 1) -> Tensor:
    return frame + torch.randn(frame.shape, generator=torch.Generator().manual_seed(seed)) * sigma / 255


@pytest.mark.parametrize("sigma", [2, 5, 10, 20, 30, 40, 50, 60])
def test_known_noise(sigma: float) -> None:
    noisy = with_noise(textured(), sigma)
    assert frame_sigma(noisy) == pytest.approx(sigma, rel=0.08, abs=0.4)
    clipped = (noisy * 255).round().clamp(0, 255).byte()
    assert frame_sigma(clipped) == pytest.approx(sigma, rel=0.08, abs=0.4)


def test_bytes_and_floats_agree() -> None:
    levels = (with_noise(textured(), 20) * 255).round().clamp(0, 255)
    assert frame_sigma(levels.byte()) == pytest.approx(frame_sigma(levels / 255), rel=1e-4)


def test_no_noise_is_none() -> None:
    assert frame_sigma(torch.full((3, 64, 64), 0.5)) < 1e-4
    assert frame_sigma(torch.linspace(0, 1, 128).expand(3, 96, 128)) < 0.1


def test_noise_in_dark_and_bright_parts_is_not_taken_for_all() -> None:
    """Most of the frame is black or white, where half of the noise is clipped away."""
    frame = torch.cat([torch.zeros(3, 64, 200), torch.ones(3, 64, 200), torch.full((3, 64, 200), 0.5)], 1)
    assert frame_sigma(with_noise(frame, 25).clamp(0, 1)) == pytest.approx(25, rel=0.05)


def test_halved_colour_as_in_video_files() -> None:
    """Noise that went through 4:2:0 has lost most of its colour; in the luminance it is still there."""
    levels = (with_noise(textured(), 25) * 255).round().clamp(0, 255).byte()
    yuv = cv2.cvtColor(levels.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2YUV_I420)
    halved = torch.from_numpy(cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB_I420)).permute(2, 0, 1)
    assert frame_sigma(halved) == pytest.approx(25, rel=0.06)


def test_the_transform_is_orthonormal_and_frequencies_are_apart() -> None:
    low, high = _bases()
    assert torch.allclose(low.T @ low, torch.eye(low.shape[1]), atol=1e-6)
    assert torch.allclose(high.T @ high, torch.eye(high.shape[1]), atol=1e-6)
    assert (low.T @ high).abs().max() < 1e-6
    block = np.zeros((8, 8), np.float32)
    block[4, 5] = 1  # OpenCV's DCT as the independent truth: frequencies (4, 5) are high
    assert (torch.from_numpy(cv2.idct(block)).flatten() @ high).square().sum() == pytest.approx(1, abs=1e-5)


def test_a_whole_video_is_the_median_and_the_tracker_follows() -> None:
    frame = textured()
    levels = [10.0] * 12 + [30.0] * 12
    video = [with_noise(frame, sigma, seed) for seed, sigma in enumerate(levels)]
    assert estimate_sigma(torch.stack(video[:12])) == pytest.approx(10, rel=0.08)
    tracker = NoiseTracker()
    track = [tracker.update(f, begins_scene=t == 0) for t, f in enumerate(video)]
    assert track[:12] == pytest.approx([10] * 12, rel=0.08)
    assert track[18:] == pytest.approx([30] * 6, rel=0.08)
    assert tracker.update(video[0], begins_scene=True) == pytest.approx(10, rel=0.08)
    assert np.std(track[5:12]) < np.std([frame_sigma(f) for f in video[:12]]) + 1e-9


def test_small_frames_and_empty_videos() -> None:
    assert frame_sigma(with_noise(torch.full((3, 8, 8), 0.5), 20)) > 5
    assert frame_sigma(with_noise(torch.full((3, 17, 31), 0.5), 20)) == pytest.approx(20, rel=0.3)
    with pytest.raises(StanError, match="7x9"):
        frame_sigma(torch.zeros(3, 7, 9))
    with pytest.raises(StanError, match="without frames"):
        estimate_sigma([])


def test_noise_of_a_real_file(shared_data: Path) -> None:
    """Rounded and clipped noise; its standard deviation in the mid-tones, away from clipping, is 39.9."""
    folder = shared_data / "noisy_pair" / "noisy"
    frames = [torch.from_numpy(cv2.imread(str(p))[:, :, ::-1].copy()) for p in sorted(folder.iterdir())]
    assert estimate_sigma(f.permute(2, 0, 1) for f in frames) == pytest.approx(39.9, rel=0.08)


@pytest.mark.parametrize("clipped", [False, True])
def test_known_noise_on_real_clips(shared_data: Path, clipped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("tennis", "bike-packing", "judo", "drift-chicane"):
        path = shared_data / "DAVIS" / "JPEGImages" / "480p" / name / "00005.jpg"
        clean = torch.from_numpy(cv2.imread(str(path))[:, :, ::-1].copy()).permute(2, 0, 1).float()
        for sigma in (5, 25, 50):
            noisy = clean + torch.randn(clean.shape, generator=generator) * sigma
            if clipped:
                noisy = noisy.round().clamp(0, 255)
            assert frame_sigma(noisy / 255) == pytest.approx(sigma, rel=0.06, abs=0.3)


@given(values=st.lists(st.integers(0, 4), min_size=1, max_size=40), count=st.integers(1, 50))
def test_the_least_are_those_of_a_stable_sort(values: list[int], count: int) -> None:
    """Also among equal values, as black frames have them: which are taken is no accident."""
    x = torch.tensor(values, dtype=torch.float32)
    expected = x.argsort(stable=True)[:count]
    assert set(_least(x, count).tolist()) == set(expected.tolist())
