"""Weights to hand on: those of a checkpoint with their description, without the optimiser and without the places of the
machine that trained them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stan.models.base import VideoDenoiser
from stan.models.checkpoint import load, read, save

ABSOLUTE = re.compile(r"(~|[A-Za-z]:)?[/\\]")


def release(checkpoint: str | Path, path: str | Path, **settings: Any) -> VideoDenoiser:
    """Write the weights of a checkpoint for use, as ``.safetensors`` or ``.ckpt`` by the path's ending.

    Args:
        checkpoint: a file, or the name of weights that come with the package.
        path: of the new file.
        settings: of the network, in place of the checkpoint's own, as for `load`.

    Returns:
        the network.

    Raises:
        ConfigError: a setting that the network does not have, or an impossible value.
        CheckpointError: a checkpoint that cannot be used, another ending, or a file that cannot be written.
    """
    model = load(checkpoint, **settings)
    config = read(checkpoint)[1].get("config")
    save(model, path, portable(config) if isinstance(config, dict) else None)
    return model


def portable(config: Any) -> Any:
    """A configuration in which absolute paths are but their last names: where files lay is nobody else's business."""
    if isinstance(config, dict):
        return {key: portable(value) for key, value in config.items()}
    if isinstance(config, list):
        return [portable(value) for value in config]
    if isinstance(config, str) and ABSOLUTE.match(config):
        return re.split(r"[/\\]", config.rstrip("/\\"))[-1]
    return config
