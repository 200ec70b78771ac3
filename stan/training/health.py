"""What is not finite: found before it is saved, kept for a look, counted until training must stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from stan.errors import TrainingError
from stan.files import replacing
from stan.training.checkpoints import Checkpoints
from stan.training.module import DenoisingModule, StepCallback


class Health(StepCallback):
    """Counts the steps that were skipped because a loss or gradient was not finite, and ends a training that is lost.

    The first batch of each row of such steps is written to the output folder.

    Args:
        folder: the output folder.
        most: skipped steps in a row after which training stops.
        checkpoints: keeps the state before training stops.

    Attributes:
        skipped: skipped steps in all, also those of earlier starts.
    """

    def __init__(self, folder: Path, most: int, checkpoints: Checkpoints) -> None:
        self.folder, self.most, self.checkpoints = folder, most, checkpoints
        self.skipped = self.row = 0
        self._kept: Path | None = None

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Look at the batch, and at the step where it ends one."""
        module.whole = True
        bad = not bool(module.seen["loss"].isfinite())
        if (bad or (ends_step and module.skipped)) and self.row == 0 and self._kept is None:
            self._kept = self._keep(trainer, module)
        if not ends_step:
            return
        if not module.skipped:
            self.row, self._kept = 0, None
            return
        self.skipped, self.row = self.skipped + 1, self.row + 1
        if self.row >= self.most:
            kept = self.checkpoints.keep_before_stop(trainer)
            raise TrainingError(
                f"training has diverged: the loss or a gradient was not finite in {self.row} steps in a row, up to "
                f"step {trainer.global_step} (each was skipped); {kept}; the first such batch is in {self._kept}; "
                f"lower optimizer.lr={module.config.optimizer.lr:g} or set optimizer.clip_norm"
            )

    def state_dict(self) -> dict[str, Any]:
        """The count, for resumed runs."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.skipped = state_dict["skipped"]

    def _keep(self, trainer: pl.Trainer, module: DenoisingModule) -> Path:
        """Write the batch at hand: `clean` (uint8), `noisy`, `sigma`, `loss`, `step`."""
        rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.folder / f"not_finite-step-{trainer.global_step:06d}{rank}.pt"
        with replacing(path) as file:
            torch.save({**module.seen, "step": trainer.global_step}, file)
        return path
