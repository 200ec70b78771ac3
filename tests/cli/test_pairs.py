"""The real command on recorded pairs: train, fine-tune, evaluate; figures against scikit-image on the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import io
from skimage.metrics import peak_signal_noise_ratio

from stan.models import Trained, load
from tests.conftest import moving_picture

SMALL = (
    "model.name=unet_tiny", "model.flow=zero", "data.crop=32", "data.frames=3", "data.batch_size=2", "data.workers=0",
    "validation.frames=3", "validation.crop=0", "trainer.accelerator=cpu", "optimizer.warmup_steps=0", "noise.sigma=25",
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sequence of six frames; noise of standard deviation 25, rounded and clipped as a file holds it."""
    root = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    for t, frame in enumerate(moving_picture(5, 6, 48, 64)):
        noisy = (frame + rng.normal(0, 25, frame.shape)).clip(0, 255).round().astype(np.uint8)
        for half, image in (("clean", frame), ("noisy", noisy)):
            path = root / half / "scene" / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), image[..., ::-1])
    return root


def words(pair: Path) -> list[str]:
    return [f"data.root={pair / 'clean'}", f"data.noisy={pair / 'noisy'}"]


def noisy_psnr(pair: Path, frames: int) -> float:
    found = []
    for t in range(frames):
        clean, noisy = (io.imread(pair / half / "scene" / f"{t:05d}.png") for half in ("clean", "noisy"))
        found.append(peak_signal_noise_ratio(clean, noisy, data_range=255))
    return float(np.mean(found))


@pytest.fixture(scope="module")
def trained(run_stan: Callable, pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("trained")
    more = ["trainer.max_steps=2", "validation.every=2", f"output={output}"]
    done = run_stan("train", "data/pairs.yaml", *words(pair), *SMALL, *more)
    return output / "last.ckpt", done.stdout + done.stderr


def test_training_validates_on_what_was_recorded(trained: tuple[Path, str], pair: Path) -> None:
    checkpoint, said = trained
    assert load(checkpoint).trained == Trained("recorded", (25.0, 25.0), 2)
    assert torch.load(checkpoint, weights_only=True)["stan"]["config"]["data"]["kind"] == "pairs"
    assert f"(noisy {noisy_psnr(pair, 3):.2f} dB)" in said
    found = re.search(r"recorded noise, told as sigma 25, estimated as ([\d.]+)", said)
    assert found is not None
    assert float(found[1]) == pytest.approx(25, abs=4)


def test_fine_tuning_tells_the_gain_on_the_pairs(
    run_stan: Callable, trained: tuple[Path, str], pair: Path, tmp_path: Path
) -> None:
    more = ["trainer.max_steps=2", "validation.every=0", f"output={tmp_path}", f"checkpoint={trained[0]}"]
    run_stan("finetune", "finetune/pairs.yaml", *words(pair), *SMALL[2:], *more)
    (gain,) = json.loads((tmp_path / "finetune.json").read_text())["gains"]
    assert (gain["sigma"], gain["origin"]) == (25, "new")
    assert gain["psnr_noisy"] == pytest.approx(noisy_psnr(pair, 3), abs=1e-3)
    assert gain["after"] != gain["before"]
    done = run_stan(
        "finetune", "finetune/pairs.yaml", *words(pair), *SMALL[2:], *more, "finetune.replay=0.5", code=2
    )
    assert "finetune.replay=0" in done.stderr


def test_evaluation_has_the_noisy_input_first_and_one_level(
    run_stan: Callable, trained: tuple[Path, str], pair: Path, tmp_path: Path
) -> None:
    done = run_stan(
        "evaluate", "evaluate/pairs.yaml", *words(pair), f"checkpoint={trained[0]}", f"output={tmp_path}",
        "noise.sigma=25", "trainer.accelerator=cpu",
    )  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    noisy, network = results["sequences"]
    assert (noisy["method"], network["method"]) == ("noisy", "last")
    assert {row["sigma"] for row in (noisy, network)} == {25}
    assert noisy["psnr"] == network["psnr_noisy"] == pytest.approx(noisy_psnr(pair, 6), abs=1e-4)
    assert results["settings"]["noise"]["kind"] == "recorded"
    assert "trained on 1 of these 1 sequences" in " ".join(done.stderr.split())

    clean = np.stack([io.imread(p) for p in sorted((pair / "clean/scene").iterdir())])
    read = [io.imread(p) for p in sorted((pair / "noisy/scene").iterdir())]
    video = torch.from_numpy(np.stack(read).astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = load(trained[0])(video[None], sigma=25.0)[0].clamp(0, 1).permute(0, 2, 3, 1).numpy()
    expected = [
        peak_signal_noise_ratio(c / 255, o.astype(float), data_range=1) for c, o in zip(clean, output)
    ]
    assert network["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
