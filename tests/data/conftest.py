"""Small data sets made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stan.data.clips import Clip, TensorClip


@pytest.fixture(autouse=True)
def own_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep caches out of the user's own folder."""
    home = tmp_path / "xdg-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth colour picture `(H, W, 3)` uint8 RGB: JPEG-friendly and different for every seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray, *settings: int) -> None:
    """Write RGB to an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1], list(settings))


MakeDavis = Callable[..., Path]


@pytest.fixture
def make_davis(tmp_path: Path) -> MakeDavis:
    """Write a DAVIS folder: `make_davis({"dog": 4}, lists={"val": ["dog"]})` gives its root."""

    def make(
        sequences: dict[str, int],
        lists: dict[str, Sequence[str]] | None = None,
        size: tuple[int, int] = (48, 64),
        name: str = "DAVIS",
    ) -> Path:
        root = tmp_path / name
        for k, (sequence, frames) in enumerate(sequences.items()):
            for i in range(frames):
                save(root / "JPEGImages/480p" / sequence / f"{i:05d}.jpg", picture(1000 * k + i, *size))
        for split, names in (lists or {}).items():
            path = root / "ImageSets/2017" / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{n}\n" for n in names))
        return root

    return make


def marked_clip(name: str, frames: int, height: int, width: int, mark: int = 0) -> TensorClip:
    """A clip whose values tell where they are: channel 0 holds t + mark, 1 holds y, 2 holds x."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    return TensorClip(name, torch.stack([t + mark, y, x], dim=1).to(torch.uint8))


@pytest.fixture
def clips() -> list[Clip]:
    """Three marked clips of different lengths and sizes; the mark is 0, 80 and 160."""
    return [
        marked_clip("long", 12, 40, 60, mark=0),
        marked_clip("short", 3, 33, 34, mark=80),
        marked_clip("single", 1, 50, 32, mark=160),
    ]
