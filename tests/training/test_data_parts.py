"""`data.parts`: a mixture of sizes and stills, checked where it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stan.config import Config, load
from stan.data.sampling import MixedClips, PannedStills, TrainingClips
from stan.errors import StanError
from stan.models import build
from stan.training.data_module import open_training_parts, training_samples
from stan.training.record import header
from stan.training.resuming import Start
from tests.data.conftest import make_davis, picture, save  # noqa: F401 - a fixture and its helper


@pytest.fixture
def config(make_davis: Any, tmp_path: Path) -> Config:  # noqa: F811 - the fixture above
    config = Config()
    config.data.root = str(make_davis({"a": 6, "b": 7}, lists={"train": ["a", "b"], "few": ["b"]}))
    config.data.cache = str(tmp_path / "cache")
    config.data.crop = 16
    return config


def test_without_parts_the_split_is_taken_as_it_is(config: Config) -> None:
    assert isinstance(training_samples(config), TrainingClips)
    (part,) = open_training_parts(config)
    assert [len(clip) for clip in part.clips] == [6, 7]


def test_each_part_changes_what_it_names(config: Config) -> None:
    config.data.parts = [{"share": 3, "split": "few"}, {"share": 1, "downscale": 2, "still": True}]
    whole, half = open_training_parts(config)
    assert [clip.name for clip in whole.clips] == ["b"]
    assert [clip.size for clip in half.clips] == [(24, 32)] * 2
    mixed = training_samples(config)
    assert isinstance(mixed, MixedClips)
    assert [type(part) for part in mixed.parts] == [TrainingClips, PannedStills]
    assert mixed[0].shape == (5, 3, 16, 16)


def test_the_recipe_takes_another_list_for_some_parts(config: Config) -> None:
    """What the head of the file advises."""
    words = [f"data.{key}={getattr(config.data, key)}" for key in ("root", "cache")]
    recipe = load("train/stan_tiny.yaml", [*words, "data.parts.0.split=few", "data.parts.2.split=few"])
    parts = open_training_parts(recipe)
    assert [[clip.name for clip in part.clips] for part in parts] == [["b"], ["a", "b"], ["b"], ["a", "b"]]
    assert [part.share for part in parts] == [0.35, 0.4, 0.15, 0.1]
    assert [part.still for part in parts] == [False, False, True, True]


def test_the_header_counts_each_sequence_once(config: Config, tmp_path: Path) -> None:
    for folder in ("here/c", "there/c"):
        for frame in range(2):
            save(tmp_path / folder / f"{frame}.png", picture(frame))
    here, there = (
        {"kind": "folder", "root": str(tmp_path / name), "split": None} for name in ("here", "there")
    )
    config.data.parts = [{}, {"downscale": 2}, {"still": True, "split": "few"}, here, here, there]
    network = build("unet_tiny")
    said = header(config, network, Start(), torch.device("cpu"), 1)
    assert "\n4 sequences, 17 frames; " in said


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("half", "data.parts.0='half'"),
        ({"shape": 1}, "data.parts.0.shape=1; did you mean 'share'"),
        ({"share": 0}, "data.parts.0.share=0 should be a number above 0"),
        ({"share": "abc"}, "data.parts.0.share='abc'"),
        ({"downscale": 1.5}, "data.parts.0.downscale=1.5"),
        ({"root": None}, "data.parts.0.root=None should be text"),
        ({"split": "gone"}, "gone"),
    ],
)
def test_a_wrong_part_is_told(config: Config, part: Any, says: str) -> None:
    config.data.parts = [part, {}]
    with pytest.raises(StanError, match=says):
        training_samples(config)
