"""Checkpoints that survive anything: whole or not there, finite, and written between steps only."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from stan.config import Config
from stan.errors import CheckpointError, TrainingError
from stan.files import replacing
from stan.models.checkpoint import read
from stan.training.module import DenoisingModule, StepCallback
from stan.training.validation import Validation

LAST, BEST = "last.ckpt", "best.ckpt"

Score = tuple[float, int]
"""The PSNR (dB) of a validation, and its step."""


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

    The best is ``best.ckpt``, those behind it ``best-2.ckpt`` and so on. Which there are, the files say, each of
    itself: a state travels to other folders, and that of ``last.ckpt`` may be older than they, or written under other
    settings. Also ends a training that no longer gets better.

    Args:
        config: says where they go, how often ``last.ckpt`` is written, how many of the best are kept, and how many
            validations in a row without a better one end training.
        validation: whose results are compared.
        anew: forget how good a resumed training was, whose validation was another one.
        comparable: whether the best of a training with such settings, found in the folder, is one of this training;
            others are set aside.

    Attributes:
        best: those kept, best first.
        highest: the PSNR that the next validation must exceed, be its checkpoint here or not.
        worse: validations in a row that did not.
        ended_early: whether patience ended this training.
    """

    def __init__(
        self,
        config: Config,
        validation: Validation,
        *,
        anew: bool,
        comparable: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self.folder, self.validation = Path(config.output), validation
        self.anew, self.comparable = anew, comparable
        self.every = config.trainer.checkpoint_every
        self.keep, self.patience = config.validation.keep, config.validation.patience
        self.best: list[Score] = []
        self.highest: float | None = None
        self.worse = 0
        self.ended_early = False
        self._found: list[Path] = []  # the files of `best`
        self._others: list[Path] = []
        self._saved_step = -1
        self._lost = False

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look which of the best lie in the folder; the first process does for all."""
        if trainer.is_global_zero:
            self._look()
        self.best = trainer.strategy.broadcast(self.best)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Set aside what cannot be compared; end what a killed run was about to rename."""
        if trainer.is_global_zero:
            for path in self._others:
                os.replace(path, path.with_stem(f"{path.stem}-before"))
            self._arrange(self._found)

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
        """The best scores so far, that of this state among them where it is one."""
        return {"best": [list(score) for score in self.best], "worse": self.worse, "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore how good the training was. Which of its best are here is looked up."""
        if not self.anew:
            scores = [psnr for psnr, _ in _scores(state_dict)]
            self.highest = state_dict.get("highest", max(scores, default=None))
            self.worse = int(state_dict.get("worse", 0))

    def _look(self) -> None:
        found: list[tuple[Score, Path]] = []
        for path in self.folder.glob("best*.ckpt"):
            if not re.fullmatch(r"best(-\d+)?", path.stem):
                continue
            try:
                settings = read(path)[1].get("config") or {}
            except CheckpointError:
                continue  # damaged: stays until another needs its name
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            scores = _scores(content.get("callbacks", {}).get(self.state_key, {}))
            own = [score for score in scores if score[1] == content["global_step"]]
            if own and self.comparable(settings):
                found.append((own[0], path))
            elif own:
                self._others.append(path)
        found.sort(key=_ranking)
        self.best, self._found = [score for score, _ in found], [path for _, path in found]

    def _compare(self, trainer: pl.Trainer, psnr: float) -> None:
        better = self.highest is None or psnr > self.highest
        self.highest = psnr if better else self.highest
        self.worse = 0 if better else self.worse + 1
        self._keep_best(trainer, (psnr, trainer.global_step))
        if self.patience and self.worse >= self.patience:
            self.ended_early = trainer.should_stop = True

    def _keep_best(self, trainer: pl.Trainer, new: Score) -> None:
        """Save the state at hand if it is one of the best: beside those of before, which then make room.

        Of a step that a killed run has validated already, the better one stays.
        """
        before = self.best
        known = [(score, self.folder / best_name(place)) for place, score in enumerate(before)]
        here = (new, self._unused_name(len(known)))
        ranked = sorted([*known, here], key=_ranking)
        steps = [step for (_, step), _ in ranked]
        kept = [pair for place, pair in enumerate(ranked) if steps[place] not in steps[:place]][: self.keep]
        self.best = [score for score, _ in kept]
        if here in kept:
            try:
                trainer.save_checkpoint(here[1])
            except BaseException:
                self.best = before
                raise
        if trainer.is_global_zero:
            named = self._arrange([path for _, path in kept])
            for _, path in ranked:
                if path not in named:
                    path.unlink(missing_ok=True)

    def _arrange(self, files: list[Path]) -> list[Path]:
        """Give these, best first, the names of their places; cut short, each still has the name of some place."""
        files = list(files)
        for place in range(len(files)):
            target = self.folder / best_name(place)
            if files[place] == target or not files[place].exists():
                continue
            if target in files[place + 1 :] and target.exists():
                away = self._unused_name(len(files))
                os.replace(target, away)
                files[files.index(target)] = away
            os.replace(files[place], target)
            files[place] = target
        return files

    def _unused_name(self, place: int) -> Path:
        paths = (self.folder / best_name(other) for other in itertools.count(place))
        return next(path for path in paths if not path.exists())

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        self._lost = True  # should writing fail: the same again would fail as well
        trainer.save_checkpoint(self.folder / LAST)
        self._lost = False


def best_name(place: int) -> str:
    """The file of the best (0), second best (1) ... checkpoint."""
    return BEST if place == 0 else f"best-{place + 1}.ckpt"


def _ranking(pair: tuple[Score, Path]) -> Score:
    """Sorts the best first; of equal ones, the earlier."""
    psnr, step = pair[0]
    return -psnr, step


def _scores(state: Mapping[str, Any]) -> list[Score]:
    """The best scores in a state of `Checkpoints`."""
    if state.get("best_psnr") is not None:  # of before there were several
        return [(float(state["best_psnr"]), int(state["best_step"]))]
    return [(float(psnr), int(step)) for psnr, step in state.get("best", [])]
