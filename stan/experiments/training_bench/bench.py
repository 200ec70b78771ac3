"""One run of the training benchmark: the real trainer, step after step, then the loader alone."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from stan.config import Config, to_dict
from stan.data.synthetic import synthetic_clips
from stan.errors import StanError
from stan.experiments.machine import describe_machine
from stan.experiments.training_bench.measured import Clock, MeasuredModule
from stan.experiments.training_bench.timeline import PARTS, PHASES, Partition
from stan.ops import backend
from stan.source import source_hash
from stan.training.data_module import (
    Part,
    fits_memory,
    open_training_parts,
    training_samples,
)
from stan.training.fit import build_network
from stan.training.loading import TrainingBatches
from stan.training.trainer import build_trainer, quiet_lightning
from stan.version import __version__

WORKERS = (0, 1)
"""With how many loader processes the loader's own rate is measured."""

SYNTHETIC_CLIPS = 2
LEAST_SIZE = (160, 240)
LEAST_FRAMES = 10


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        steps: optimiser steps that are timed.
        warm: steps before them that are not.
        profiled: steps after them, under the profiler.
        own_data: train on the configuration's data, not on synthetic clips.
        operators: backends of the search operator, one after the other; None: the one that training takes.
        loader_seconds: time for each rate of the loader.
        operations: the costliest operations that are named.
    """

    steps: int = 20
    warm: int = 3
    profiled: int = 5
    own_data: bool = False
    operators: tuple[str | None, ...] = (None,)
    loader_seconds: float = 1.0
    operations: int = 30


@dataclass
class Row:
    """One network, trained as its configuration says.

    Attributes:
        model: the network's name.
        parameters: that learn.
        operator: the backend of the search.
        device: where it was trained.
        config: the resolved configuration.
        step_seconds: of each timed step.
        steps_per_second: timed steps over the time they took in all.
        samples_per_second: training clips.
        data_wait: share of that time in which the loop waited for data.
        cpu_seconds_per_step: processor time of the training process, all threads: it suffers less from other work on
            the machine than the clock does.
        peak_bytes: most memory of the timed steps: of the GPU, on a CPU of the whole process; None: not known.
        loader: samples a second by the number of loader processes, with nothing else to do.
        loader_times: the same in times of what training takes when it waits for no data.
        parts: each part's `share` of a step (they sum to 1), the `milliseconds` of a step that this is, and of these
            `forward`, `backward` and `other`.
        operations: the costliest, as `operation`, `part`, `phase`, `share`.
        device_busy: share of the profiled steps in which the GPU computed; 0 on a CPU.
        profiled_step_seconds: how long a step took under the profiler.
    """

    model: str
    parameters: int
    operator: str
    device: str
    config: dict[str, Any]
    step_seconds: list[float]
    steps_per_second: float
    samples_per_second: float
    data_wait: float
    cpu_seconds_per_step: float
    peak_bytes: int | None
    loader: dict[str, float]
    loader_times: dict[str, float]
    parts: dict[str, dict[str, float]]
    operations: list[dict[str, Any]]
    device_busy: float
    profiled_step_seconds: float


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, Any]
    settings: Settings
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": 1, **dataclasses.asdict(self)}


def run_bench(
    configs: Sequence[Config], settings: Settings, on_row: Callable[[Row], None] | None = None
) -> Report:
    """Measure every configuration; `on_row` is called as each is done.

    Raises:
        StanError: for data or settings that cannot be used.
    """
    rows = []
    for config in configs:
        fits_memory(config)
        parts = open_training_parts(config) if settings.own_data else synthetic_parts(config)
        for operator in settings.operators:
            with operator_of(operator):
                rows.append(_measure(config, parts, settings))
            if on_row is not None:
                on_row(rows[-1])
    kind = "cuda" if any(row.device.startswith("cuda") for row in rows) else "cpu"
    return Report(_machine(kind), settings, rows)


def synthetic_parts(config: Config) -> list[Part]:
    """The configuration's mixture over clips that are rendered in memory; how much a frame is shrunk plays no part."""
    data = config.data
    size = (max(LEAST_SIZE[0], data.crop), max(LEAST_SIZE[1], data.crop))
    frames = max(LEAST_FRAMES, data.frames)
    clips = synthetic_clips("train", SYNTHETIC_CLIPS, frames=frames, size=size, seed=config.seed)
    shared = [made.clip for made in clips]
    return [
        Part(list(shared), float(given.get("share", 1)), bool(given.get("still", False)))
        for given in data.parts or [{}]
    ]


