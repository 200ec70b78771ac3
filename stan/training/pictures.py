"""Pictures of each validation: as files and in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from stan.training.validation import Validation


class Pictures(Callback):
    """After each validation, noisy, denoised and clean side by side: as PNG files and in the logger.

    Args:
        folder: receives ``step-000500-SEQUENCE-sigma30.png``.
        validation: whose results are drawn.
    """

    def __init__(self, folder: Path, validation: Validation) -> None:
        self.folder, self.validation = folder, validation

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write and log the middle frames of the first clips."""
        found = self.validation.result
        if found is None or not trainer.is_global_zero:
            return
        for clip, sigma, result in found.shown:
            middle = len(clip.clean) // 2
            frames = [result.noisy[middle], result.denoised[middle], clip.clean[middle].float() / 255]
            sheet = torch.cat(frames, dim=-1).clamp(0, 1)  # (3, H, 3 W)
            label = f"{clip.name}-sigma{sigma:g}"
            self._write(sheet, self.folder / f"step-{found.step:06d}-{label}.png")
            caption = f"noisy | denoised | clean, {result.psnr_noisy:.2f} -> {result.psnr:.2f} dB"
            for logger in trainer.loggers:
                _log_image(logger, label, sheet, caption, found.step)

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
