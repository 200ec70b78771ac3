"""Where the training log goes."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from stan.config import Config
from stan.errors import ConfigError


def build_loggers(config: Config) -> list[Logger]:
    """The loggers that ``config.logger`` names, writing into the output folder.

    Raises:
        ConfigError: when a package is not installed.
    """
    names = [config.logger] if isinstance(config.logger, str) else config.logger
    return [_build(name, config.output) for name in dict.fromkeys(names) if name != "none"]


def _build(name: str, output: str) -> Logger:
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
