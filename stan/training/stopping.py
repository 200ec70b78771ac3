"""A calm way to stop: on a signal, after the step at hand, in all processes of a training at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from stan.training.module import DenoisingModule, StepCallback


class StopNow(BaseException):
    """A second signal: stop without waiting for the step at hand."""


class CalmStop(StepCallback):
    """On Ctrl-C or SIGTERM ends training after the step at hand, so that the saved state is a whole one.

    A signal that reaches one process of several stops all of them after the same step. A second one interrupts
    at once.

    Attributes:
        stopped: whether one came.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopped = self._asked = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Listen, in place of Lightning, whose own handlers would stop inside a step."""
        main = os.getpid()

        def stop(number: int, frame: FrameType | None) -> None:
            if os.getpid() != main:
                return  # a loader process, forked with this handler: the main process ends it
            if self._asked:
                raise StopNow
            self._asked = True
            if trainer.world_size == 1:
                self._tell()

        self._previous = {number: signal.signal(number, stop) for number in self.SIGNALS}

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Agree with the other processes, between two steps."""
        if not ends_step:
            return
        stop = self._asked
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            self.stopped = trainer.should_stop = True
            if trainer.world_size > 1 and trainer.is_global_zero:
                self._tell()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Give the signals their old meaning back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}

    @staticmethod
    def _tell() -> None:
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)
