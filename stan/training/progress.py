"""The progress bar of training: loss, PSNR, samples a second and time left."""

from __future__ import annotations

import math
import time

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stan.training.module import DenoisingModule, StepCallback
from stan.training.validation import Validated, Validation

SMOOTHING = 0.9


class TrainingProgress(StepCallback):
    """A bar on a terminal; a plain line every few seconds where standard error is a file or a pipe.

    Args:
        label: the word before the bar.
        validation: whose results are told.
        seconds: between plain lines.
    """

    def __init__(self, label: str, validation: Validation, seconds: float = 15) -> None:
        self.label, self.validation, self.seconds = label, validation, seconds
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self._means: dict[str, float] = {}
        self._validation = ""
        self._samples = 0
        self._start_step = 0
        self._start = self._spoken = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock and the bar."""
        self._start = self._spoken = time.monotonic()
        self._start_step, self._samples = trainer.global_step, 0
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.progress.add_task(
                self.label, total=trainer.max_steps, completed=trainer.global_step, numbers=""
            )
            self.progress.start()

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Show the running means, and what a validation found."""
        self._samples += len(module.seen["clean"]) * trainer.world_size
        for key in ("loss", "psnr"):
            new = float(module.seen[key])
            if math.isfinite(new):
                self._means[key] = SMOOTHING * self._means.get(key, new) + (1 - SMOOTHING) * new
        if not trainer.is_global_zero:
            return
        if self.validation.result is not None:
            self._tell(self.validation.result)
        now = time.monotonic()
        if self.progress is not None:
            self.progress.update(
                self.progress.task_ids[0], completed=trainer.global_step, numbers=self._numbers(now)
            )
        elif now - self._spoken >= self.seconds or trainer.global_step == trainer.max_steps:
            self._spoken = now
            self._line(trainer, now)

    def _tell(self, found: Validated) -> None:
        self._validation = f"val {found.psnr:.2f} dB"
        self._print(
            f"step {found.step}: validation PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.4f} "
            f"(noisy {found.psnr_noisy:.2f} dB)"
        )

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take the bar down."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar down, whatever happened."""
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _numbers(self, now: float) -> str:
        means = self._means
        speed = self._samples / max(1e-9, now - self._start)
        parts = [f"loss {means['loss']:.4f}"] if "loss" in means else []
        parts += [f"PSNR {means['psnr']:.2f} dB"] if "psnr" in means else []
        return " ".join([*parts, f"{speed:.1f} samples/s", self._validation]).rstrip()

    def _line(self, trainer: pl.Trainer, now: float) -> None:
        done = trainer.global_step - self._start_step
        left = (trainer.max_steps - trainer.global_step) * (now - self._start) / max(1, done)
        step = f"{trainer.global_step}/{trainer.max_steps}"
        self._print(f"{self.label} {step} {self._numbers(now)}, {_clock(left)} left")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
