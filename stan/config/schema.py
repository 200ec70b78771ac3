"""The schema: typed dataclasses whose fields declare type, bounds, choices, default and help (`stan.settings`).

That is the only place where a key is described; checks, messages, ``stan config``, ``docs/configuration.md`` and what a
resumed run does with a change are made from it. A section that names a component (`stan.registry`) holds that
component's own settings in ``settings``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from stan.errors import ConfigError, nearest, short
from stan.registry import layouts, losses, networks, noises, protocols, sources, tasks
from stan.settings import Count, Natural, Setting, above, at_least, below, between, length, settings_of

Rate = Annotated[float, at_least(0)]
Sigma = Annotated[float, between(0, 255)]


class Resumed(enum.Enum):
    """What a resumed run does with a key that has changed, in the words of docs/training.md."""

    APPLIED = "takes them; they are no part of what is learned"
    TOLD = (
        "takes them from that step on, prints each with its old and its new value, and keeps them in `summary.json` "
        "and in the checkpoints"
    )
    MEASURED = (
        "the same; they make validations another measure, so `best.ckpt` is chosen anew and the old one becomes "
        "`best-before.ckpt`"
    )
    REFUSED = "refuses in one line, before anything is written"


def option(default: Any, text: str, resumed: Resumed) -> Any:
    """Declare a field with its default, its help text (meaning and unit) and what a resumed run does with a change."""
    metadata = {"help": text, "resumed": resumed}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


applied, told, measured, refused = (functools.partial(option, resumed=resumed) for resumed in Resumed)
"""Declare a field by its default and help; named for what a resumed run does where it has changed."""


def section(kind: type, text: str) -> Any:
    """Declare a nested section with its help text."""
    return dataclasses.field(default_factory=kind, metadata={"help": text})


class Chosen:
    """A section that names a component and holds what is set of its settings."""

    common: ClassVar[tuple[str, ...]] = ()  # settings with a key of their own in the section; None: not set
    settings: dict[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are set, for `Registry.build`."""
        given = {key: getattr(self, key) for key in self.common if getattr(self, key) is not None}
        return given | self.settings


@dataclasses.dataclass
class ModelConfig(Chosen):
    """Which network, and how it is aligned."""

    common = ("flow", "blind")
    name: Annotated[str, networks] = refused("stan_tiny", "network, whose name brings its settings")
    flow: Annotated[str, sources] | None = refused(
        None, "offset source that centres the search; null: the network's own"
    )
    blind: bool | None = refused(
        None,
        "true: the noise level is not told to the network; false: it gets a noise map; null: the network's own",
    )
    settings: dict[str, Any] = refused({}, "what departs from the network's own settings")


@dataclasses.dataclass
class DataConfig:
    """Where the clean video comes from and how training samples are cut from it."""

    kind: Annotated[str, layouts] = measured("davis", "layout of the data")
    root: str = measured("data/DAVIS", "folder of the data set; relative paths start where the command runs")
    noisy: str | None = measured(
        None,
        "folder of the noisy recordings of what lies in root, by the same names (pairs); null: noise is added",
    )
    split: str | None = told(
        "train",
        "split list to train on (davis): any list in ImageSets/2017, or trainval for train and val together",
    )
    validation_split: str | None = measured("val", "split list to validate on (davis)")
    validation_root: str | None = measured(
        None, "folder to validate on, for data without split lists; null: the same root"
    )
    validation_noisy: str | None = measured(
        None, "folder of the noisy recordings of what lies in validation_root (pairs)"
    )
    parts: list[dict[str, Any]] = told(
        [],
        "mixture to train on: {share: 0.5, downscale: 2, still: true} and the like, each changing kind, root, split or "
        "downscale; still: one frame under a slow camera; empty: the whole split as it is",
    )
    crop: Annotated[int, at_least(8)] = told(64, "side of a square training crop, pixels")
    frames: Count = told(5, "frames in a training clip")
    batch_size: Count = told(4, "training clips in a batch, on each device")
    workers: Natural = applied(2, "loader processes on each device; the batches do not depend on it")
    augment: bool = told(True, "random flips, quarter turns and time reversal")
    downscale: Count = measured(
        1, "shrink frames by this whole factor first (area average); 2 hides JPEG artefacts"
    )
    cache: str | None = applied(
        None, "folder of decoded frames; null: .stan-cache in the root, or the user's cache folder"
    )


