"""Batches whose loader processes die: in order, none lost, none twice; and an end when they go on dying."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from stan.config import Config, load
from stan.errors import TrainingError
from stan.training.loading import TrainingBatches


class Numbers(Dataset[Tensor]):
    """Sample n is the number n; loading one of `fatal` kills the process that does, once for each file there is."""

    def __init__(self, fatal: dict[int, Path] | None = None) -> None:
        self.fatal = fatal or {}

    def __getitem__(self, number: int) -> Tensor:
        if number in self.fatal and self.fatal[number].exists():
            self.fatal[number].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(number)


@pytest.fixture
def config() -> Config:
    return load("train/demo.yaml", ["data.batch_size=2"])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths are noticed after half a second, not after five."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))


def first(batches: TrainingBatches, count: int) -> list[int]:
    return [n for _, batch in zip(range(count), batches, strict=False) for n in batch.tolist()]


def test_a_death_does_not_interrupt_a_step(config: Config) -> None:
    batches = TrainingBatches(config, Numbers(), workers=1)
    held = iter(batches)
    next(held)
    (process,) = active_children()
    handler = signal.getsignal(signal.SIGCHLD)
    assert callable(handler)  # PyTorch's, which raises for processes that it watches
    process.kill()
    process.join()
    handler(signal.SIGCHLD, None)
    batches.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_death_costs_no_batch(
    config: Config, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture
) -> None:
    fatal = {}
    for number in (10, 17):
        (mark := tmp_path / str(number)).touch()
        fatal[number] = mark
    others = iter(DataLoader(Numbers(), batch_sampler=[[0]], num_workers=1))  # PyTorch watches these
    batches = TrainingBatches(config, Numbers(fatal), workers=workers, start=3)
    assert first(batches, 8) == list(range(6, 22))
    assert not any(mark.exists() for mark in fatal.values())
    assert capsys.readouterr().err.count("a loader process was killed") in (1, 2)  # two may die at once
    assert next(others).tolist() == [0]
    del others
    assert not active_children()


def test_loaders_that_go_on_dying_end_it_in_one_line(config: Config, tmp_path: Path) -> None:
    class Fatal(Numbers):
        def __getitem__(self, number: int) -> Tensor:
            os.kill(os.getpid(), signal.SIGKILL)
            return torch.tensor(number)

    with pytest.raises(TrainingError, match=r"killed.* 4 times within 100 batches: .*data\.workers=1"):
        first(TrainingBatches(config, Fatal(), workers=1), 1)


def test_an_error_of_the_data_is_passed_on(config: Config) -> None:
    class Damaged(Numbers):
        def __getitem__(self, number: int) -> Tensor:
            raise OSError("frame 3 is damaged")

    with pytest.raises(OSError, match="frame 3 is damaged") as held:
        first(TrainingBatches(config, Damaged(), workers=1), 1)
    assert held.traceback
    assert not active_children()


def test_closing_ends_the_loaders_while_their_batches_are_held(config: Config) -> None:
    held = iter(batches := TrainingBatches(config, Numbers(), workers=2))
    next(held)
    assert len(active_children()) == 2
    batches.close()
    assert not active_children()
    assert next(held, None) is None
