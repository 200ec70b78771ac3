"""ST-RRED against expectations worked out for Gaussian fields, a peer's figures, and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stan.metrics import strred
from stan.metrics.strred import HARMONICS, LUMA, combine, strred_terms, subband


def grey(video: np.ndarray) -> Tensor:
    """(T, H, W) -> (T, 3, H, W)."""
    return torch.from_numpy(video)[:, None].expand(-1, 3, -1, -1)


def band_covariance(variance: float) -> np.ndarray:
    """Covariance of 3x3 neighbours of the band of white noise: the integral of its power spectrum, on a fine
    grid of frequencies (every eighth pixel is kept, so one period of the grid is a band of pi/8)."""
    n = 512
    w = (np.arange(n) + 0.5) / n * 2 - 1  # in units of the decimated grid's highest frequency
    fy, fx = np.meshgrid(w, w, indexing="ij")
    r, angle = np.hypot(fy, fx), np.arctan2(fx, fy)
    response = sum(
        gain * r**rise * np.exp(-((r / cutoff) ** fall)) * np.cos(k * angle)
        for k, (gain, rise, cutoff, fall) in HARMONICS.items()
    )
    # The decimated signal keeps 1/64 of the spectrum; each finer level has gain 2 at low frequency.
    power = variance * (8 * response) ** 2 / 64
    lag = {
        (dy, dx): float((power * np.cos(np.pi * (fy * dy + fx * dx))).mean())
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    places = [(y, x) for y in range(3) for x in range(3)]
    return np.array([[lag[a[0] - b[0], a[1] - b[1]] for b in places] for a in places])


def test_white_noise_has_the_expectation_of_the_model() -> None:
    """For white noise every block is a Gaussian vector of known covariance, so both terms are expectations
    over independent normal vectors, worked out here by sampling those and nothing else."""
    sigma = 40 / 255
    rng = np.random.Generator(np.random.PCG64(1))
    first, second = (torch.from_numpy(0.5 + sigma * rng.standard_normal((8, 3, 768, 768))) for _ in range(2))
    clamped = np.clip(0.5 + sigma * rng.standard_normal(10**6), 0, 1)
    covariance = band_covariance(float(clamped.var()) * sum(w * w for w in LUMA))
    vectors = rng.standard_normal((2, 2, 100_000, 9))  # two videos, two frames each, whitened blocks

    for peak, found in zip((255.0, 1.0), strred_terms(first, second, (255.0, 1.0))):
        values = np.linalg.eigvalsh(covariance * peak**2)
        weighted = []
        for frame, after in vectors:
            s = (frame**2).mean(1)
            s_d = ((frame - after) ** 2 / 2).mean(1)  # the difference has twice the covariance
            attention = np.log2(1 + s)
            both = attention * np.log2(1 + s_d) * block_entropy(s_d, 2 * values)
            weighted.append((attention * block_entropy(s, values), both))
        spatial, temporal = (np.abs(weighted[0][i] - weighted[1][i]).mean() for i in (0, 1))
        assert float(found.spatial.mean()) == pytest.approx(spatial, rel=0.03)
        assert float(found.temporal.mean()) == pytest.approx(temporal, rel=0.03)


def block_entropy(s: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.log2(s[:, None] * values + 0.1).sum(1) + 9 * math.log(2 * math.pi * math.e)


def texture(frames: int, height: int, width: int) -> np.ndarray:
    """A moving texture whose spectrum falls off as that of photographs does, (T, H, W)."""
    rng = np.random.Generator(np.random.PCG64(3))
    fy, fx = np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None]
    spectrum = np.fft.rfft2(rng.standard_normal((512, 512))) / np.maximum(np.hypot(fy, fx), 1 / 512) ** 1.2
    field = np.fft.irfft2(spectrum, s=(512, 512))
    field = 0.5 + 0.18 * (field - field.mean()) / field.std()
    steps = [field[2 * t : 2 * t + height, 3 * t : 3 * t + width] for t in range(frames)]
    return np.clip(np.stack(steps), 0, 1)


# What skvideo.measure.strred of scikit-video 1.1.11 gives for these videos, at peak 255 and at peak 1.
PEER = {10: (16.727, 0.010912), 30: (130.96, 0.087011), 50: (314.25, 0.23290)}


@pytest.mark.parametrize("sigma", PEER)
def test_agrees_with_scikit_video(sigma: int) -> None:
    clean = texture(6, 240, 320)
    noise = np.random.Generator(np.random.PCG64(7)).standard_normal(clean.shape) * sigma / 255
    noisy = np.clip(clean + noise, 0, 1)
    for peak, expected in zip((255.0, 1.0), PEER[sigma]):
        assert strred(grey(clean), grey(noisy), peak) == pytest.approx(expected, rel=0.03)


def test_statistics_are_those_of_plain_loops() -> None:
    """Steps 2 to 4 of the definition by numpy's covariance and inverse, on the module's own band."""
    clean = texture(2, 120, 152)
    noisy = clean + np.random.Generator(np.random.PCG64(2)).normal(0, 0.1, clean.shape)
    found = strred_terms(grey(clean), grey(noisy))[0]

    weighted = []
    for video in (clean, noisy.clip(0, 1)):
        y = subband(torch.from_numpy(video * 255)).numpy()
        frame, (s, h) = y[0], mixture(y[0])
        s_d, h_d = mixture(frame - y[1])
        weighted.append((np.log2(1 + s) * h, np.log2(1 + s) * np.log2(1 + s_d) * h_d))
    spatial, temporal = (np.abs(weighted[0][i] - weighted[1][i]).mean() for i in (0, 1))
    assert float(found.spatial) == pytest.approx(spatial, rel=1e-9)
    assert float(found.temporal) == pytest.approx(temporal, rel=1e-9)


def mixture(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (3 * (n // 3) for n in band.shape)
    windows = [band[i : i + 3, j : j + 3].ravel() for i in range(rows - 2) for j in range(columns - 2)]
    covariance = np.cov(np.array(windows).T, bias=True)
    inverse, values = np.linalg.inv(covariance), np.linalg.eigvalsh(covariance)
    s, h = [], []
    for i in range(0, rows, 3):
        for j in range(0, columns, 3):
            block = band[i : i + 3, j : j + 3].ravel()
            s.append(block @ inverse @ block / 9)
            h.append(np.log2(s[-1] * values + 0.1).sum() + 9 * np.log(2 * np.pi * np.e))
    return np.array(s), np.array(h)


def test_band_answers_to_the_right_waves() -> None:
    y = torch.arange(256, dtype=torch.float64)
    tuned = torch.cos(2 * math.pi * y / 32)  # a quarter of the decimated grid's period
    across = subband(tuned[None, :, None].expand(1, 256, 256))
    along = subband(tuned[None, None, :].expand(1, 256, 256))
    fine = subband(torch.cos(2 * math.pi * y / 4)[None, :, None].expand(1, 256, 256))
    flat = subband(torch.full((1, 256, 256), 0.7, dtype=torch.float64))
    assert across.shape == (1, 32, 32)
    strength = float(across[:, 4:-4].abs().max())
    assert strength > 5
    for other in (along, fine, flat):
        assert float(other[:, 4:-4].abs().max()) < 0.01 * strength


def test_scale_of_quality() -> None:
    clean = grey(texture(4, 160, 160))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    scores = [strred(clean, clean + sigma / 255 * noise) for sigma in (0, 5, 15, 45)]
    assert scores[0] == 0
    assert scores == sorted(scores)
    assert scores[-1] > 20 * scores[1] > 0


def test_pieces_of_even_length_add_up() -> None:
    clean = grey(texture(7, 96, 120))
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    whole = strred_terms(clean, noisy)[0]
    parts = [strred_terms(clean[i : i + 2], noisy[i : i + 2])[0] for i in (0, 2, 4)]
    joined = type(whole)(*(torch.cat([part[i] for part in parts]) for i in (0, 1)))
    assert combine(joined) == pytest.approx(combine(whole), rel=1e-12)
    assert strred(clean, noisy) == pytest.approx(combine(whole), rel=1e-12)  # the odd frame has no partner


def test_flat_short_and_small_videos() -> None:
    flat = torch.full((4, 3, 64, 64), 0.5)
    assert strred(flat, flat) == 0
    assert math.isfinite(strred(flat, flat + 0.1 * torch.rand(flat.shape)))
    assert math.isnan(strred(flat[:1], flat[:1]))
    assert math.isnan(strred(flat[..., :23], flat[..., :23]))
    assert math.isnan(strred(flat, torch.where(torch.rand(flat.shape) < 0.001, math.nan, flat)))
    with pytest.raises(ValueError, match=r"\(4, 3, 64, 64\) and \(4, 3, 64, 63\)"):
        strred(flat, flat[..., :63])
