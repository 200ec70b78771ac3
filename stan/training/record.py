"""The record of a training: a header when it starts, a log and pictures on the way, ``summary.json`` at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torchvision.io import encode_png

from stan.config import Config, to_dict
from stan.data.clips import Clip
from stan.data.sources import takes_noisy
from stan.errors import CheckpointError
from stan.files import write_text
from stan.inference.memory import largest_so_far
from stan.inference.precision import is_emulated
from stan.inference.recorded import estimated_levels
from stan.models import VideoDenoiser
from stan.ops import backend
from stan.training.data_module import open_training_parts
from stan.training.health import Health
from stan.training.module import DenoisingModule, StepCallback
from stan.training.resuming import Start
from stan.training.validation import Validated, Validation

SUMMARY = "summary.json"


class TrainingLog(StepCallback):
    """Writes loss, PSNR, learning rate, gradient norm, waiting for data, speed and memory to the loggers; and pictures.

    Steps count as everywhere else: the first is 1. Loss and PSNR are means over the clips of all processes.

    Args:
        output: the output folder.
        every: steps between entries.
        health: counts the skipped steps.
        validation: whose results are entered too.

    Attributes:
        newest: the newest values, by name.
    """

    def __init__(self, output: Path, every: int, health: Health, validation: Validation) -> None:
        self.output, self.every, self.health, self.validation = output, every, health, validation
        self.newest: dict[str, float] = {}
        self._step: list[torch.Tensor] = []  # (2,) loss and PSNR of each batch of the step at hand
        self._ended = self._since = 0.0
        self._waited, self._samples = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Enter the configuration, start the clock."""
        assert isinstance(module, DenoisingModule)
        for logger in trainer.loggers:
            logger.log_hyperparams(to_dict(module.config))
        self._ended = self._since = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here: add the time it was waited for."""
        self._waited += time.monotonic() - self._ended

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Enter what is due."""
        self._samples += len(module.seen["clean"]) * trainer.world_size
        self._step.append(torch.stack([module.seen["loss"], module.seen["psnr"]]))
        if ends_step:
            if trainer.global_step % self.every == 0:
                self._enter(trainer, module)
            self._step = []
            if (found := self.validation.result) is not None:
                figures = {"psnr": found.psnr, "ssim": found.ssim, "psnr_noisy": found.psnr_noisy}
                self._write(trainer, {f"val/{name}": value for name, value in figures.items()})
                if trainer.is_global_zero:
                    write_pictures(found, self.output / "images", trainer.loggers)
        self._ended = time.monotonic()

    def _enter(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        means = torch.stack(self._step).mean(0)
        if trainer.world_size > 1:
            means = torch.as_tensor(trainer.strategy.reduce(means, reduce_op="mean"))
        now = time.monotonic()
        seconds = max(1e-9, now - self._since)
        loss, psnr = means.tolist()
        values = {
            "train/loss": loss,
            "train/psnr": psnr,
            "train/rate": module.rate,
            "train/gradient_norm": module.gradient_norm,
            "train/skipped_steps": float(self.health.skipped),
            "train/data_wait": self._waited / seconds,
            "train/samples_per_second": self._samples / seconds,
            "train/memory_gib": memory_gib(module.device),
        }
        self._since, self._waited, self._samples = now, 0.0, 0
        self._write(trainer, values)

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        self.newest.update(values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
            logger.save()


def write_pictures(found: Validated, folder: Path, loggers: Sequence[Logger]) -> None:
    """The middle frames of the first clips: noisy, denoised and clean side by side.

    Args:
        found: what the validation found.
        folder: receives ``step-000500-SEQUENCE-sigma30.png``.
        loggers: those that take pictures (wandb and tensorboard) get them too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for clip, sigma, result in found.shown:
        middle = len(clip.clean) // 2
        frames = [result.noisy[middle], result.denoised[middle], clip.clean[middle].float() / 255]
        sheet = torch.cat(frames, dim=-1).clamp(0, 1)  # (3, H, 3 W)
        levels = (sheet * 255).round().byte()
        label = f"{clip.name}-sigma{sigma:g}"
        path = folder / f"step-{found.step:06d}-{label}.png"
        path.write_bytes(encode_png(levels).numpy().tobytes())
        caption = f"noisy | denoised | clean, {result.psnr_noisy:.2f} -> {result.psnr:.2f} dB"
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                picture = levels.permute(1, 2, 0).numpy()  # (H, W, 3)
                logger.log_image(f"validation/{label}", [picture], caption=[caption])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"validation/{label}", sheet, found.step)


def memory_gib(device: torch.device) -> float:
    """The most memory used so far, GiB: of a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return largest_so_far() / 2**30


def _noise_words(config: Config, network: VideoDenoiser, clips: list[Clip]) -> str:
    if not takes_noisy(config.data.kind):
        return f"noise {config.noise.kind} {config.noise.sigma}"
    told = "not told" if network.blind else f"told as sigma {config.noise.sigma}"
    return f"recorded noise, {told}, estimated as {estimated_levels(clips)}"


def header(config: Config, network: VideoDenoiser, start: Start, device: torch.device, devices: int) -> str:
    """What is about to be trained on what, and where it goes: a few lines for a person."""
    data, options = config.data, config.trainer
    parts = open_training_parts(config)  # some of the same clips, at other sizes
    clips = list({(part.origin, clip.name): clip for part in parts for clip in part.clips}.values())
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    settings = "".join(f" {key}={value}" for key, value in config.task_settings.items())
    task = "" if config.task == "denoise" else f"task {config.task}{settings}, "
    batch = data.batch_size * options.accumulate * devices * options.nodes
    lines = [
        f"{network.name}, {count:,} parameters, on {devices * options.nodes} x {device.type}{threads}, "
        f"{options.precision}, operator {backend.in_use(torch.device(device.type))}",
        f"{len(clips)} sequences, {sum(map(len, clips))} frames; a step: {batch} clips of "
        f"{data.frames}x{data.crop}x{data.crop}, {task}{_noise_words(config, network, clips)}",
    ]
    if options.precision == "bf16-mixed" and is_emulated(torch.bfloat16, device):
        lines.append("bfloat16 is emulated on this device: trainer.precision=32-true is faster")
    if start.path is None:
        lines.append(f"steps 1 to {options.max_steps} -> {config.output}")
    else:
        lines.append(
            f"resumed at step {start.step} from {start.path}, to {options.max_steps} -> {config.output}"
        )
        lines += [f"  from here on {key}={now} (was {then})" for key, (then, now) in start.changed.items()]
        if start.new_validation:
            lines.append(
                "  validations are others from here on: best.ckpt is chosen anew, the old one is set aside"
            )
    return "\n".join(lines)


def write_summary(folder: Path, values: dict[str, Any]) -> None:
    """Write ``summary.json``; figures that are not finite become null. Only a training that is done fails by it."""
    newest = {key: value if math.isfinite(value) else None for key, value in values["newest"].items()}
    try:
        write_text(folder / SUMMARY, json.dumps({**values, "newest": newest}, indent=2, default=str) + "\n")
    except OSError as error:
        if values["ended"] == "done":
            raise CheckpointError(f"cannot write {folder / SUMMARY}: {error.strerror}") from error
