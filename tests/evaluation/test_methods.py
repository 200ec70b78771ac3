"""Baselines, labels of checkpoints, and what is said of names that do not exist."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from stan.errors import CheckpointError, ConfigError
from stan.evaluation import psnr
from stan.evaluation.methods import NLMeans, label_paths, open_methods
from tests.conftest import moving_picture


def clip(frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    clean = torch.from_numpy(moving_picture(1, frames, 48, 64)).permute(0, 3, 1, 2).float() / 255
    return clean, clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def test_noisy_gives_its_input_back() -> None:
    (method,) = open_methods("noisy")
    _, noisy = clip()
    assert torch.equal(method(noisy, 25, {}, lambda part: None), noisy)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_nlmeans_denoises_clips_of_any_length(frames: int) -> None:
    clean, noisy = clip(frames)
    parts: list[float] = []
    output = NLMeans()(noisy, 25, {}, parts.append)
    assert output.shape == noisy.shape
    assert float(psnr(clean, output).mean()) > float(psnr(clean, noisy).mean()) + 3
    assert parts == pytest.approx([(t + 1) / frames for t in range(frames)])


def test_nlmeans_looks_at_the_two_neighbouring_frames_only() -> None:
    _, noisy = clip(5)
    changed = noisy.clone()
    changed[2] = noisy[2].flip(-1)
    before, after = (NLMeans()(video, 25, {}, lambda part: None) for video in (noisy, changed))
    assert [not torch.equal(a, b) for a, b in zip(before, after)] == [False, True, True, True, False]


def test_bm3d_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ConfigError, match="pip install bm3d"):
        open_methods(["noisy", "bm3d"])


def test_bm3d_hands_its_package_what_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame by frame, (H, W, 3) float64 RGB in about [0, 1], and sigma on that scale."""
    seen = []

    def bm3d_rgb(picture: np.ndarray, sigma: float) -> np.ndarray:
        seen.append((picture.shape, picture.dtype, sigma))
        return picture[:, :, ::-1]

    package = ModuleType("bm3d")
    package.bm3d_rgb = bm3d_rgb  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bm3d", package)
    _, noisy = clip(2)
    (method,) = open_methods("bm3d")
    assert torch.equal(method(noisy, 51, {}, lambda part: None), noisy.flip(1))
    assert seen == [((48, 64, 3), np.float64, 0.2)] * 2
    assert torch.equal(method(noisy, 0, {}, lambda part: None), noisy)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/a/last.ckpt"], ["last"]),
        (["runs/a/last.ckpt", "runs/b/last.ckpt"], ["a/last", "b/last"]),
        (["runs/a/last.ckpt", "runs/a/best.ckpt"], ["last", "best"]),
        (["m.ckpt", "m.safetensors"], ["m.ckpt", "m.safetensors"]),
        (["x/noisy.ckpt"], ["x/noisy"]),
    ],
)
def test_labels_tell_checkpoints_apart(paths: list[str], labels: list[str]) -> None:
    assert label_paths([Path(path) for path in paths]) == labels


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (None, ConfigError, "nothing to evaluate"),
        ([], ConfigError, "nothing to evaluate"),
        (7, ConfigError, "7"),
        (["noisy", "noisy"], ConfigError, "noisy twice"),
        ("no/such.ckpt", CheckpointError, "no/such.ckpt does not exist"),
        ("/", CheckpointError, "/ is a folder"),
    ],
)
def test_what_cannot_be_evaluated_is_named(words: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        open_methods(words, device=torch.device("cpu"))
