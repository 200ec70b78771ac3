"""Fine-tuning told truly: old levels with the old noise, figures of this run alone, replay of all that was before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from stan.config import builtin_configs
from stan.config import load as load_config
from stan.data.noise import NumpyRandom, build
from stan.models import load
from stan.models.release import release
from stan.training.conditions import conditions_of
from stan.training.module import DenoisingModule
from stan.training.validation import open_validation_clips

SMALL = (
    "data.crop=16", "data.frames=2", "data.batch_size=2", "data.workers=0", "validation.every=0",
    "validation.frames=2", "validation.crop=32", "trainer.accelerator=cpu", "trainer.max_steps=2",
    "optimizer.warmup_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(run_stan: Callable, davis_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("base")
    words = "model.name=stan_tiny", "model.settings={channels: [4, 4], depths: [1, 1], features: 2}"
    run_stan("train", "train/davis_tiny.yaml", f"data.root={davis_root}", f"output={output}", *SMALL, *words)
    return output / "last.ckpt"


@pytest.fixture
def tune(run_stan: Callable, davis_root: Path) -> Callable:
    """Fine-tune in a process: the gains by noise and level."""

    def run(checkpoint: Path, output: Path, *words: str) -> dict[tuple[str, float], dict[str, Any]]:
        origin = f"checkpoint={checkpoint}", f"data.root={davis_root}", f"output={output}"
        run_stan("finetune", "finetune/davis.yaml", *origin, *SMALL, *words)
        gains = json.loads((output / "finetune.json").read_text())["gains"]
        return {(gain["noise"], gain["sigma"]): gain for gain in gains}

    return run


def test_old_levels_are_measured_with_the_noise_they_were_trained_with(
    tune: Callable, base: Path, davis_root: Path, tmp_path: Path
) -> None:
    gains = tune(base, tmp_path, "noise.kind=correlated", "noise.sigma=[30,60]", "optimizer.lr=1e-2")
    origins = {key: gain["origin"] for key, gain in gains.items()}
    new = dict.fromkeys((("correlated", 30.0), ("correlated", 45.0), ("correlated", 60.0)), "new")
    assert origins == {("gaussian", 30.0): "old", **new}
    config = load_config(
        builtin_configs() / "finetune/davis.yaml", [*SMALL, f"data.root={davis_root}", "output=x"]
    )
    for path, key in ((base, "before"), (tmp_path / "last.ckpt", "after")):
        network, figures = load(path), []
        for clip in open_validation_clips(config):
            noisy = build("gaussian")(
                clip.clean / 255, 30.0, NumpyRandom(config.seed, "validation", clip.name, 30.0)
            )
            with torch.no_grad():
                denoised = network(noisy[None], 30.0)[0].clamp(0, 1).double()
            figures += [
                peak_signal_noise_ratio(a, b, data_range=1)
                for a, b in zip((clip.clean.double() / 255).numpy(), denoised.numpy(), strict=True)
            ]
        assert gains["gaussian", 30.0][key] == pytest.approx(np.mean(figures), abs=1e-3)


def test_a_run_that_goes_on_otherwise_measures_anew(tune: Callable, base: Path, tmp_path: Path) -> None:
    first = tune(base, tmp_path, "noise.sigma=50")
    same = tune(base, tmp_path, "noise.sigma=50")
    assert same == first
    other = tune(base, tmp_path, "noise.sigma=50", "validation.crop=16")  # no step is left to do
    assert other["gaussian", 50.0]["psnr_noisy"] != first["gaussian", 50.0]["psnr_noisy"]
    assert tune(base, tmp_path, "noise.sigma=70", "trainer.max_steps=3").keys() == {
        ("gaussian", 30.0), ("gaussian", 70.0),
    }  # fmt: skip


def test_without_noise_there_is_no_psnr_of_the_noisy_video(
    tune: Callable, base: Path, tmp_path: Path
) -> None:
    gains = tune(base, tmp_path, "noise.sigma=0")
    assert gains["gaussian", 0.0]["psnr_noisy"] is None
    assert tune(base, tmp_path, "noise.sigma=0") == gains


def test_replay_keeps_what_all_earlier_trainings_undid(tune: Callable, base: Path, tmp_path: Path) -> None:
    replay = "finetune.replay=0.5"
    tune(base, tmp_path / "one", "noise.kind=correlated", "noise.sigma=50..70", replay)
    tune(tmp_path / "one/last.ckpt", tmp_path / "two", "noise.sigma=100", replay)
    release(tmp_path / "two/last.ckpt", tmp_path / "two.safetensors")
    for path in (tmp_path / "two/last.ckpt", tmp_path / "two.safetensors"):
        known = [(c.share, c.noise.kind, str(c.sigmas)) for c in conditions_of(str(path))]
        assert known == [(0.5, "gaussian", "100"), (0.25, "correlated", "50..70"), (0.25, "gaussian", "30")]
        trained = load(path).trained
        assert trained is not None
        assert trained.sigma == (30.0, 100.0)


def test_fine_tuning_trains_in_training_mode(base: Path) -> None:
    module = DenoisingModule(load(base), load_config(builtin_configs() / "train/davis_tiny.yaml", []))
    assert module.model.training
    assert not module.best_network.training
