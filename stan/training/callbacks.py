"""Checkpoints that survive anything, a calm way to stop, and pictures in the log."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from stan.files import replacing
from stan.training.module import DenoisingModule

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder and renames: a checkpoint is whole or not there."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save, flush to the disk, rename."""
        with replacing(path) as file:
            torch.save(checkpoint, file)


class Checkpoints(Callback):
    """Keeps ``last.ckpt`` (every so many steps and whenever training stops) and ``best.ckpt`` (highest PSNR).

    Args:
        folder: where they go.
        every: optimiser steps between writes of ``last.ckpt``.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.best_psnr: float | None = None
        self.best_step: int | None = None
        self._saved_step = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` when its time has come."""
        if trainer.global_step % self.every == 0 and trainer.global_step != self._saved_step:
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write ``best.ckpt`` when this validation beats all before it."""
        value = trainer.callback_metrics.get("val/psnr")
        if value is None or (self.best_psnr is not None and float(value) <= self.best_psnr):
            return
        self.best_psnr, self.best_step = float(value), trainer.global_step
        trainer.save_checkpoint(self.folder / BEST)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the final state."""
        self._save_last(trainer)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Write the state that an interrupted run resumes from."""
        if trainer.global_step > 0 and trainer.global_step != self._saved_step:
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, so that a resumed run does not replace a better checkpoint."""
        return {"best_psnr": self.best_psnr, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best_psnr, self.best_step = state_dict["best_psnr"], state_dict["best_step"]

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST)


class CalmStop(Callback):
    """On Ctrl-C or SIGTERM ends training after the step at hand, so that the saved state is a whole one.

    A second one interrupts at once.

    Attributes:
        stopped: whether one came.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Listen, in place of Lightning, whose own handlers would stop inside a step."""

        main = os.getpid()

        def stop(number: int, frame: FrameType | None) -> None:
            if os.getpid() != main:
                return  # a loader process, forked with this handler: the main process ends it
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate once more before it stops
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)

        self._previous = {number: signal.signal(number, stop) for number in self.SIGNALS}

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Give the signals their old meaning back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}


class Pictures(Callback):
    """After each validation, noisy, denoised and clean side by side: as PNG files and in the logger.

    Args:
        folder: receives ``step-000500-SEQUENCE-sigma30.png``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write and log the middle frames of the first clips."""
        assert isinstance(module, DenoisingModule)
        if not trainer.is_global_zero:
            return
        for clip, sigma, result in module.shown:
            middle = len(clip.clean) // 2
            frames = [result.noisy[middle], result.denoised[middle], clip.clean[middle].float() / 255]
            sheet = torch.cat(frames, dim=-1).clamp(0, 1)  # (3, H, 3 W)
            label = f"{clip.name}-sigma{sigma:g}"
            self._write(sheet, self.folder / f"step-{trainer.global_step:06d}-{label}.png")
            caption = f"noisy | denoised | clean, {result.psnr_noisy:.2f} -> {result.psnr:.2f} dB"
            for logger in trainer.loggers:
                _log_image(logger, label, sheet, caption, trainer.global_step)

    @staticmethod
    def _write(sheet: Tensor, path: Path) -> None:
        from torchvision.io import encode_png

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png((sheet * 255).round().byte()).numpy().tobytes())


def _log_image(logger: Any, label: str, sheet: Tensor, caption: str, step: int) -> None:
    """Hand a picture `(3, H, W)` to the loggers that take pictures (wandb and tensorboard)."""
    from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

    if isinstance(logger, WandbLogger):
        picture = (sheet * 255).round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)
        logger.log_image(f"validation/{label}", [picture], caption=[caption])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(f"validation/{label}", sheet, step)