@dataclasses.dataclass
class PartConfig:
    """What an entry of `DataConfig.parts` has beside the keys of `DataConfig` that it changes.

    Attributes:
        share: of the samples, relative to the other parts.
        still: one frame under a slow camera instead of the clip's own motion.
    """

    share: Annotated[float, above(0)] = 1.0
    still: bool = False


PART: Mapping[str, Setting] = {
    **{key: settings_of(DataConfig)[key] for key in ("kind", "root", "noisy", "split", "downscale")},
    **settings_of(PartConfig),
}
"""All that an entry of `DataConfig.parts` may state."""


def checked_part(given: Any, path: str) -> dict[str, Any]:
    """What an entry of `DataConfig.parts` states, in the declared types; a message calls it `path`.

    Raises:
        ConfigError: no section, an unknown key, or a value that does not fit.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}={short(given)} should be a section with keys {', '.join(PART)}")
    for key, value in given.items():
        if key not in PART:
            raise ConfigError(f"unknown key {path}.{str(key)[:80]}={short(value)}; {nearest(key, PART)}")
    return {key: PART[key].checked(value, f"{path}.{key}") for key, value in given.items()}


@dataclasses.dataclass
class NoiseConfig(Chosen):
    """The noise that is added to clean video."""

    kind: Annotated[str, noises] = measured("gaussian", "kind of noise")
    sigma: Any = measured(
        30, "standard deviation in 8-bit units: a number, a list [10, 30] or a range 0..50, drawn per clip"
    )
    settings: dict[str, Any] = measured({}, "what departs from the noise kind's own settings")


@dataclasses.dataclass
class LossConfig(Chosen):
    """What training minimises."""

    common = ("epsilon",)
    name: Annotated[str, losses] = told("charbonnier", "loss; the paper's is rmse")
    epsilon: Rate | None = told(
        None,
        "its setting epsilon, where it has one: smoothing near zero, in units of [0, 1] video; null: its own",
    )
    settings: dict[str, Any] = told({}, "what departs from the loss's own settings")
    early: Rate = told(
        0.3, "weight of the same loss on the results of earlier passes, where a network has any"
    )


@dataclasses.dataclass
class OptimizerConfig:
    """AdamW with a warm-up and a schedule."""

    lr: Rate = told(1e-4, "peak learning rate")
    final_lr: Rate = told(0.0, "learning rate at the last step of the cosine schedule")
    schedule: Literal["cosine", "constant"] = told("cosine", "learning rate after the warm-up")
    warmup_steps: Natural = told(0, "steps over which the learning rate rises linearly from zero")
    weight_decay: Rate = told(0.0, "decoupled weight decay")
    betas: Annotated[list[Annotated[float, below(0, 1)]], length(2)] = told(
        [0.9, 0.999], "decay of the running first and second moments"
    )
    clip_norm: Rate | None = told(1.0, "gradients are scaled down to this norm; null or 0: never")
    rates: dict[str, Rate] = told(
        {},
        "factors on the learning rate of some parameters, by name patterns: {enter*: 0.1, *bias: 0}; the first that "
        "matches counts, the others have 1",
    )


@dataclasses.dataclass
class EmaConfig:
    """Exponential moving average of the weights: what is validated, saved and used afterwards."""

    decay: Annotated[float, below(0, 1)] = told(
        0.999, "weight of the past at each step, reached after a warm-up; 0: no average"
    )


@dataclasses.dataclass
class TrainerConfig:
    """How long and on what to train (PyTorch Lightning's Trainer)."""

    max_steps: Count = told(1000, "optimiser steps")
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = told("auto", "kind of device")
    devices: int | str | list[int] = told("auto", "number of devices, a list of their indices, or auto")
    nodes: Count = told(1, "machines")
    strategy: str = told(
        "auto", "auto, ddp, or ddp_find_unused_parameters_true for networks that leave some of theirs out"
    )
    precision: str = told("32-true", "32-true, bf16-mixed, 16-mixed")
    accumulate: Count = told(1, "batches whose gradients are averaged into one optimiser step")
    log_every: Count = applied(10, "steps between lines in the log")
    checkpoint_every: Count = applied(
        500, "steps between writes of last.ckpt; it is also written when training stops for any reason"
    )
    max_skips: Count = applied(
        10,
        "steps in a row with a loss or gradient that is not finite (each is skipped) after which training stops",
    )
    deterministic: bool = told(
        False, "bit-equal results on a GPU too, at some cost in speed (a CPU is always bit-equal)"
    )


@dataclasses.dataclass
class ValidationConfig:
    """Validation during training, on fixed noise."""

    every: Natural = applied(500, "steps between validations, with one more after the last step; 0: never")
    sigmas: list[Sigma] | None = measured(None, "noise levels, 8-bit units; null: the middle of noise.sigma")
    frames: Natural = measured(8, "first frames of each sequence that are used; 0: all")
    crop: Natural = measured(192, "side of the central square that is used, pixels; 0: the whole frame")
    sequences: Natural = measured(0, "sequences that are used; 0: all of the split")
    keep: Count = applied(1, "checkpoints of the highest PSNR that are kept: best.ckpt, best-2.ckpt, ...")
    patience: Natural = applied(
        0, "validations in a row without a higher PSNR after which training stops early; 0: never"
    )


@dataclasses.dataclass
class FinetuneConfig:
    """Fine-tuning from a checkpoint."""

    keep_optimizer: bool = told(
        False, "true: go on with the optimiser state of the checkpoint; false: start it afresh"
    )
    grow: dict[str, Any] = refused(
        {},
        "larger network to go on with, which begins as the checkpoint's: name (stan_small), or channels and depths, or "
        "temporal_window; empty: the checkpoint's own",
    )
    freeze: list[str] = told(
        [], "parameters left as they are, by name patterns such as encoder* or *.attention.*"
    )
    replay: Annotated[float, below(0, 1)] = told(
        0.0,
        "share of the clips that get the noise, kind and levels, of the checkpoint's own training: it forgets less",
    )


@dataclasses.dataclass
class EvaluationConfig:
    """Which protocol a checkpoint is evaluated with."""

    protocol: Annotated[str, protocols] = applied("quick", "what is measured how, see docs/evaluation.md")
    sigmas: list[Sigma] = applied([10, 20, 30, 40, 50], "noise levels, 8-bit units")
    max_frames: Count | None = applied(
        None, "at most this many frames of each sequence; null: as the protocol says"
    )
    split: str | None = applied(None, "split list, or all for every sequence; null: as the protocol says")
    sequences: list[str] = applied([], "only these sequences, by name; empty: all of the split")
    seed: int | None = applied(None, "seed of the noise; null: the protocol's own, as tables need")
    border: Natural = applied(0, "pixels left out of the measures at each side")
    temporal_gain: bool = applied(
        False, "also measure what a method has from other frames, by a second run on each frame alone"
    )
    scenes: bool = applied(False, "look for scene cuts, which no chunk of frames then crosses")
    find_level: bool = applied(
        False, "the network is not told the noise level: it is estimated frame by frame"
    )
    temporal_window: Annotated[int, between(0, 64)] | None = applied(
        None, "frames that networks merge each side, in place of their own number; null: their own"
    )
    tiles: dict[str, Any] = applied(
        {},
        "cutting for the network: frames, frame_overlap, height, width, overlap; empty: chosen from memory",
    )
    memory: str | None = applied(None, "memory for the network, such as 4GiB; null: from what is free")


@dataclasses.dataclass
class Config:
    """Everything a run is made of. One schema serves train, finetune and evaluate."""

    seed: Natural = measured(0, "seed of weights, crops, noise and validation noise")
    output: str = applied("runs/stan", "folder that receives checkpoints, logs, pictures and tables")
    imports: list[str] = applied(
        [], "modules of your own with networks, losses and so on, from the working folder or the environment"
    )
    checkpoint: str | list[str] | None = told(
        None, "checkpoint to evaluate or fine-tune, or a list of them to compare"
    )
    resume: str = applied(
        "auto", "auto: go on from output/last.ckpt if there is one; never; or a checkpoint file"
    )
    logger: (
        Literal["csv", "tensorboard", "wandb", "none"] | list[Literal["csv", "tensorboard", "wandb", "none"]]
    ) = applied(
        "csv",
        "where the training log goes, also a list [csv, tensorboard]; wandb is offline unless logged in",
    )
    task: Annotated[str, tasks] = measured(
        "denoise", "what the network undoes: what is done to clean video before noise is added"
    )
    task_settings: dict[str, Any] = measured({}, "what departs from the task's own settings")
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


def on_resuming(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Resumed]]:
    """Every key that holds a value, and what a resumed run does where it has changed."""
    for field in dataclasses.fields(schema):
        if isinstance(field.default_factory, type):  # a section
            yield from on_resuming(field.default_factory, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.metadata["resumed"]
