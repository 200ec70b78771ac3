"""Lightning's Trainer and loggers for a configuration, or one line that says why there are none."""

from __future__ import annotations

import logging
import netrc
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from stan.config import Config
from stan.errors import ConfigError
from stan.training.checkpoints import AtomicCheckpointIO

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def build_trainer(
    config: Config, callbacks: Sequence[pl.Callback] = (), loggers: Sequence[Logger] = ()
) -> pl.Trainer:
    """Lightning's Trainer for this configuration.

    Raises:
        ConfigError: for a strategy that is not supported, more devices than there are, or what Lightning refuses.
    """
    options = config.trainer
    if options.strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={options.strategy!r} is not supported, only {', '.join(STRATEGIES)}: the average and "
            "the checkpoints need whole weights on each device; for less memory take trainer.precision=bf16-mixed, "
            "smaller crops, or trainer.accumulate"
        )
    wanted, there = str(options.devices), os.cpu_count() or 1
    try:
        if options.accelerator == "cpu" and wanted.isdecimal() and int(wanted) > there:
            raise ConfigError(f"trainer.devices={wanted}: this machine has {there} processors")
        trainer = pl.Trainer(
            max_steps=options.max_steps,
            max_epochs=-1,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=options.strategy,
            precision=options.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=options.accumulate,
            check_val_every_n_epoch=None,
            limit_val_batches=0,  # `Validation` does it
            num_sanity_val_steps=0,
            deterministic=options.deterministic or None,
            logger=list(loggers) or False,
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
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > there:
        raise ConfigError(f"trainer.devices={wanted}: this machine has {there} processors")
    return trainer


def build_loggers(config: Config) -> list[Logger]:
    """The loggers that ``config.logger`` names, writing into the output folder.

    Raises:
        ConfigError: when a package is not installed.
    """
    names = [config.logger] if isinstance(config.logger, str) else config.logger
    return [_logger(name, config.output) for name in dict.fromkeys(names) if name != "none"]


def _logger(name: str, output: str) -> Logger:
    if name == "tensorboard":
        try:
            return TensorBoardLogger(output, name="tensorboard", default_hp_metric=False)
        except ModuleNotFoundError:
            raise ConfigError(
                "logger=tensorboard needs its package: pip install 'stan-video[tensorboard]'"
            ) from None
    if name == "wandb":
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


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Mute notices of Lightning and torch about things that are on purpose here, for the length of a `with` block."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        for message in (
            "does not have many workers",
            "This DataLoader will create",  # more workers than processors: slower, not wrong
            "GPU available but not used",
            "in eval mode at the start",  # the moving average
            "LeafSpec",
            "Grad strides do not match bucket view",  # 1x1 convolutions in channels_last: harmless
        ):
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
