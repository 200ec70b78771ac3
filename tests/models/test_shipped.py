"""The weights that come with the package: found by name, what is said of them is true, and they denoise as they did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio

import stan
from stan.data.camera import pan
from stan.data.noise import NumpyRandom, build
from stan.errors import CheckpointError
from stan.models import shipped

NAMES = [weights.name for weights in shipped.shipped()]

PSNR = {"stan_tiny": {10: 39.270, 30: 34.068, 50: 31.582}}
"""What each denoised the clip of `panned` to when it was published, in dB."""


def panned() -> torch.Tensor:
    """A photograph under a slow camera, `(7, 3, 128, 128)` in [0, 1]: frames nobody trained on."""
    video = pan(skimage.data.chelsea(), 7, 128, 60, 140, np.random.default_rng(6))
    return torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255


def psnr(clean: torch.Tensor, found: torch.Tensor) -> float:
    pairs = zip(clean.numpy(), found.clamp(0, 1).numpy())
    return float(np.mean([peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]))


@pytest.mark.parametrize("name", NAMES)
def test_weights_denoise_as_when_they_were_published(name: str) -> None:
    model, clean = stan.load(name), panned()
    for sigma, expected in PSNR[name].items():
        noisy = build("gaussian")(clean, sigma, NumpyRandom(1, "shipped", sigma))
        found = stan.denoise(model, noisy, sigma=sigma)
        assert psnr(clean, found) == pytest.approx(expected, abs=0.02), sigma


@pytest.mark.parametrize("name", NAMES)
def test_time_pays(name: str) -> None:
    """The same frames, each alone, are denoised worse."""
    model, clean = stan.load(name), panned()
    noisy = build("gaussian")(clean, 30, NumpyRandom(1, "shipped", 30))
    together = stan.denoise(model, noisy, sigma=30)
    alone = torch.cat([stan.denoise(model, frame[None], sigma=30) for frame in noisy])
    assert psnr(clean, together) > psnr(clean, alone) + 1.0


@pytest.mark.parametrize("name", NAMES)
def test_facts_and_card_belong_to_the_weights(name: str) -> None:
    weights = next(w for w in shipped.shipped() if w.name == name)
    model, facts = stan.load(name), weights.facts
    assert weights.path.stat().st_size <= 16e6
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.trained is not None
    assert facts["trained"] == model.trained.to_dict()
    card = weights.path.with_suffix(".md").read_text()
    for level, value in facts["psnr"].items():
        assert f"**{value:.2f} (" in card, level


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_the_name(name: str, run_stan: Callable, tmp_path: Path) -> None:
    frames = (panned() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    folder = tmp_path / "frames"
    folder.mkdir()
    import cv2

    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i:03d}.png"), frame[..., ::-1])
    run_stan("denoise", folder, tmp_path / "clean", "--checkpoint", name, "--sigma", "10")
    assert len(list((tmp_path / "clean").glob("*.png"))) == len(frames)


def test_stan_models_lists_them(run_stan: Callable) -> None:
    listed = json.loads(run_stan("models", "--json").stdout)
    assert list(listed) == NAMES
    shown = run_stan("models").stdout
    assert all(name in shown for name in NAMES)


def test_a_file_in_the_working_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).write_bytes(b"mine")
    assert shipped.find(NAMES[0]) == Path(NAMES[0])


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=f"did you mean {NAMES[0]!r}"):
        stan.load(NAMES[0][:-1])


def test_the_best_for_a_device_is_one_of_them() -> None:
    assert shipped.best_for("cpu").name in NAMES
    with pytest.raises(CheckpointError, match="abacus"):
        shipped.best_for("abacus")


def test_a_folder_of_the_name_hides_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAMES[0]).mkdir()
    monkeypatch.chdir(tmp_path)
    assert shipped.find(NAMES[0]).suffix == ".safetensors"
