"""Pairs of clean and noisy recordings: how they are found, what is refused, and that both halves are cut alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import io

from stan.config import Config, load
from stan.data import PairedClip, TensorClip, TrainingClips, TrainingPairs, cached, open_clips
from stan.errors import ConfigError, DataError
from stan.training.data_module import open_training_parts, training_samples
from tests.data.conftest import marked_clip, picture, save


def write(folder: Path, frames: int = 3, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Path:
    for t in range(frames):
        save(folder / f"{t:05d}.png", picture(seed + t, *size))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """clean/{a,b} and noisy/{a,b}; the noisy pictures are the negatives of the clean ones."""
    for seed, name in enumerate("ab"):
        for path in sorted(write(tmp_path / "clean" / name, seed=10 * seed).iterdir()):
            save(tmp_path / "noisy" / name / path.name, 255 - io.imread(path))
    return tmp_path


def test_sequences_are_paired_by_name(root: Path) -> None:
    pairs = open_clips("pairs", root / "clean", noisy=root / "noisy")
    assert [pair.name for pair in pairs] == ["a", "b"]
    for pair in pairs:
        assert isinstance(pair, PairedClip)
        folder = root / "clean" / pair.name
        clean = np.stack([io.imread(path) for path in sorted(folder.iterdir())])
        assert np.array_equal(pair.read().permute(0, 2, 3, 1).numpy(), clean)
        assert torch.equal(pair.noisy.read(), 255 - pair.read())
    (root / "clean/few.txt").write_text("b\n")
    assert [pair.name for pair in open_clips("pairs", root / "clean", "few", root / "noisy")] == ["b"]


def test_single_sequences_need_no_common_name(root: Path, shared_data: Path) -> None:
    (pair,) = open_clips("pairs", root / "clean/a", noisy=root / "noisy/a")
    assert torch.equal(pair.noisy.read(), 255 - pair.read())  # type: ignore[attr-defined]
    real = shared_data / "noisy_pair"
    (pair,) = open_clips("pairs", real / "original", noisy=real / "noisy")
    assert (pair.name, len(pair)) == ("original", 12)
    video = next((shared_data / "videos").glob("*.mp4"))
    shutil.copy(video, root / "other.mp4")
    (pair,) = open_clips("pairs", video, noisy=root / "other.mp4")
    assert torch.equal(pair.read(0, 1), pair.noisy.read(0, 1))  # type: ignore[attr-defined]


def test_both_halves_lie_in_one_cache(root: Path) -> None:
    pairs = open_clips("pairs", root / "clean", noisy=root / "noisy")
    for downscale in (1, 2):
        mapped = cached(pairs, root / "cache", downscale=downscale, progress=False)
        assert len(list((root / "cache").glob("*.npy"))) == 4 * downscale
        for pair in mapped:
            assert isinstance(pair, PairedClip)
            assert pair.size == (24 // downscale, 32 // downscale)
            negative = 255 - pair.read().int()
            assert (pair.noisy.read().int() - negative).abs().max() <= downscale - 1  # rounding of averages


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: remove(root / "noisy/b"), r"noisy have no 'b'"),
        (lambda root: remove(root / "clean/b"), r"noisy/b has no clean sequence 'b'"),
        (
            lambda root: remove(root / "noisy/b/00002.png"),
            r"noisy/b has 2 frames, but the clean .*clean/b has 3",
        ),
        (
            lambda root: (root / "noisy/b/00002.png").rename(root / "noisy/b/00003.png"),
            r"noisy/b/00003.png stands where the clean frame is .*clean/b/00002.png",
        ),
        (lambda root: write(root / "noisy/b", size=(24, 30)), r"noisy/b/00000.png is 30x24, but .* is 32x24"),
        (lambda root: remove(root / "noisy"), r"data.noisy=.*noisy does not exist"),
    ],
)
def test_what_does_not_fit_is_named(root: Path, spoil: object, says: str) -> None:
    spoil(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=says) as caught:
        open_clips("pairs", root / "clean", noisy=root / "noisy")
    assert "\n" not in str(caught.value)


def test_noisy_goes_with_pairs_alone(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.kind=pairs needs data\.noisy"):
        open_clips("pairs", root / "clean")
    with pytest.raises(ConfigError, match=r"goes with data\.kind=pairs"):
        open_clips("folder", root / "clean", noisy=root / "noisy")
    with pytest.raises(DataError, match=r"data\.root itself"):
        open_clips("pairs", root / "clean", noisy=root / "noisy/../clean")


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [("noisy", "original"), ("noisy", "clean"), ("input", "gt"), ("clip7_noisy", "clip7_clean")],
)
def test_a_noisy_folder_is_not_taken_for_clean(tmp_path: Path, noisy: str, clean: str) -> None:
    write(tmp_path / noisy), write(tmp_path / clean), write(tmp_path / "other")
    with pytest.raises(DataError) as caught:
        open_clips("folder", tmp_path)
    assert f"data.kind=pairs data.root={tmp_path / clean} data.noisy={tmp_path / noisy}" in str(caught.value)


def test_names_that_only_sound_noisy_are_no_pair(tmp_path: Path) -> None:
    for name in ("a_noisy", "b_clean", "supernoisy", "superclean"):
        write(tmp_path / name)
    assert len(open_clips("folder", tmp_path)) == 4


def test_halves_are_cut_alike() -> None:
    clean = [marked_clip("long", 9, 30, 40), marked_clip("short", 3, 30, 40, mark=80)]
    pairs = [PairedClip(c, TensorClip("n", 255 - c.read())) for c in clean]
    data = TrainingPairs(pairs, frames=5, crop=16, seed=4)
    alone = TrainingClips(clean, frames=5, crop=16, seed=4)
    for n in range(200):
        sample = data[n]
        assert sample.shape == (5, 6, 16, 16)
        assert torch.equal(sample[:, :3], alone[n])
        assert torch.equal(sample[:, 3:], 255 - alone[n])


@pytest.fixture
def config(root: Path) -> Config:
    config = Config()
    config.data.kind, config.data.split, config.data.crop = "pairs", None, 16
    config.data.root, config.data.noisy = str(root / "clean"), str(root / "noisy")
    return config


def test_parts_are_all_pairs_or_none(config: Config, root: Path) -> None:
    assert isinstance(training_samples(config), TrainingPairs)
    config.data.parts = [{"root": str(root / "clean/a"), "noisy": str(root / "noisy/a")}, {"downscale": 1}]
    assert [len(part.clips) for part in open_training_parts(config)] == [1, 2]
    for part, says in (
        ({"kind": "folder", "noisy": None}, "cannot be mixed"),
        ({"root": str(root / "clean/a")}, "both root and noisy"),
        ({"still": True}, "still"),
    ):
        config.data.parts = [part]
        with pytest.raises(ConfigError, match=says):
            open_training_parts(config)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.noisy=null"], "needs data.noisy"),
        (["noise.sigma=0..50"], r"noise\.sigma=0\.\.50 should be one number"),
        (["data.validation_root=x"], "needs its other half, data.validation_noisy"),
        (["data.kind=folder"], "goes with data.kind=pairs"),
        (["task=deblur"], "task=deblur makes the input from clean video"),
    ],
)
def test_settings_that_do_not_go_with_pairs(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load("data/pairs.yaml", words)
