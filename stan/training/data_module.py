"""The Lightning data module: clean training clips, or pairs, from the decoded cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import Dataset

from stan.config import Config
from stan.config.schema import PART, checked_part
from stan.data.cache import cached
from stan.data.clips import Clip
from stan.data.pairs import PairedClip
from stan.data.sampling import MixedClips, PannedStills, TrainingClips, TrainingPairs
from stan.data.sources import open_clips, takes_noisy
from stan.errors import ConfigError
from stan.training.loading import TrainingBatches
from stan.training.validation import open_validation_clips


class Part(NamedTuple):
    """One part of the training data."""

    clips: list[Clip]
    share: float  # of the samples, relative to the other parts
    still: bool  # one frame under a slow camera instead of the clip's own motion
    origin: str = ""  # kind and root: clips of one name and origin show the same


def open_training_parts(config: Config) -> list[Part]:
    """The parts of the mixture to train on; without one, the split as it is.

    Raises:
        ConfigError: for a part that is no section of known keys with values that fit, or does not go with the others.
    """
    data = config.data
    common = {key: getattr(data, key, setting.default) for key, setting in PART.items()}
    checked = [checked_part(given, f"data.parts.{number}") for number, given in enumerate(data.parts)]
    parts = []
    for given in checked or [{}]:
        options = {**common, **given}
        _check_part(given, options, takes_noisy(data.kind))
        clips = open_clips(options["kind"], options["root"], options["split"], options["noisy"])
        clips = cached(clips, data.cache, downscale=options["downscale"])
        origin = f"{options['kind']} {options['root']}"
        parts.append(Part(clips, options["share"], options["still"], origin))
    return parts


def _check_part(given: dict[str, Any], options: dict[str, Any], pairs: bool) -> None:
    """Raise ConfigError for a part that mixes recorded pairs with clean video, or halves of two data sets."""
    if takes_noisy(options["kind"]) != pairs:
        raise ConfigError(
            f"data.parts: kind {options['kind']} cannot be mixed with data.kind="
            f"{'pairs, whose noise is recorded' if pairs else 'of clean video, to which noise is added'}"
        )
    if pairs and ("root" in given) != ("noisy" in given):
        raise ConfigError(f"data.parts: {given} should name both root and noisy, or neither")
    if pairs and options["still"]:
        raise ConfigError(
            "data.parts: still films clean pictures, which pairs have no noise for: leave it out"
        )


def training_samples(config: Config, parts: Sequence[Part] | None = None) -> Dataset[Tensor]:
    """All training samples of a configuration, by number; of its own data unless other `parts` are given."""
    data = config.data

    def samples(part: Part) -> TrainingClips:
        pairs = any(isinstance(clip, PairedClip) for clip in part.clips)
        kind = TrainingPairs if pairs else PannedStills if part.still else TrainingClips
        return kind(
            part.clips,
            frames=data.frames,
            crop=data.crop,
            seed=config.seed,
            flip=data.augment,
            turn=data.augment,
            reverse=data.augment,
        )

    opened = open_training_parts(config) if parts is None else parts
    mixed = [(samples(part), part.share) for part in opened]
    return mixed[0][0] if len(mixed) == 1 else MixedClips(mixed, config.seed)


def fits_memory(config: Config) -> None:
    """Check that one batch, a byte a value, fits into the memory that this machine has.

    Raises:
        ConfigError: if it cannot, with the sizes that make it so large.
    """
    data = config.data
    needed = data.batch_size * data.frames * (6 if takes_noisy(data.kind) else 3) * data.crop**2
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    if needed > there:
        raise ConfigError(
            f"data.batch_size={data.batch_size} clips of data.frames={data.frames} frames of data.crop={data.crop} "
            f"pixels are {needed / 2**30:,.0f} GiB, and this machine has {there / 2**30:.0f}: lower one of the three"
        )


class ClipsModule(pl.LightningDataModule):
    """Feeds batches of uint8 clips `(B, T, 3, crop, crop)` that depend on (seed, step, rank) alone; of pairs
    `(B, T, 6, crop, crop)`, clean channels before noisy ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._batches: TrainingBatches | None = None

    def prepare_data(self) -> None:
        """Check the data and fill the cache, once on each machine, before any worker starts.

        Raises:
            ConfigError: for batches that no memory of this machine can hold.
            StanError: for data that crops and clips of this size cannot be cut from.
        """
        fits_memory(self.config)
        training_samples(self.config)
        if self.config.validation.every:
            open_validation_clips(self.config)

    def train_dataloader(self) -> TrainingBatches:
        """Batches from the step on that the trainer is at, so that a resumed run sees the same."""
        trainer = self.trainer
        assert trainer is not None
        self._batches = TrainingBatches(
            self.config,
            training_samples(self.config),
            workers=self.config.data.workers,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            start=trainer.global_step * self.config.trainer.accumulate,
            pinned=trainer.strategy.root_device.type == "cuda",
        )
        return self._batches

    def close(self) -> None:
        """End the loader processes, after an error too."""
        if self._batches is not None:
            self._batches.close()
