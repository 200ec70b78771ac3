"""Batches for training, from loader processes that may be told to stop or be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import weakref
from collections.abc import Generator, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from stan.config import Config
from stan.data.sampling import StepSampler
from stan.errors import TrainingError

ENDLESS = 2**53  # the trainer's max_steps ends the run; a length of its own would end a resumed one too early


class TrainingBatches:
    """Endless batches of samples, in an order that depends on their numbers alone.

    A loader process that dies, as the system kills one when memory is short, costs nothing but time: the loaders
    are started anew at the batch that was not delivered.

    Args:
        config: the resolved configuration.
        samples: by number, see `stan.training.data_module.training_samples`.
        workers: loader processes; the batches do not depend on it.
        rank, world_size: which process of how many the batches are for.
        start: the first batch.
        pinned: lay them in memory from which a GPU copies quickly.

    Attributes:
        ahead: how many batches are loaded before they are asked for.
    """

    DEATHS = 3
    """So many in a row are mended; a loader that lived for `LIFE` batches ends the row."""
    LIFE = 100

    def __init__(
        self,
        config: Config,
        samples: Dataset[Tensor],
        *,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        pinned: bool = False,
    ) -> None:
        self._batch, self._samples, self._workers = config.data.batch_size, samples, workers
        self._rank, self._world_size, self._start, self._pinned = rank, world_size, start, pinned
        self.ahead = 2 * workers
        self._running: weakref.WeakSet[Generator[Tensor, None, None]] = weakref.WeakSet()

    def __iter__(self) -> Iterator[Tensor]:
        """Batches from the first one on.

        Raises:
            TrainingError: when loader processes go on dying.
        """
        batches = self._steadily()
        self._running.add(batches)
        return batches

    def close(self) -> None:
        """End all loader processes, whoever still holds what `__iter__` gave."""
        for batches in list(self._running):
            batches.close()

    def _steadily(self) -> Generator[Tensor, None, None]:
        at, deaths = self._start, 0
        while True:
            begun, (batches, processes) = at, self._loaders(at)
            try:
                for batch in batches:
                    yield batch
                    at += 1
            except (RuntimeError, OSError, EOFError) as error:
                # The processes of a loader hand over their batches through sockets: when one dies, what the trainer
                # sees first is one of several errors.
                if (dead := _dead(processes)) is None:
                    raise
                for process in processes:  # which may wait for what the dead one held
                    process.kill()
                deaths = deaths + 1 if at - begun < self.LIFE else 1
                why = f"a loader process {_way(dead)}"
                if deaths > self.DEATHS:
                    raise TrainingError(
                        f"{why}, {deaths} times within {self.LIFE} batches: give it more memory, lower data.workers="
                        f"{self._workers} (0 loads in the trainer itself) or the sizes of a batch"
                    ) from error
                print(f"\n{why}: the loaders are started anew, nothing is lost", file=sys.stderr)
            finally:  # at once, though a traceback may hold the batches for long
                if isinstance(batches, _MultiProcessingDataLoaderIter):
                    batches._shutdown_workers()

    def _loaders(self, start: int) -> tuple[Iterator[Tensor], list[BaseProcess]]:
        """Batches from `start` on, and the processes that load them."""
        sampler = StepSampler(
            self._batch, rank=self._rank, world_size=self._world_size, start_step=start, steps=ENDLESS
        )
        loader: DataLoader[Tensor] = DataLoader(
            self._samples,
            batch_sampler=sampler,
            num_workers=self._workers,
            prefetch_factor=self.ahead // self._workers if self._workers else None,
            pin_memory=self._pinned,
            persistent_workers=self._workers > 0,
            worker_init_fn=_outlive_a_signal if self._workers else None,
        )
        if not self._workers:
            return iter(loader), []
        before = set(multiprocessing.active_children())
        batches = iter(loader)
        assert isinstance(batches, _MultiProcessingDataLoaderIter)
        # PyTorch raises an error in the middle of a step when a process that it has listed dies; here it is noticed at
        # the next batch.
        _remove_worker_pids(id(batches))
        batches._worker_pids_set = False
        return batches, [child for child in multiprocessing.active_children() if child not in before]


def _outlive_a_signal(worker: int) -> None:
    """Let a loader process outlive Ctrl-C, and one SIGTERM.

    What stops all processes of a job, as a terminal, `timeout` and systemd do, must not take the next batch from a
    trainer that finishes its step. The trainer ends its loaders; a second SIGTERM does too.
    """
    came: list[int] = []

    def once(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(1)
        came.append(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)


def _dead(processes: list[BaseProcess]) -> BaseProcess | None:
    """One of them that has ended, or ends within a second."""
    for process in processes:
        process.join(1 / len(processes))
    return next((process for process in processes if not process.is_alive()), None)


def _way(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return "was killed, as a system does that is short of memory"
    return f"died of signal {-code}" if code < 0 else f"ended with code {code}"
