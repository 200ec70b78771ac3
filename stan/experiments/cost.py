"""What a call costs: processor time, and memory beyond what was held before."""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

NOTE = (
    "Times are processor seconds of all threads, which other work on the machine lengthens somewhat; memory is the "
    "growth of the resident size at its peak, result included, to about a megabyte."
)


@dataclass
class Cost:
    """Filled in when the block of `measured` ends.

    Attributes:
        seconds: processor time of all threads.
        elapsed: the time it took, seconds.
        peak: bytes; None where the system does not tell.
    """

    seconds: float = float("nan")
    elapsed: float = float("nan")
    peak: int | None = None


@contextlib.contextmanager
def measured(device: torch.device | str = "cpu") -> Iterator[Cost]:
    """Measure the block, in this process."""
    cost, gpu = Cost(), torch.device(device).type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if gpu else mark_peak()
    begun, started = time.process_time(), time.perf_counter()
    yield cost
    if gpu:
        torch.cuda.synchronize()
    cost.seconds, cost.elapsed = time.process_time() - begun, time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if gpu else status("VmHWM")
    if before is not None:
        cost.peak = max(0, (peak or before) - before)


def mark_peak() -> int | None:
    """Give unused memory back and begin to count the peak anew; the resident bytes, or None if that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return status("VmRSS")


def status(field: str) -> int | None:
    """What the system counts for this process, such as ``VmRSS`` or its peak ``VmHWM``, bytes; None where it does not.

    Not by `stan.inference.memory`: processes that measure shall start quickly and hold little.
    """
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return None
