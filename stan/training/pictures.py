"""Pictures of each validation: as files and in the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torchvision.io import encode_png

from stan.training.validation import Validated


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
