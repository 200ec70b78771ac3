"""PSNR, SSIM and flicker against scikit-image and against arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from stan.metrics import flicker, psnr, psnr_rounded, ssim


def videos(seed: int, frames: int, height: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """A clean video and one that is noisy beyond [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(frames, 3, height, width, generator=generator)
    return clean, clean + noise * torch.randn(clean.shape, generator=generator)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    frames=st.integers(1, 3),
    height=st.integers(7, 40),
    width=st.integers(7, 40),
    noise=st.floats(1e-4, 1.0),
)
def test_agree_with_scikit_image(seed: int, frames: int, height: int, width: int, noise: float) -> None:
    clean, output = videos(seed, frames, height, width, noise)
    for t in range(frames):
        x, y = clean[t].double().numpy(), output[t].double().clamp(0, 1).numpy()
        rounded = np.round(y * 255) / 255
        assert float(psnr(clean, output)[t]) == pytest.approx(
            peak_signal_noise_ratio(x, y, data_range=1), abs=1e-9
        )
        assert float(psnr_rounded(clean, output)[t]) == pytest.approx(
            peak_signal_noise_ratio(x, rounded, data_range=1), abs=1e-9
        )
        expected = structural_similarity(x, y, data_range=1, channel_axis=0)
        assert float(ssim(clean, output)[t]) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_a_flat_bright_picture_is_exact() -> None:
    """Where variances are tiny beside the mean, sums of squares lose digits."""
    clean = torch.full((1, 3, 64, 1000), 0.9)
    output = clean + 1e-4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    expected = structural_similarity(
        clean[0].double().numpy(), output[0].double().numpy(), data_range=1, channel_axis=0
    )
    assert float(ssim(clean, output)) == pytest.approx(expected, abs=1e-9)


def test_float32_input_agrees_with_scikit_image_on_real_frames(shared_data) -> None:
    import cv2

    frame = cv2.imread(str(shared_data / "DAVIS/JPEGImages/480p/dog/00000.jpg"))
    clean = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    output = clean + 30 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    x, y = clean[0].numpy(), output[0].clamp(0, 1).numpy()
    assert float(psnr(clean, output)) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)
    expected = structural_similarity(x, y, data_range=1, channel_axis=0)
    assert float(ssim(clean, output)) == pytest.approx(expected, abs=1e-6)


def test_equal_videos() -> None:
    clean, _ = videos(0, 2, 16, 16, 0)
    assert psnr(clean, clean).tolist() == [math.inf, math.inf]
    assert ssim(clean, clean) == pytest.approx(1)
    assert flicker(clean, clean).tolist() == [0]


def test_output_is_clamped_but_not_rounded() -> None:
    clean = torch.ones(1, 3, 8, 8)
    assert float(psnr(clean, clean * 1.7)) == math.inf
    half_a_level = clean - 0.3 / 255
    assert float(psnr(clean, half_a_level)) == pytest.approx(20 * math.log10(255 / 0.3), abs=1e-3)
    assert float(psnr_rounded(clean, half_a_level)) == math.inf


def test_flicker_of_known_errors() -> None:
    clean = torch.full((40, 3, 50, 50), 0.5)
    still = 0.1 * torch.rand(1, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    assert flicker(clean, clean + still).abs().max() < 1e-6
    random = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)) * 10 / 255
    assert float(flicker(clean, clean + random).mean()) == pytest.approx(10 * math.sqrt(2), rel=0.01)
    blinking = clean + (torch.arange(40) % 2).view(-1, 1, 1, 1) * 4 / 255
    assert flicker(clean, blinking).tolist() == pytest.approx([4] * 39, rel=1e-5)
    assert flicker(clean[:1], random[:1]).shape == (0,)


def test_wrong_input_is_named() -> None:
    clean, output = videos(0, 2, 16, 16, 0.1)
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        psnr(clean, output[:1])
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        psnr(clean, output.byte())
    with pytest.raises(ValueError, match="16x6"):
        ssim(clean[..., :6, :], output[..., :6, :])
