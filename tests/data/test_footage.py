"""Noise as video files hold it: its covariance against the colour conversion's own matrix."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from stan.data.noise import NumpyRandom, PerClip, TorchRandom, build
from stan.data.video.colour import (
    chroma_from_luma_grid,
    chroma_to_luma_grid,
    rgb_from_yuv,
    yuv_from_rgb,
)
from stan.errors import ConfigError
from stan.inference import frame_sigma

GREY = torch.full((2, 4, 3, 96, 128), 0.5)


def planes(video: torch.Tensor) -> np.ndarray:
    """Y', Cr, Cb by OpenCV, deviations from the mean in 8-bit units: (T, H, W, 3)."""
    frames = video.permute(0, 2, 3, 1).numpy()
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb) for frame in frames]) * 255 - 127.5


@pytest.mark.parametrize("chroma", [0.0, 0.5, 1.0])
def test_deviations_in_luma_and_chroma(chroma: float) -> None:
    noise = build("footage", share=1.0, least_chroma=chroma, most_chroma=chroma)
    noisy = noise(GREY, torch.tensor([10.0, 30.0]), TorchRandom("cpu", 1))
    for clip, sigma in zip(noisy, (10, 30)):
        luma, cr, cb = np.moveaxis(planes(clip), -1, 0)
        in_luma = sigma * np.sqrt(0.299**2 + 0.587**2 + 0.114**2)
        assert luma.std() == pytest.approx(in_luma, rel=0.02)
        for plane, scale in (
            (cr, 0.713 * 1.402),
            (cb, 0.564 * 1.772),
        ):  # OpenCV's Cr and Cb of a unit of each
            on_luma = (plane - plane.mean())[
                :, :, ::2
            ]  # these columns hold what the chroma planes do, or nearly
            assert on_luma.std() == pytest.approx(chroma * in_luma * scale, rel=0.06, abs=0.02)


def test_chroma_survives_the_way_into_a_file_and_back() -> None:
    """What `stan` writes of it as 4:2:0 and reads again is the same, with chroma placed one way or the other."""
    noise = build("footage", share=1.0, least_chroma=1.0, most_chroma=1.0)
    noisy = noise(torch.full((12, 1, 3, 32, 48), 0.5), 20.0, TorchRandom("cpu", 3))
    seen = set()
    for clip in noisy[:, 0]:
        y, cb, cr = yuv_from_rgb(clip, (0.299, 0.114))
        for centred in (True, False):
            halves = [chroma_from_luma_grid(c, 16, 24, centred) for c in (cb, cr)]
            back = rgb_from_yuv(y, *(chroma_to_luma_grid(c, 32, 48, centred) for c in halves), (0.299, 0.114))
            if torch.allclose(back, clip, atol=1e-4):
                seen.add(centred)
                break
        else:
            pytest.fail("neither placement gives the clip back")
    assert seen == {True, False}


def test_its_level_is_what_the_estimator_finds() -> None:
    noisy = build("footage", share=1.0)(GREY[0], 25.0, NumpyRandom(4))
    assert frame_sigma(noisy[0]) == pytest.approx(25, rel=0.05)


def test_the_share_of_the_clips_is_drawn() -> None:
    noise = build("footage", share=0.25, least_chroma=1.0, most_chroma=1.0)
    noisy = noise(torch.full((200, 1, 3, 8, 8), 0.5), 20.0, TorchRandom("cpu", 2)) - 0.5
    blue, green = noisy[:, :, 2].flatten(1).std(1), noisy[:, :, 1].flatten(1).std(1)
    part = (blue > 1.25 * green).float().mean()  # white noise has the same in each
    assert 0.15 < float(part) < 0.4


def test_the_same_key_gives_the_same_noise() -> None:
    noise = build("footage")
    assert torch.equal(noise(GREY, 20.0, TorchRandom("cpu", 5)), noise(GREY, 20.0, TorchRandom("cpu", 5)))


def test_ratios_the_wrong_way_round() -> None:
    with pytest.raises(ConfigError, match="least_chroma=2"):
        build("footage", least_chroma=2.0)


def test_a_clip_has_its_noise_in_any_company() -> None:
    """White, and coloured on either grid: computed together or alone."""
    noise = build("footage", share=0.5)
    clean = torch.rand(12, 3, 3, 17, 22, generator=torch.Generator().manual_seed(0))
    together = noise(clean, 30.0, PerClip([TorchRandom("cpu", n) for n in range(12)]))
    kinds = set()
    for n, clip in enumerate(clean):
        assert torch.equal(noise(clip[None], 30.0, PerClip([TorchRandom("cpu", n)]))[0], together[n])
        choice = TorchRandom("cpu", n, "choice")
        _, chosen, centred = (float(choice.uniform((1,))) for _ in range(3))
        white = clip + TorchRandom("cpu", n).normal(clip.shape) * (torch.tensor(30.0) / 255)
        assert torch.allclose(together[n], white, atol=1e-6) == (chosen >= 0.5)
        kinds.add((chosen < 0.5, centred < 0.5))
    assert len(kinds) == 4
