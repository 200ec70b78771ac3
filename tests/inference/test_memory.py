from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch

from stan.errors import ConfigError, StanError
from stan.inference import memory
from stan.inference.memory import (
    format_size,
    free_memory,
    is_out_of_memory,
    parse_size,
    peak_allocation,
    process_memory,
)

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30),
        ("512MiB", 512 << 20),
        (" 1.5 GiB ", 3 << 29),
        ("2GB", 2 * 10**9),
        ("2gb", 2 * 10**9),
        ("64KiB", 65536),
        ("100", 100),
        (123456, 123456),
        (2e9, 2 * 10**9),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_read(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "4 G", "-1GiB", "0", "0.1B", "4GiBB", "1.2.3MB", "nan", "inf", "9e99GB", "ten"]
)
def test_what_is_no_size_gets_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_sizes_are_written() -> None:
    assert [format_size(n) for n in (5, 1536, 1010 * MIB, 4 << 30, 2000 << 30)] == [
        "5 B",
        "1.5 KiB",
        "0.986 GiB",
        "4 GiB",
        "2000 GiB",
    ]


def test_peak_counts_what_is_held_together() -> None:
    def work() -> None:
        a = torch.zeros(10 * MIB, dtype=torch.uint8)
        b = torch.ones(20 * MIB, dtype=torch.uint8)
        del a, b
        torch.zeros(25 * MIB, dtype=torch.uint8)

    assert peak_allocation(CPU, work) == pytest.approx(30 * MIB, rel=0.02)


def test_peak_counts_numpy_and_only_what_is_new() -> None:
    kept = np.ones(50 * MIB, np.uint8), torch.ones(50 * MIB, dtype=torch.uint8)
    assert peak_allocation(CPU, lambda: np.ones(8 * MIB, np.uint8)) == pytest.approx(8 * MIB, rel=0.05)
    assert peak_allocation(CPU, lambda: None) < MIB
    del kept


def test_peak_is_repeatable() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.PReLU(), torch.nn.Conv2d(16, 16, 3)).eval()
    video = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        net(video)
        peaks = [peak_allocation(CPU, lambda: net(video)) for _ in range(3)]
    assert max(peaks) - min(peaks) < 0.05 * max(peaks)


def test_no_second_profiler() -> None:
    with (
        torch.autograd.profiler.profile(use_kineto=False),
        pytest.raises(StanError, match="profiler"),
    ):
        peak_allocation(CPU, lambda: None)


def test_only_known_devices_are_measured() -> None:
    with pytest.raises(StanError, match="meta"):
        peak_allocation(torch.device("meta"), lambda: None)
    with pytest.raises(StanError, match="meta"):
        free_memory(torch.device("meta"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_free_memory_is_what_the_system_says_and_what_limits_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    available = memory._available()[0]
    assert 0 < free_memory(CPU) <= available * 1.2
    used = process_memory()["VmSize"]
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (used + 100 * MIB, -1) if kind == resource.RLIMIT_AS else (-1, -1)
    )
    assert free_memory(CPU) <= 101 * MIB


def test_every_way_to_say_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as torch_says:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpy_says:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(torch_says.value)
    assert is_out_of_memory(numpy_says.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(cv2.error("(-4:Insufficient memory) Failed to allocate 99 bytes"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(cv2.error("(-215:Assertion failed)"))
