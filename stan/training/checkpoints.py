"""Checkpoints that survive anything: whole or not there, finite, and written between steps only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from stan.config import Config
from stan.errors import CheckpointError, TrainingError
from stan.files import replacing
from stan.training.module import DenoisingModule, StepCallback
from stan.training.validation import Validation

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder and renames: a checkpoint is whole or not there, and finite."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Check, save, flush to the disk, rename.

        Raises:
            TrainingError: for a state that holds NaN or infinite values.
            CheckpointError: if the file cannot be written; one of before is still there.
        """
        kept = f"; the {Path(path).name} of before is kept" if Path(path).exists() else ""
        states = {key: checkpoint.get(key) for key in ("weights", "state_dict", "optimizer_states")}
        if place := first_not_finite(states):
            raise TrainingError(
                f"training has diverged: {place} holds values that are not finite at step "
                f"{checkpoint.get('global_step')}, which is not saved{kept}; lower optimizer.lr or set "
                "optimizer.clip_norm"
            )
        file: _Watched | None = None
        try:
            with replacing(path) as opened:
                file = _Watched(opened)
                torch.save(checkpoint, file)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:  # torch's own writer hides the system's reason
            reason = file.error if file and file.error else error
            said = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
            raise CheckpointError(
                f"cannot write {path}: {' '.join(said.split())}{kept}; make room and run the same command again"
            ) from error


def first_not_finite(state: Any, place: str = "") -> str | None:
    """Where in nested tables and lists the first tensor with NaN or infinite values is; None if all are finite."""
    if isinstance(state, Tensor):
        return place if state.is_floating_point() and not bool(state.isfinite().all()) else None
    items: Any = ()
    if isinstance(state, Mapping):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    found = (first_not_finite(value, f"{place}.{key}" if place else str(key)) for key, value in items)
    return next((where for where in found if where is not None), None)


class _Watched:
    """A file that remembers the system's error."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return int(self.file.write(data))
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class Checkpoints(StepCallback):
    """Keeps ``last.ckpt`` (every so many steps and whenever training stops) and the best (highest PSNR).

    The best is ``best.ckpt``, those behind it ``best-2.ckpt`` and so on. Also ends a training that no longer gets
    better.

    Args:
        config: says where they go, how often ``last.ckpt`` is written, how many of the best are kept, and how many
            validations in a row without a better one end training.
        validation: whose results are compared.
        anew: forget the best of a resumed training, whose validation was another one; its file is set aside.

    Attributes:
        best: (PSNR, step) of those kept, best first.
        ended_early: whether patience ended this training.
    """

    def __init__(self, config: Config, validation: Validation, *, anew: bool) -> None:
        self.folder, self.validation, self.anew = Path(config.output), validation, anew
        self.every = config.trainer.checkpoint_every
        self.keep, self.patience = config.validation.keep, config.validation.patience
        self.best: list[tuple[float, int]] = []
        self.worse = 0
        self.ended_early = False
        self._saved_step = -1
        self._lost = False

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Write what is due; never in the middle of an accumulated step."""
        if not ends_step:
            return
        if self.validation.result is not None:
            self._compare(trainer, self.validation.result.psnr)
        if trainer.global_step % self.every == 0 and trainer.global_step != self._saved_step:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the final state."""
        self._save_last(trainer)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Write the state that an interrupted run resumes from, where it is a whole one."""
        if trainer.global_step > 0 and trainer.global_step != self._saved_step and not self._lost:
            self.keep_before_stop(trainer)

    def keep_before_stop(self, trainer: pl.Trainer) -> str:
        """Save the state without waiting for other processes, which may be gone; says what ``last.ckpt`` is then."""
        self._lost = True
        module = trainer.lightning_module
        assert isinstance(module, DenoisingModule)
        if module.whole:
            try:
                if trainer.is_global_zero:  # Trainer.save_checkpoint would wait for the other processes
                    state = trainer._checkpoint_connector.dump_checkpoint(False)
                    trainer.strategy.save_checkpoint(state, self.folder / LAST)
                return f"{self.folder / LAST} holds the state before them"
            except (CheckpointError, TrainingError):
                pass
        if (self.folder / LAST).exists():
            return f"{self.folder / LAST} still holds an earlier state"
        return "there is no checkpoint yet"

    def state_dict(self) -> dict[str, Any]:
        """The best scores so far, so that a resumed run does not replace a better checkpoint."""
        return {"best": [list(entry) for entry in self.best], "worse": self.worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best scores."""
        if self.anew:
            return
        if "best" in state_dict:
            self.best = [(float(psnr), int(step)) for psnr, step in state_dict["best"]]
            self.worse = int(state_dict["worse"])
        elif state_dict["best_psnr"] is not None:  # of before there were several
            self.best = [(state_dict["best_psnr"], state_dict["best_step"])]

    def _compare(self, trainer: pl.Trainer, psnr: float) -> None:
        better = not self.best or psnr > self.best[0][0]
        self.worse = 0 if better else self.worse + 1
        place = sum(psnr <= other for other, _ in self.best)
        if place < self.keep:
            self.best.insert(place, (psnr, trainer.global_step))
            self.best = self.best[: self.keep]
            if trainer.is_global_zero:
                self._make_room(place)
            trainer.save_checkpoint(self.folder / best_name(place))
        if self.patience and self.worse >= self.patience:
            self.ended_early = trainer.should_stop = True

    def _make_room(self, place: int) -> None:
        if self.anew:  # the best of another validation is not lost
            self.anew = False
            for index in range(99):
                if (before := self.folder / best_name(index)).exists():
                    os.replace(before, self.folder / f"{before.stem}-before{before.suffix}")
        for index in range(len(self.best) - 1, place, -1):
            if (before := self.folder / best_name(index - 1)).exists():
                os.replace(before, self.folder / best_name(index))

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        self._lost = True  # should writing fail: the same again would fail as well
        trainer.save_checkpoint(self.folder / LAST)
        self._lost = False


def best_name(place: int) -> str:
    """The file of the best (0), second best (1) ... checkpoint."""
    return BEST if place == 0 else f"best-{place + 1}.ckpt"
