"""Fine-tuning: go on from a checkpoint at new noise levels, and tell what was gained and what was lost."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from pathlib import Path
from typing import Any

import torch

from stan import models
from stan.config import Config, ModelConfig
from stan.errors import CheckpointError, ConfigError, nearest
from stan.files import write_text
from stan.models import VideoDenoiser
from stan.models.growth import grown
from stan.training.conditions import Condition, conditions_of, shared_out
from stan.training.fit import Fit, fit
from stan.training.gains import gain_levels, measured_before, validate
from stan.training.lock import only_training

REPORT = "finetune.json"


@dataclasses.dataclass(frozen=True)
class Gain:
    """Validation PSNR (dB) at one noise level before and after fine-tuning."""

    sigma: float
    origin: str  # "old": a level of the checkpoint's training; "new": of this one; "both"
    psnr_noisy: float
    before: float
    after: float
    noise: str
    task: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON, which has no number for the PSNR of frames without noise: null."""
        return {key: None if value == math.inf else value for key, value in dataclasses.asdict(self).items()}


def finetune(config: Config) -> tuple[Fit, list[Gain]]:
    """Train on from ``config.checkpoint``; the architecture comes from the checkpoint.

    Writes ``finetune.json`` beside the checkpoints: PSNR at the old and the new levels, before and after.

    Raises:
        StanError: for a checkpoint or settings that cannot be used.
    """
    checkpoint = config.checkpoint
    if not isinstance(checkpoint, str):
        raise ConfigError(f"checkpoint={checkpoint!r} should name the file to fine-tune: checkpoint=FILE")
    network = models.load(checkpoint)
    if config.finetune.grow:
        network = grow(network, config.finetune.grow, config.seed)
    config = dataclasses.replace(config, model=_model_config(network))
    frozen = freeze(network, config.finetune.freeze)
    if frozen:
        print(f"{frozen} parameter tensors stay as they are")
    replay = replay_of(checkpoint, config)
    levels = gain_levels(checkpoint, config)
    with only_training(Path(config.output)):
        before = measured_before(network, checkpoint, config, levels)
        state = optimizer_state(Path(checkpoint)) if config.finetune.keep_optimizer else None
        result = fit(config, network, label="finetune", optimizer_state=state, replay=replay)
        if result.interrupted:
            return result, []
        after = validate(result.network, config, levels)
        gains = [
            Gain(
                level.sigma,
                level.origin,
                *old,
                new[1],
                level.condition.noise.kind,
                level.condition.degradation.task,
            )
            for level, old, new in zip(levels, before, after)
        ]
        report = {"checkpoint": checkpoint, "gains": [gain.to_dict() for gain in gains]}
        write_text(Path(config.output) / REPORT, json.dumps(report, indent=2) + "\n")
    return result, gains


GROWING = ("name", "channels", "depths", "temporal_window")
"""The keys of ``finetune.grow``."""


def grow(network: VideoDenoiser, asked: dict[str, Any], seed: int) -> VideoDenoiser:
    """The larger network that ``finetune.grow`` asks for.

    Raises:
        ConfigError: for an unknown key, or a network that cannot grow so.
    """
    for key, value in asked.items():
        if key not in GROWING:
            raise ConfigError(f"finetune.grow.{key} is not known; {nearest(key, GROWING)}")
        if key in ("channels", "depths") and not isinstance(value, list):
            raise ConfigError(f"finetune.grow.{key}={value!r} must be a list, one number for each level")
    return grown(network, seed=seed, **asked)


def freeze(network: VideoDenoiser, patterns: list[str]) -> int:
    """Stop the parameters whose names match a pattern from learning; returns how many tensors that are.

    Raises:
        ConfigError: for a pattern that matches nothing, or when nothing is left to train.
    """
    parameters = dict(network.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(parameters, pattern)
        if not matching:
            parts = sorted({name.split(".")[0] for name in parameters})
            raise ConfigError(
                f"finetune.freeze: {pattern!r} matches no parameter; the parts of {network.name} are "
                f"{', '.join(parts)}, each with .* behind it"
            )
        frozen.update(matching)
    if patterns and len(frozen) == len(parameters):
        raise ConfigError(f"finetune.freeze={patterns} freezes every parameter: nothing is left to train")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return len(frozen)


def optimizer_state(path: Path) -> dict[str, Any]:
    """AdamW's state in a checkpoint of a training run.

    Raises:
        CheckpointError: when the checkpoint holds weights only.
    """
    content = torch.load(path, map_location="cpu", weights_only=True) if path.suffix == ".ckpt" else {}
    states = content.get("optimizer_states")
    if not states:
        raise CheckpointError(
            f"{path} holds no optimiser state: use the last.ckpt of a training run, or "
            "finetune.keep_optimizer=false"
        )
    return {**states[0], "names": content.get("parameter_names")}


def replay_of(checkpoint: str, config: Config) -> tuple[Condition, ...]:
    """What the trainings behind the checkpoint undid, for ``finetune.replay`` of the clips.

    Raises:
        CheckpointError: when the checkpoint does not say what it was trained for.
    """
    if not config.finetune.replay:
        return ()
    try:
        return shared_out(conditions_of(checkpoint), config.finetune.replay)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: set finetune.replay=0") from error


def _model_config(network: VideoDenoiser) -> ModelConfig:
    settings = dict(network.settings)
    return ModelConfig(
        name=network.name,
        flow=settings.pop("flow", None),
        blind=settings.pop("blind", None),
        settings=settings,
    )
