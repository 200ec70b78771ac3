"""The real training step with ranges around its parts, and the callback that times and profiles it."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from stan import ops
from stan.config import Config
from stan.experiments.cost import mark_peak, status
from stan.experiments.training_bench.timeline import MARK, PHASE, RANGE, Partition, partition, recorded
from stan.flow import OffsetSource
from stan.models import VideoDenoiser
from stan.models.attention import Alignment
from stan.models.merge import Merge
from stan.models.window import WindowPart
from stan.registry import aggregations
from stan.training.module import DenoisingModule, StepCallback


def part_of(module: nn.Module) -> str | None:
    """The part that all of a module belongs to; None: its operations tell."""
    if isinstance(module, OffsetSource):
        return "flow"
    if isinstance(module, (Alignment, ops.ShiftedNLS, ops.Refine, ops.SearchFlow)):
        return "search"
    known = tuple(kind for kind in map(aggregations.__getitem__, aggregations) if isinstance(kind, type))
    if isinstance(module, (Merge, ops.Gather, ops.GatherStack, ops.Scatter, *known)):
        return "aggregation"
    return "window attention" if isinstance(module, WindowPart) else None


def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside a range of the profiler; outside of a profile that costs a microsecond or two."""

    @functools.wraps(function)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return ranged


class MeasuredModule(DenoisingModule):
    """`DenoisingModule` with the profiler's ranges around its parts, wrapped for good; it computes the same."""

    def __init__(self, model: VideoDenoiser, config: Config) -> None:
        super().__init__(model, config)
        for module in model.modules():
            if (part := part_of(module)) is not None:
                vars(module)["forward"] = within(RANGE + part, module.forward)
        if isinstance(self.loss, nn.Module):
            vars(self.loss)["forward"] = within(f"{RANGE}loss", self.loss.forward)
        else:
            self.loss = within(f"{RANGE}loss", self.loss)
        vars(self.degradation)["worsened"] = within(f"{RANGE}noise", self.degradation.worsened)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """See `DenoisingModule.training_step`."""
        with record_function(f"{PHASE}forward"):
            return super().training_step(batch, batch_idx)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """See `LightningModule.backward`."""
        with record_function(f"{PHASE}backward"):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `DenoisingModule.optimizer_step`, which runs the phases above inside of it."""
        with record_function(f"{RANGE}optimiser"):
            super().optimizer_step(*args, **kwargs)


class Clock(StepCallback):
    """Warms up, times steps as they are, then profiles some more.

    The clock is read when the device has nothing more to do.

    Args:
        warm: steps before the clock starts.
        steps: steps that are timed.
        profiled: steps that are profiled after them.

    Attributes:
        seconds: of each timed step.
        waited: seconds of the timed steps in which the loop waited for data.
        cpu_seconds: processor time of this process in the timed steps, all threads; loader processes are not in it.
        peak: the most memory used in the timed steps, bytes: of the GPU by torch, else of this process as a whole; None
            where the system does not tell.
        partition: the profiled steps; None until they are done.
    """

    def __init__(self, warm: int, steps: int, profiled: int) -> None:
        self.warm, self.steps, self.profiled = warm, steps, profiled
        self.seconds: list[float] = []
        self.waited = self.cpu_seconds = 0.0
        self.peak: int | None = None
        self.partition: Partition | None = None
        self._done = 0
        self._ended = self._step_began = self._cpu = 0.0
        self._profile: profile | None = None

    @property
    def total(self) -> int:
        """Steps in all; the first one under the profiler only warms it up."""
        return self.warm + self.steps + self.profiled + 1

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here: add the time it was waited for."""
        if self.warm <= self._done < self.warm + self.steps:
            self.waited += time.perf_counter() - self._ended

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Where a step ends: note its time, go over to the next stage."""
        device = module.device
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if ends_step:
            self._done += 1
            if self.warm < self._done <= self.warm + self.steps:
                self.seconds.append(now - self._step_began)
            if self._done == self.warm + self.steps:
                self.cpu_seconds = time.process_time() - self._cpu
                self.peak = torch.cuda.max_memory_allocated(device) if gpu else status("VmHWM")
                self._start_profile(device)
            elif self._profile is not None:
                self._mark(device)
            if self._done == self.warm:
                gc.collect()
                torch.cuda.reset_peak_memory_stats(device) if gpu else mark_peak()
                self._cpu = time.process_time()
            self._step_began = time.perf_counter()
        self._ended = time.perf_counter()

    def _start_profile(self, device: torch.device) -> None:
        gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.start()

    def _mark(self, device: torch.device) -> None:
        assert self._profile is not None
        with record_function(MARK):
            pass
        if self._done == self.total:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._profile.stop()
            self.partition = partition(recorded(self._profile))
            self._profile = None

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no profiler running."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
