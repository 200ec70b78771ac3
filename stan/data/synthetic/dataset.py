"""The synthetic data set: rendered in memory, or written in DAVIS layout with the true flow beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from stan.data.noise.random import NumpyRandom
from stan.data.progress import frame_progress
from stan.data.sources import DAVIS_FRAMES, DAVIS_LISTS
from stan.data.synthetic.photos import TRAIN, VAL
from stan.data.synthetic.render import SyntheticClip, render
from stan.data.synthetic.scene import make_scene
from stan.data.video.pictures import write_picture
from stan.errors import ConfigError, DataError
from stan.files import free_space, replacing, write_text

RECORD = "synthetic.json"
_STARTED = f".{RECORD}.started"
_FLOW = Path("Flow/480p")
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
_VERSION = 1  # of what the same settings give


def synthetic_clips(
    split: str = "train",
    sequences: int | None = None,
    *,
    frames: int = 10,
    size: tuple[int, int] = (160, 240),
    seed: int = 0,
    speed: float = 1.0,
) -> Iterator[SyntheticClip]:
    """Render clips whose motion is known: a photograph under a moving camera, crossed by cut-outs of others.

    Clip i is a pure function of the arguments other than `sequences`. The photographs of `train` and `val`
    differ.

    Args:
        split: `train` or `val`.
        sequences: how many; None: one for each background of the split.
        frames: frames a clip.
        size: height and width. Above about 230 x 340 the smaller photographs are enlarged, hence soft.
        seed: scenes of two seeds are independent of each other.
        speed: all motion is multiplied by this; at 1 the camera moves up to 3 pixels a frame and objects up
            to 6 more; 0 is a still.

    Raises:
        ConfigError: an unknown split, or sizes below 1.
        DataError: scikit-image is installed without its photographs.
    """
    if min(frames, *size) < 1:
        raise ConfigError(f"synthetic video needs frames and a size of at least 1, got {frames} of {size}")
    count = len(TRAIN if split == "train" else VAL) if sequences is None else sequences
    for i in range(count):
        random = NumpyRandom(seed, "synthetic scene", split, i).generator
        scene = make_scene(split, i, random, frames, size, speed)
        yield render(scene, f"{scene.name}-{i:02d}")


def write_synthetic(
    root: Path | str,
    *,
    seed: int = 0,
    size: tuple[int, int] = (160, 240),
    frames: int = 10,
    train: int = 12,
    val: int = 3,
    progress: bool = True,
) -> Path:
    """Write synthetic clips in DAVIS layout, so that all that reads DAVIS reads them.

    Under `root`: JPEGImages/480p/<sequence>/<00000>.jpg (quality 97, no chroma subsampling; the decoded JPEG
    is the clean video), ImageSets/2017/train.txt and val.txt, Flow/480p/<sequence>.npz (see `read_flow`), and
    synthetic.json, written last. Does nothing where the same data set is there already, and replaces another
    synthetic one.

    Args:
        root: folder to write to; made if missing.
        seed, size, frames: see `synthetic_clips`.
        train, val: number of sequences of each split.
        progress: show a progress bar on standard error.

    Returns:
        `root`.

    Raises:
        ConfigError: sizes or numbers below 1.
        DataError: `root` holds other data, or scikit-image is installed without its photographs.
    """
    root = Path(root).expanduser()
    height, width = size
    made = {"seed": seed, "height": height, "width": width, "frames": frames, "train": train, "val": val}
    made["version"] = _VERSION
    if min(train, val) < 1:
        raise ConfigError(f"synthetic data needs at least one sequence a split, got train {train}, val {val}")
    if seed < 0:
        raise ConfigError(f"seed {seed} must be at least 0")
    if frames * height * width > MOST_PIXELS:
        raise ConfigError(
            f"{frames} frames of {width}x{height} are more than a synthetic sequence can have, which is made in "
            f"memory: at most {MOST_PIXELS:,} pixels in all"
        )
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file: synthetic data needs a folder")
    need = (train + val) * frames * height * width  # a frame and its true flow take at least a byte a pixel
    if need > (free := free_space(root)):
        raise DataError(
            f"the synthetic data set needs {need / 1e9:.2f} GB in {root}, with {free / 1e9:.2f} GB free"
        )
    if is_complete(root, made):
        return root
    _clear(root)
    with frame_progress("rendering", (train + val) * frames, shown=progress) as advance:
        for split, count in (("train", train), ("val", val)):
            names = []
            for clip in synthetic_clips(split, count, frames=frames, size=size, seed=seed):
                _write_clip(root, clip)
                names.append(clip.name)
                advance(frames)
            write_text(root / DAVIS_LISTS / f"{split}.txt", "".join(f"{name}\n" for name in names))
    write_text(root / RECORD, json.dumps(made, indent=1) + "\n")
    (root / _STARTED).unlink()
    return root


MOST_PIXELS = 1 << 27
"""Pixels of all frames of a sequence, which is rendered in memory at some 40 bytes each."""


def is_complete(root: Path, made: dict[str, int]) -> bool:
    """Whether `root` holds the data set made from these settings, those of its record, with all its frames."""
    lists = [root / DAVIS_LISTS / f"{split}.txt" for split in ("train", "val")]
    try:
        same = json.loads((root / RECORD).read_text()) == made
        names = [name for path in lists for name in path.read_text().split()]
    except (OSError, ValueError):
        return False
    return (
        same
        and len(names) == made["train"] + made["val"]
        and all(
            len(list((root / DAVIS_FRAMES / name).glob("*.jpg"))) == made["frames"]
            and (root / _FLOW / f"{name}.npz").is_file()
            for name in names
        )
    )


def read_flow(root: Path | str, name: str) -> dict[str, torch.Tensor]:
    """Read the truth of a written sequence.

    Args:
        root: folder of the data set.
        name: the sequence.

    Returns:
        `forward` and `backward`, `(T, 2, H, W)` float32 in pixels, and `occluded_forward` and
        `occluded_backward`, `(T, H, W)` bool; see `SyntheticClip`. Flow was rounded to 1/1024 pixel.

    Raises:
        DataError: no such file, or a damaged one.
    """
    path = Path(root) / _FLOW / f"{name}.npz"
    try:
        with np.load(path) as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}
    except Exception as error:  # numpy has many kinds for a damaged file
        raise DataError(f"true flow {path} cannot be read: {error}") from None


def _write_clip(root: Path, clip: SyntheticClip) -> None:
    folder = root / DAVIS_FRAMES / clip.name
    temporary = folder.with_name(f".{clip.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for i, frame in enumerate(clip.frames):
        write_picture(temporary / f"{i:05d}.jpg", frame.permute(1, 2, 0).numpy(), _JPEG)
    temporary.replace(folder)
    with replacing(root / _FLOW / f"{clip.name}.npz") as file:
        np.savez_compressed(
            file,
            # Rounding makes the files a third as large and stays far below what any method resolves.
            forward=(clip.forward * 1024).round().numpy() / np.float32(1024),
            backward=(clip.backward * 1024).round().numpy() / np.float32(1024),
            occluded_forward=clip.occluded_forward.numpy(),
            occluded_backward=clip.occluded_backward.numpy(),
        )


def _clear(root: Path) -> None:
    """Remove an earlier synthetic data set (also one whose writing was cut short); refuse anything else."""
    record = root / RECORD
    started = root / _STARTED
    if root.is_dir() and any(root.iterdir()) and not record.is_file() and not started.is_file():
        raise DataError(
            f"{root} holds other data: choose an empty folder for the synthetic data set (--root)"
        )
    root.mkdir(parents=True, exist_ok=True)
    started.touch()
    record.unlink(missing_ok=True)
    for part in (DAVIS_FRAMES.parts[0], DAVIS_LISTS.parts[0], _FLOW.parts[0]):
        shutil.rmtree(root / part, ignore_errors=True)
