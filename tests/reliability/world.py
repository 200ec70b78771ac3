"""What the commands of the cases find in their folder, and the ways in which it is spoilt."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch

import stan.models
from stan.models import Trained
from tests.conftest import moving_picture

NETWORK = {"flow": "zero", "channels": [8, 8], "key_channels": 4, "value_channels": 4}
"""Settings of a `unet_tiny` that is quick to make."""


def build(root: Path) -> None:
    """A data set in DAVIS layout, a pair of recordings, and a checkpoint in both formats.

    DAVIS: train a (4 frames), b (5); val d (4); 48x32 pixels. pair: noisy and clean, 4 frames each.
    """
    for seed, (name, count) in enumerate({"a": 4, "b": 5, "d": 4}.items()):
        write_frames(root / "DAVIS/JPEGImages/480p" / name, seed, count)
    for seed, name in enumerate(("noisy", "clean")):
        write_frames(root / "pair" / name, seed, 4)
    lists = root / "DAVIS/ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("d\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stan.models.build("unet_tiny", **NETWORK)
    model.trained = Trained("gaussian", (5.0, 55.0), 1)
    stan.models.save(model, root / "net.ckpt")
    stan.models.save(model, root / "net.safetensors")


def write_frames(folder: Path, seed: int, count: int, height: int = 32, width: int = 48) -> None:
    """A moving picture as JPEG frames 00000.jpg, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(moving_picture(seed, count, height, width)):
        assert cv2.imwrite(str(folder / f"{t:05d}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 96])
