"""The Lightning data module: clean training clips and validation clips, from the decoded cache."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from stan.config import Config
from stan.data.cache import cached
from stan.data.clips import Clip
from stan.data.sampling import StepSampler, TrainingClips
from stan.data.sources import open_clips
from stan.training.validation import ValidationClip, ValidationClips

ENDLESS = 2**53  # the trainer's max_steps ends the run; a length of its own would end a resumed one too early


def open_training_clips(config: Config) -> list[Clip]:
    """The sequences to train on, mapped from the cache."""
    clips = open_clips(config.data.kind, config.data.root, config.data.split)
    return cached(clips, config.data.cache, downscale=config.data.downscale)


def open_validation_clips(config: Config) -> ValidationClips:
    """The part of the validation sequences that is used."""
    root = config.data.validation_root or config.data.root
    clips = cached(
        open_clips(config.data.kind, root, config.data.validation_split),
        config.data.cache,
        downscale=config.data.downscale,
    )
    options = config.validation
    return ValidationClips(clips, frames=options.frames, crop=options.crop, sequences=options.sequences)


class ClipsModule(pl.LightningDataModule):
    """Feeds batches of uint8 clips `(B, T, 3, crop, crop)` that depend on (seed, step, rank) alone.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def prepare_data(self) -> None:
        """Check the data and fill the cache, once on each machine, before any worker starts."""
        open_training_clips(self.config)
        if self.config.validation.every:
            open_validation_clips(self.config)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches from the step on that the trainer is at, so that a resumed run sees the same."""
        data = self.config.data
        dataset = TrainingClips(
            open_training_clips(self.config),
            frames=data.frames,
            crop=data.crop,
            seed=self.config.seed,
            flip=data.augment,
            turn=data.augment,
            reverse=data.augment,
        )
        trainer = self.trainer
        assert trainer is not None
        sampler = StepSampler(
            data.batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            start_step=trainer.global_step * self.config.trainer.accumulate,
            steps=ENDLESS,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=data.workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            persistent_workers=data.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[ValidationClip]:
        """One clip at a time, shared out over the ranks."""
        clips = open_validation_clips(self.config)
        trainer = self.trainer
        assert trainer is not None
        mine = range(trainer.global_rank, len(clips), trainer.world_size)
        return DataLoader(clips, batch_size=None, sampler=mine)
