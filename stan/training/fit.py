"""Train from scratch and fine-tune: a configuration in, a folder with checkpoints, logs and pictures out."""

from __future__ import annotations

import logging
import netrc
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from stan import models
from stan.config import Config, to_yaml
from stan.errors import CheckpointError, ConfigError
from stan.files import write_text
from stan.models import VideoDenoiser
from stan.models.checkpoint import read
from stan.training.callbacks import BEST, LAST, AtomicCheckpointIO, CalmStop, Checkpoints, Pictures
from stan.training.data_module import ClipsModule
from stan.training.module import DenoisingModule
from stan.training.progress import TrainingProgress


@dataclass(frozen=True)
class Fit:
    """What a training left behind.

    Attributes:
        output: the folder.
        last: the newest checkpoint.
        best: the checkpoint of the highest validation PSNR, if any validation ran.
        best_psnr: that PSNR in dB.
        steps: optimiser steps done in all.
        seconds: time this call took.
        interrupted: stopped by Ctrl-C before the last step.
        network: the trained network, averaged weights, in eval mode on the CPU.
    """

    output: Path
    last: Path
    best: Path | None
    best_psnr: float | None
    steps: int
    seconds: float
    interrupted: bool
    network: VideoDenoiser


def build_network(config: Config) -> VideoDenoiser:
    """A fresh network, its weights drawn from ``config.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return models.build(config.model.name, **config.model.given)


def train(config: Config) -> Fit:
    """Train a network from scratch, or go on where the run in ``config.output`` stopped.

    Raises:
        StanError: for data, checkpoints or settings that cannot be used.
    """
    return fit(config, build_network(config), label="train")


def fit(
    config: Config, network: VideoDenoiser, *, label: str, optimizer_state: dict[str, Any] | None = None
) -> Fit:
    """Train ``network`` as the configuration says; the engine of :func:`train` and fine-tuning.

    Args:
        config: the resolved configuration.
        network: starting weights.
        label: the word before the progress bar.
        optimizer_state: state of AdamW to start from; None starts afresh. A resumed run ignores it.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "config.yaml", to_yaml(config))
    resume = resume_from(config)
    steps = network_steps(resume) if resume else 0
    if steps >= config.trainer.max_steps:
        print(f"{resume} has {steps} steps already: raise trainer.max_steps to go on")

    module = DenoisingModule(network, config)
    if optimizer_state is not None:
        module.start_optimizer_from(optimizer_state)
    checkpoints = Checkpoints(output, config.trainer.checkpoint_every)
    stop = CalmStop()
    started = time.monotonic()
    with _quiet_lightning():
        trainer = build_trainer(
            config, [TrainingProgress(label), checkpoints, stop, Pictures(output / "images")]
        )
        trainer.fit(module, datamodule=ClipsModule(config), ckpt_path=resume)
    network = module.best_network.cpu().eval()
    return Fit(
        output=output,
        last=output / LAST,
        best=output / BEST if checkpoints.best_psnr is not None else None,
        best_psnr=checkpoints.best_psnr,
        steps=trainer.global_step,
        seconds=time.monotonic() - started,
        interrupted=stop.stopped and trainer.global_step < config.trainer.max_steps,
        network=network,
    )


def resume_from(config: Config) -> Path | None:
    """The checkpoint that ``config.resume`` asks to go on from.

    Raises:
        CheckpointError: if a named one is missing, or the one found is damaged or of another network.
    """
    if config.resume == "never":
        return None
    path = Path(config.output) / LAST if config.resume == "auto" else Path(config.resume)
    if not path.exists() and config.resume == "auto":
        return None
    _, record = read(path)  # a damaged file is told here, in one line
    if record["model"]["name"] != config.model.name:
        raise CheckpointError(
            f"{path} holds the network {record['model']['name']!r}, but model.name is {config.model.name!r}: "
            "choose another output folder, or resume=never to start over"
        )
    return path


def network_steps(path: Path) -> int:
    """The optimiser steps behind a checkpoint."""
    _, record = read(path)
    return int(record["trained"]["steps"]) if record.get("trained") else 0


def build_trainer(config: Config, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer for this configuration.

    Raises:
        ConfigError: when Lightning refuses a device, strategy or precision.
    """
    options, every = config.trainer, config.validation.every
    interval = min(every, options.max_steps) * options.accumulate
    try:
        return pl.Trainer(
            max_steps=options.max_steps,
            max_epochs=-1,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=options.strategy,
            precision=options.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=config.optimizer.clip_norm,
            log_every_n_steps=options.log_every,
            val_check_interval=interval if every else None,
            check_val_every_n_epoch=None,
            limit_val_batches=None if every else 0,
            num_sanity_val_steps=0,
            deterministic=options.deterministic or None,
            logger=build_logger(config),
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"the trainer section cannot be used here: {' '.join(str(error).split())}"
        ) from error


def build_logger(config: Config) -> Logger | bool:
    """The logger that ``config.logger`` names, writing into the output folder.

    Raises:
        ConfigError: when its package is not installed.
    """
    output = config.output
    if config.logger == "none":
        return False
    if config.logger == "tensorboard":
        try:
            return TensorBoardLogger(output, name="tensorboard")
        except ModuleNotFoundError:
            raise ConfigError(
                "logger=tensorboard needs its package: pip install 'stan-video[tensorboard]'"
            ) from None
    if config.logger == "wandb":
        offline = "WANDB_MODE" not in os.environ and not _wandb_account()
        return WandbLogger(project="stan", name=Path(output).name, save_dir=output, offline=offline)
    return CSVLogger(output, name="csv")


def _wandb_account() -> bool:
    """Whether a wandb key is at hand; without one the run is kept on disk, to be synced later."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None  # where `wandb login` keeps it
    except (OSError, netrc.NetrcParseError):
        return False


class _quiet_lightning:
    """Mutes notices of Lightning and torch about things that are on purpose here, for the length of a `with` block."""

    def __enter__(self) -> None:
        self.loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.WARNING)
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        for message in (
            "does not have many workers",
            "This DataLoader will create",  # more workers than processors: slower, not wrong
            "GPU available but not used",
            "in eval mode at the start",  # the moving average
            "your dataloader is not resumable",  # our sampler starts at the trainer's step
            "LeafSpec",
        ):
            warnings.filterwarnings("ignore", message=f".*{message}.*")

    def __exit__(self, *details: Any) -> None:
        self.warnings.__exit__(*details)
        for logger, level in zip(self.loggers, self.levels):
            logger.setLevel(level)
