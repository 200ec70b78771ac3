"""The schema: typed dataclasses whose fields carry their own help text.

The help text of each field is the only place where a key is described; ``stan config`` and
``docs/configuration.md`` print it.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, text: str) -> Any:
    """Declare a field with its default and its help text (meaning and unit)."""
    metadata = {"help": text}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, text: str) -> Any:
    """Declare a nested section with its help text."""
    return dataclasses.field(default_factory=kind, metadata={"help": text})


@dataclasses.dataclass
class ModelConfig:
    """Which network, and how it is aligned."""

    name: str = option("stan_tiny", "network: stan (paper, 12 M parameters), stan_small, stan_tiny")
    flow: str = option("dis", "offset source that centres the search: zero, dis, farneback, tvl1")
    blind: bool = option(
        False, "true: the noise level is not told to the network; false: it gets a noise map"
    )
    settings: dict[str, Any] = option({}, "other settings of the network by name, see docs/models.md")


@dataclasses.dataclass
class DataConfig:
    """Where the clean video comes from and how training samples are cut from it."""

    kind: str = option(
        "davis",
        "layout of the data: davis, set8, folder (of frames, of such folders, or of video files), video",
    )
    root: str = option("data/DAVIS", "folder of the data set; relative paths start where the command runs")
    split: str | None = option(
        "train", "split list to train on (davis): train, val, trainval, or any list in ImageSets/2017"
    )
    validation_split: str | None = option("val", "split list to validate on (davis)")
    validation_root: str | None = option(
        None, "folder to validate on, for data without split lists; null: the same root"
    )
    crop: int = option(64, "side of a square training crop, pixels")
    frames: int = option(5, "frames in a training clip")
    batch_size: int = option(4, "training clips in a batch, on each device")
    workers: int = option(2, "loader processes on each device; the batches do not depend on it")
    augment: bool = option(True, "random flips, quarter turns and time reversal")
    downscale: int = option(
        1, "shrink frames by this whole factor first (area average); 2 hides JPEG artefacts"
    )
    cache: str | None = option(
        None, "folder of decoded frames; null: .stan-cache in the root, or the user's cache folder"
    )


@dataclasses.dataclass
class NoiseConfig:
    """The noise that is added to clean video."""

    kind: str = option(
        "gaussian", "gaussian, gaussian_clipped, gaussian_rounded, poisson, poisson_gaussian, correlated"
    )
    sigma: Any = option(
        30, "standard deviation in 8-bit units: a number, a list [10, 30] or a range 0..50, drawn per clip"
    )
    settings: dict[str, Any] = option({}, "other settings of the noise kind by name, see docs/data.md")


@dataclasses.dataclass
class LossConfig:
    """What training minimises."""

    name: str = option("charbonnier", "charbonnier, rmse (paper), l1, l2 or psnr")
    epsilon: float = option(1e-3, "smoothing of charbonnier and rmse near zero, in units of [0, 1] video")


@dataclasses.dataclass
class OptimizerConfig:
    """AdamW with a warm-up and a schedule."""

    lr: float = option(1e-4, "peak learning rate")
    final_lr: float = option(0.0, "learning rate at the last step of the cosine schedule")
    schedule: str = option("cosine", "cosine or constant, after the warm-up")
    warmup_steps: int = option(0, "steps over which the learning rate rises linearly from zero")
    weight_decay: float = option(0.0, "decoupled weight decay")
    betas: list[float] = option([0.9, 0.999], "decay of the running first and second moments")
    clip_norm: float | None = option(1.0, "gradients are scaled down to this norm; null: never")


@dataclasses.dataclass
class EmaConfig:
    """Exponential moving average of the weights: what is validated, saved and used afterwards."""

    decay: float = option(0.999, "weight of the past at each step, reached after a warm-up; 0: no average")


@dataclasses.dataclass
class TrainerConfig:
    """How long and on what to train (PyTorch Lightning's Trainer)."""

    max_steps: int = option(1000, "optimiser steps")
    accelerator: str = option("auto", "auto, cpu, gpu")
    devices: Any = option("auto", "number of devices, a list of their indices, or auto")
    nodes: int = option(1, "machines")
    strategy: str = option("auto", "auto, ddp, ...")
    precision: str = option("32-true", "32-true, bf16-mixed, 16-mixed")
    accumulate: int = option(1, "batches whose gradients are summed into one optimiser step")
    log_every: int = option(10, "steps between lines in the log")
    checkpoint_every: int = option(
        500, "steps between writes of last.ckpt; it is also written when training stops for any reason"
    )
    deterministic: bool = option(
        False, "bit-equal results on a GPU too, at some cost in speed (a CPU is always bit-equal)"
    )


@dataclasses.dataclass
class ValidationConfig:
    """Validation during training, on fixed noise."""

    every: int = option(500, "steps between validations; 0: never")
    sigmas: list[float] | None = option(None, "noise levels, 8-bit units; null: the middle of noise.sigma")
    frames: int = option(8, "first frames of each sequence that are used; 0: all")
    crop: int = option(192, "side of the central square that is used, pixels; 0: the whole frame")
    sequences: int = option(0, "sequences that are used; 0: all of the split")


@dataclasses.dataclass
class FinetuneConfig:
    """Fine-tuning from a checkpoint."""

    keep_optimizer: bool = option(
        False, "true: go on with the optimiser state of the checkpoint; false: start it afresh"
    )
    freeze: list[str] = option(
        [], "parameters left as they are, by name patterns such as encoder* or *.attention.*"
    )


@dataclasses.dataclass
class EvaluationConfig:
    """Which protocol a checkpoint is evaluated with."""

    protocol: str = option("quick", "davis-full, davis-85, set8 or quick, see docs/evaluation.md")
    sigmas: list[float] = option([10, 20, 30, 40, 50], "noise levels, 8-bit units")
    max_frames: int | None = option(
        None, "at most this many frames of each sequence; null: as the protocol says"
    )
    split: str | None = option(None, "split list, or all for every sequence; null: as the protocol says")
    sequences: list[str] = option([], "only these sequences, by name; empty: all of the split")
    seed: int | None = option(None, "seed of the noise; null: the protocol's own, as tables need")
    border: int = option(0, "pixels left out of the measures at each side")
    temporal_gain: bool = option(
        False, "also measure what a method has from other frames, by a second run on each frame alone"
    )
    scenes: bool = option(False, "look for scene cuts, which no chunk of frames then crosses")
    tiles: dict[str, Any] = option(
        {},
        "cutting for the network: frames, frame_overlap, height, width, overlap; empty: chosen from memory",
    )
    memory: str | None = option(None, "memory for the network, such as 4GiB; null: from what is free")


@dataclasses.dataclass
class Config:
    """Everything a run is made of. One schema serves train, finetune and evaluate."""

    seed: int = option(0, "seed of weights, crops, noise and validation noise")
    output: str = option("runs/stan", "folder that receives checkpoints, logs, pictures and tables")
    checkpoint: Any = option(None, "checkpoint to evaluate or fine-tune, or a list of them to compare")
    resume: str = option(
        "auto", "auto: go on from output/last.ckpt if there is one; never; or a checkpoint file"
    )
    logger: str = option("csv", "csv, tensorboard, wandb (offline unless logged in) or none")
    model: ModelConfig = section(ModelConfig, "network")
    data: DataConfig = section(DataConfig, "clean video")
    noise: NoiseConfig = section(NoiseConfig, "noise")
    loss: LossConfig = section(LossConfig, "loss")
    optimizer: OptimizerConfig = section(OptimizerConfig, "optimiser")
    ema: EmaConfig = section(EmaConfig, "moving average of the weights")
    trainer: TrainerConfig = section(TrainerConfig, "length and devices")
    validation: ValidationConfig = section(ValidationConfig, "validation during training")
    finetune: FinetuneConfig = section(FinetuneConfig, "fine-tuning")
    evaluation: EvaluationConfig = section(EvaluationConfig, "evaluation")
