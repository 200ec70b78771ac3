"""Train from scratch and fine-tune: a configuration in, a folder with checkpoints, logs and pictures out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stan import models
from stan.config import Config, to_dict, to_yaml
from stan.config.schema import Resumed
from stan.files import write_text
from stan.models import VideoDenoiser
from stan.training.checkpoints import BEST, LAST, Checkpoints
from stan.training.conditions import Condition
from stan.training.data_module import ClipsModule
from stan.training.health import Health
from stan.training.lock import only_training
from stan.training.module import DenoisingModule
from stan.training.optimizer import named_groups
from stan.training.progress import TrainingProgress
from stan.training.ranks import outside_rank, run_together, started_from_outside
from stan.training.record import TrainingLog, header, memory_gib, write_summary
from stan.training.resuming import Start, changed, plan_start, what_happens
from stan.training.stopping import CalmStop, StopNow
from stan.training.trainer import build_loggers, build_trainer, quiet_lightning
from stan.training.validation import Validation
from stan.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What one process of a training says when it is done; see `Fit`."""

    steps: int
    best_psnr: float | None
    interrupted: bool
    ended_early: bool


@dataclass(frozen=True)
class Fit(Outcome):
    """What a training left behind.

    Attributes:
        steps: optimiser steps done in all.
        best_psnr: the validation PSNR of the best checkpoint in dB, if there is one.
        interrupted: stopped by Ctrl-C before the last step.
        ended_early: stopped because validations no longer got better (``validation.patience``).
        output: the folder.
        seconds: time this call took.
        network: the trained network, averaged weights, in eval mode on the CPU.
    """

    output: Path
    seconds: float
    network: VideoDenoiser

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.output / LAST

    @property
    def best(self) -> Path | None:
        """The checkpoint of the highest validation PSNR."""
        path = self.output / BEST
        return path if self.best_psnr is not None and path.exists() else None


def build_network(config: Config) -> VideoDenoiser:
    """A fresh network, its weights drawn from ``config.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return models.build(config.model.name, **config.model.given)


def train(config: Config) -> Fit:
    """Train a network from scratch, or go on where the run in ``config.output`` stopped.

    Raises:
        StanError: for data, checkpoints or settings that cannot be used.
    """
    return fit(config, build_network(config), label="train")


def fit(
    config: Config,
    network: VideoDenoiser,
    *,
    label: str,
    optimizer_state: dict[str, Any] | None = None,
    replay: Sequence[Condition] = (),
) -> Fit:
    """Train ``network`` as the configuration says; the engine of :func:`train` and fine-tuning.

    Nothing is written before it is clear that training can begin.

    Args:
        config: the resolved configuration.
        network: starting weights.
        label: the word before the progress bar.
        optimizer_state: state of AdamW to start from; None starts afresh. A resumed run ignores it.
        replay: what earlier trainings undid, to be kept up.

    Raises:
        StanError: for what cannot be used, and for a training that cannot go on.
    """
    output = Path(config.output)
    started = time.monotonic()
    with quiet_lightning():
        trainer = build_trainer(config)
    device, devices = trainer.strategy.root_device, trainer.num_devices
    first = outside_rank() == 0  # that process tells and writes
    with only_training(output):
        start = plan_start(config, network)
        if first:
            if start.step >= config.trainer.max_steps:
                print(f"{start.path} has {start.step} steps already: raise trainer.max_steps to go on")
            named_groups(network, config.optimizer.rates, config.optimizer.lr)  # a wrong pattern is told here
            ClipsModule(config).prepare_data()
            print(header(config, network, start, device, devices), flush=True)
            if start.step < config.trainer.max_steps:
                write_text(output / "config.yaml", to_yaml(config))
        job = Job(config, network, label, start, optimizer_state, replay)
        if first and devices > 1 and not started_from_outside():
            outcome = run_together(job, devices, config.imports, output)
            network = models.load(output / LAST)
        else:
            outcome = job.run()
            network = job.network
    seconds = time.monotonic() - started
    return Fit(**vars(outcome), output=output, seconds=seconds, network=network)


@dataclass
class Job:
    """All that one process of a training needs; `network` is the trained one after `run`."""

    config: Config
    network: VideoDenoiser
    label: str
    start: Start
    optimizer_state: dict[str, Any] | None
    replay: Sequence[Condition]

    def run(self) -> Outcome:
        """Train, alone or as the rank that the environment says; leaves ``summary.json`` whatever happens."""
        config, output = self.config, Path(self.config.output)
        module = DenoisingModule(self.network, config, self.replay, self.optimizer_state)
        module.starts = self.start.starts
        validation = Validation(config.validation.every)
        checkpoints = Checkpoints(
            config, validation, anew=self.start.new_validation, comparable=self.comparable
        )
        health = Health(output, config.trainer.max_skips, checkpoints)
        log, stop = TrainingLog(output, config.trainer.log_every, health, validation), CalmStop()
        progress = TrainingProgress(self.label, validation)
        began = time.monotonic()
        ended = "failed"
        with quiet_lightning(), closing(ClipsModule(config)) as data:
            callbacks = [health, validation, checkpoints, progress, stop, log]
            trainer = build_trainer(config, callbacks, build_loggers(config))
            try:
                trainer.fit(module, datamodule=data, ckpt_path=self.start.path)
                done = trainer.global_step >= config.trainer.max_steps
                ended = "done" if done else "ended early" if checkpoints.ended_early else "interrupted"
            except (StopNow, SystemExit):  # Lightning's answer to Ctrl-C before the first step
                ended = "interrupted"
                raise KeyboardInterrupt from None
            except BaseException as error:
                ended = f"failed: {' '.join(str(error).split())}"[:700]
                raise
            finally:
                if trainer.is_global_zero and self.start.step < config.trainer.max_steps:
                    values = {
                        "ended": ended,
                        "steps": trainer.global_step,
                        "max_steps": config.trainer.max_steps,
                        "seconds": round(time.monotonic() - began, 2),
                        "skipped_steps": health.skipped,
                        "best": [{"psnr": psnr, "step": step} for psnr, step in checkpoints.best],
                        "newest": log.newest,
                        "network": self.network.name,
                        "parameters": sum(p.numel() for p in self.network.parameters()),
                        "device": str(trainer.strategy.root_device),
                        "processes": trainer.world_size,
                        "precision": config.trainer.precision,
                        "memory_gib": round(memory_gib(trainer.strategy.root_device), 3),
                        "starts": self.start.starts,
                        "version": __version__,
                    }
                    write_summary(output, values)
        self.network = module.best_network.cpu().eval()
        best_psnr = checkpoints.best[0][0] if checkpoints.best else None
        return Outcome(trainer.global_step, best_psnr, ended == "interrupted", checkpoints.ended_early)

    def comparable(self, settings: Mapping[str, Any]) -> bool:
        """Whether a best checkpoint in the output folder, of a run with these settings, counts for this one too."""
        path, now = self.start.path, to_dict(self.config)
        kinds = {what_happens(key) for key in changed(settings, now)}
        if path is not None and path.parent.resolve() == Path(self.config.output).resolve():
            return Resumed.MEASURED not in kinds
        # Killed before there was a last.ckpt, the same training comes to the same again.
        same = kinds <= {Resumed.APPLIED} and settings.get("model") == now["model"]
        return same and self.config.resume != "never"
