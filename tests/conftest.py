"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # several test processes share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's & leaves it; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import cv2
import numpy as np
import pytest
import torch

from tests.forked import Forks

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deselect nothing, but skip `cuda` tests where no CUDA device is."""
    if torch.cuda.is_available():
        return
    no_device = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(no_device)


def pytest_collection_finish() -> None:
    """Leave modules and tests out of garbage collection: walking through them takes a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Modules end as they would; else libraries complain of what was left, below the summary."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos (DAVIS sequences and files); the test is skipped where it is absent.

    ``STAN_SHARED_DATA`` names another place than ``../shared/data``.
    """
    path = Path(os.environ.get("STAN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "DAVIS").is_dir():
        pytest.skip(f"real data not found at {path} (set STAN_SHARED_DATA)")
    return path


def stan_command(*words: object) -> list[str]:
    """The command line of the real `stan` command, run by this interpreter."""
    return [sys.executable, "-m", "stan.cli", *map(str, words)]


@pytest.fixture(scope="session")
def run_stan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs the real command in a process: ``run_stan("evaluate", ..., code=0)`` checks the exit code.

    No message may ever be a traceback. `stan_command` is the same from nothing, which takes seconds of imports.
    """
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


def moving_picture(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A textured picture that drifts, with a brighter square that moves against it: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 225, (height // 8 + 8, width // 8 + 8, 3)).astype(np.float32)
    picture = cv2.resize(coarse, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC).clip(0, 255)
    video = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        video[t] = picture[4 + t : 4 + t + height, 4 + 2 * t : 4 + 2 * t + width].round()
        top, left = height // 3 + t, width // 2 - 2 * t
        video[t, top : top + 8, left : left + 8] = (240, 200, 40)
    return video


@pytest.fixture(scope="session")
def davis_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in DAVIS layout: train a (6 frames), b (7), c (9); val d (6); 64x48 and 80x56."""
    root = tmp_path_factory.mktemp("davis")
    sizes = {"a": (6, 48, 64), "b": (7, 56, 80), "c": (9, 48, 64), "d": (6, 48, 64)}
    for seed, (name, (frames, height, width)) in enumerate(sizes.items()):
        folder = root / "JPEGImages/480p" / name
        folder.mkdir(parents=True)
        for t, frame in enumerate(moving_picture(seed, frames, height, width)):
            assert cv2.imwrite(str(folder / f"{t:05d}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 96])
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\n")
    (lists / "val.txt").write_text("d\n")
    return root
