"""The demo, from the command line: quickly on each run of the tests, and whole in `make test-all`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import pytest

import stan


def check(output: Path) -> dict:
    """All that the demo promises to leave behind; gives the summary."""
    summary = json.loads((output / "summary.json").read_text())
    assert {"sigma", "psnr", "psnr_noisy", "seconds"} <= summary.keys()
    for folder in ("train", "finetune"):
        assert stan.load(output / folder / "last.ckpt").name == "stan_tiny"
    for name in ("results.csv", "results.json", "report.md", "report.html"):
        assert (output / "evaluation" / name).stat().st_size > 0
    sheet = cv2.imread(str(output / "sheet.png"))
    assert sheet.shape[1] > 4 * 200
    with av.open(str(output / "denoised.mp4")) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == len(list((output / "noisy").glob("*.png"))) == 10
    return summary


def test_short_demo_leaves_everything(run_stan: Callable, tmp_path: Path) -> None:
    done = run_stan("demo", "--output", tmp_path / "demo", "--steps", 4)
    summary = check(tmp_path / "demo")
    assert summary["sigma"] == 30
    for name in ("summary.json", "report.html", "denoised.mp4"):
        assert name in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whole_demo_gains_eight_decibels(run_stan: Callable, tmp_path: Path) -> None:
    run_stan("demo", "--output", tmp_path / "demo", timeout=1200)
    summary = check(tmp_path / "demo")
    assert summary["psnr"] - summary["psnr_noisy"] >= 8
    again = run_stan("demo", "--output", tmp_path / "demo", timeout=1200)
    assert "steps already" in again.stdout
    assert check(tmp_path / "demo")["psnr"] == summary["psnr"]