@contextmanager
def operator_of(name: str | None) -> Iterator[None]:
    """The search operator's backend within a block; None leaves it.

    Raises:
        StanError: a backend that cannot be used here.
    """
    before = backend.DEFAULT
    if name is not None:
        try:
            backend.resolve(name)
        except ValueError as error:
            raise StanError(f"--operators: {error}") from None
        backend.DEFAULT = name
    try:
        yield
    finally:
        backend.DEFAULT = before


def _measure(config: Config, parts: Sequence[Part], settings: Settings) -> Row:
    clock = Clock(settings.warm, settings.steps, settings.profiled)
    options = dataclasses.replace(config.trainer, max_steps=clock.total, devices=1, nodes=1, strategy="auto")
    network = build_network(config)
    module = MeasuredModule(network, config)
    samples = training_samples(config, parts)
    with quiet_lightning():
        trainer = build_trainer(dataclasses.replace(config, trainer=options), [clock])
        device = trainer.strategy.root_device
        pinned = device.type == "cuda"
        loader = TrainingBatches(config, samples, workers=config.data.workers, pinned=pinned)
        try:
            trainer.fit(module, loader)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
    if clock.partition is None:  # or it just ends
        raise KeyboardInterrupt
    batch = config.data.batch_size
    rates = {
        str(workers): batch * _batches_per_second(
            TrainingBatches(config, samples, workers=workers, pinned=pinned), settings.loader_seconds
        )
        for workers in WORKERS
    }  # fmt: skip
    total = sum(clock.seconds)
    clips = batch * config.trainer.accumulate * settings.steps
    consumed = clips / max(1e-9, total - clock.waited)
    return Row(
        model=network.name,
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        operator=backend.in_use(torch.device(device.type)),
        device=str(device),
        config=to_dict(config),
        step_seconds=clock.seconds,
        steps_per_second=settings.steps / total,
        samples_per_second=clips / total,
        data_wait=clock.waited / total,
        cpu_seconds_per_step=clock.cpu_seconds / settings.steps,
        peak_bytes=clock.peak,
        loader=rates,
        loader_times={workers: rate / consumed for workers, rate in rates.items()},
        parts=by_part(clock.partition, total / settings.steps),
        operations=costliest(clock.partition, settings.operations),
        device_busy=clock.partition.device_busy,
        profiled_step_seconds=clock.partition.total / clock.partition.steps,
    )


def by_part(found: Partition, step_seconds: float) -> dict[str, dict[str, float]]:
    """The parts of a step, all of them, in times of an unprofiled step."""
    total = max(1e-12, found.total)
    shares: dict[str, dict[str, float]] = {part: dict.fromkeys(PHASES, 0.0) for part in PARTS}
    for label, seconds in found.seconds.items():
        shares[label.part][label.phase] += seconds / total
    table = {}
    for part, phases in shares.items():
        share = sum(phases.values())
        milliseconds = {phase: 1000 * step_seconds * value for phase, value in phases.items()}
        table[part] = {"share": share, "milliseconds": 1000 * step_seconds * share, **milliseconds}
    return table


def costliest(found: Partition, most: int) -> list[dict[str, Any]]:
    """The operations (on a GPU the kernels) that take the most time by themselves, with part and phase."""
    total = max(1e-12, found.total)
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    for label, value in found.seconds.items():
        seconds[label.operation or "(between operations)", label.part, label.phase] += value
    ranked = sorted(seconds.items(), key=lambda item: -item[1])[:most]
    return [
        {"operation": operation, "part": part, "phase": phase, "share": value / total}
        for (operation, part, phase), value in ranked
    ]


def _batches_per_second(loader: TrainingBatches, seconds: float) -> float:
    """The rate at which batches come when nobody is in the way; the first ones, which lie ready, do not count."""
    batches = iter(loader)
    for _ in range(1 + loader.ahead):
        next(batches)
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - began)


def _machine(kind: str) -> dict[str, Any]:
    import cv2
    import numpy

    return describe_machine(kind) | {
        "lightning": pl.__version__,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "stan": __version__,
        "source": source_hash("."),
    }
