"""Fine-tuning: go on from a checkpoint at new noise levels, and tell what was gained and what was lost."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from stan import models
from stan.config import Config, ModelConfig
from stan.data import degradation
from stan.data.noise import build as build_noise
from stan.data.noise import parse_sigma
from stan.data.pairs import RECORDED
from stan.data.sources import takes_noisy
from stan.device import choose
from stan.errors import CheckpointError, ConfigError, nearest
from stan.files import write_text
from stan.models import VideoDenoiser
from stan.models.checkpoint import read
from stan.models.growth import grown
from stan.training.checkpoints import LAST
from stan.training.fit import Fit, fit
from stan.training.lock import only_training
from stan.training.module import Replay
from stan.training.validation import open_validation_clips, score

BEFORE = "before.json"
REPORT = "finetune.json"


@dataclasses.dataclass(frozen=True)
class Gain:
    """Validation PSNR at one noise level before and after fine-tuning."""

    sigma: float
    origin: str  # "old": a level of the checkpoint's training; "new": of this one; "both"
    psnr_noisy: float
    before: float
    after: float


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
    levels = gain_levels(network, config)
    output = Path(config.output)
    with only_training(output):
        if config.resume != "never" and (output / LAST).exists() and (output / BEFORE).exists():
            known = json.loads((output / BEFORE).read_text())
            before = {float(sigma): tuple(pair) for sigma, pair in known.items()}
        else:
            before = validate(network, config, list(levels))
            write_text(output / BEFORE, json.dumps({str(sigma): pair for sigma, pair in before.items()}))
        state = optimizer_state(Path(checkpoint)) if config.finetune.keep_optimizer else None
        result = fit(config, network, label="finetune", optimizer_state=state, replay=replay)
        if result.interrupted:
            return result, []
        after = validate(result.network, config, list(levels))
        gains = [
            Gain(sigma, origin, before[sigma][0], before[sigma][1], after[sigma][1])
            for sigma, origin in levels.items()
        ]
        report = {"checkpoint": checkpoint, "gains": [dataclasses.asdict(gain) for gain in gains]}
        write_text(output / REPORT, json.dumps(report, indent=2) + "\n")
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


def gain_levels(network: VideoDenoiser, config: Config) -> dict[float, str]:
    """The levels to report, low to high, and whether each is old, new or both."""
    sigmas = parse_sigma(config.noise.sigma)
    if takes_noisy(config.data.kind):
        return {sigmas.low: "new"}  # what is recorded has no other level
    new = _ends_and_middle(sigmas.low, sigmas.high)
    old = _ends_and_middle(*network.trained.sigma) if network.trained else set()
    return {
        sigma: "both" if sigma in old and sigma in new else "old" if sigma in old else "new"
        for sigma in sorted(old | new)
    }


def validate(network: VideoDenoiser, config: Config, sigmas: list[float]) -> dict[float, tuple[float, float]]:
    """Mean PSNR over the validation clips, sigma -> (noisy, denoised) in dB."""
    device = choose(config.trainer.accelerator)
    noise = build_noise(config.noise.kind, **config.noise.settings)
    worse = degradation.build(config.task, **config.task_settings)
    clips = open_validation_clips(config)
    network = network.to(device).eval()
    jobs = [(sigma, index) for sigma in sigmas for index in range(len(clips))]
    sums = {sigma: [0.0, 0.0] for sigma in sigmas}
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    for sigma, index in track(jobs, "validate", console=console, transient=True, disable=hidden):
        result = score(network, clips[index], sigma, noise, worse, config.seed, device)
        sums[sigma][0] += result.psnr_noisy
        sums[sigma][1] += result.psnr
    network.cpu()
    return {sigma: (noisy / len(clips), denoised / len(clips)) for sigma, (noisy, denoised) in sums.items()}


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


def replay_of(checkpoint: str, config: Config) -> Replay | None:
    """What the checkpoint's own training undid, for a share of ``finetune.replay`` of the clips.

    Raises:
        CheckpointError: when the checkpoint does not say what it was trained for.
    """
    if not config.finetune.replay:
        return None
    _, record = read(checkpoint)
    if (record.get("trained") or {}).get("kind") == RECORDED:
        raise CheckpointError(
            f"{checkpoint} was trained on recorded pairs, whose noise cannot be made again: set finetune.replay=0"
        )
    before = record.get("config") or {}
    noise = before.get("noise")
    if not noise:
        raise CheckpointError(
            f"{checkpoint} does not say which noise it was trained for: set finetune.replay=0"
        )
    earlier = build_noise(noise["kind"], **(noise.get("settings") or {}))
    worse = degradation.build(before.get("task") or "denoise", **(before.get("task_settings") or {}))
    return Replay(config.finetune.replay, worse, earlier, parse_sigma(noise["sigma"]))


def _model_config(network: VideoDenoiser) -> ModelConfig:
    settings = dict(network.settings)
    return ModelConfig(
        name=network.name,
        flow=settings.pop("flow", None),
        blind=settings.pop("blind", None),
        settings=settings,
    )


def _ends_and_middle(low: float, high: float) -> set[float]:
    return {low} if low == high else {low, (low + high) / 2, high}
