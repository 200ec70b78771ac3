"""Sizes of memory: read, free, used by a piece of work, and run out of."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import torch

from stan.errors import ConfigError, StanError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(size: str | int | float) -> int:
    """Bytes of ``"4GiB"``, ``"512 MiB"``, ``"2GB"`` or a number of bytes.

    Raises:
        ConfigError: for anything else, or a size that is not positive.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?b|)\s*", str(size), re.IGNORECASE)
    try:
        count = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    except (ValueError, KeyError):
        count = 0.0
    if not 1 <= count < 2**63:
        raise ConfigError(
            f"memory={size!r} is no size; write for example 4GiB, 512MiB, 2GB or a number of bytes"
        )
    return int(count)


def format_size(count: float) -> str:
    """Bytes for a person: ``3.25 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:.0f} GiB"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`.

    On a GPU what the driver reports as free, and what torch holds in reserve. On the CPU what is available,
    within what the process's control group (a container, a batch job) and its resource limits (``ulimit -v``,
    ``-d``) leave.

    Raises:
        StanError: where neither is known.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    if device.type != "cpu":
        raise StanError(f"free memory of {device} is not known; give memory= or tiles=")
    bounds = [*_available(), *_group_limits(), *_resource_limits()]
    if not bounds:
        raise StanError("free memory of this system is not known; give memory= or tiles=")
    return max(0, min(bounds))


def _available() -> list[int]:
    if sys.platform.startswith("linux"):
        return [_table("/proc/meminfo").get("MemAvailable", 0)]
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    except (ValueError, OSError, AttributeError):
        return []


def process_memory() -> dict[str, int]:
    """What the system counts for this process, in bytes: ``VmRSS``, ``VmHWM`` (its peak), ``VmSize``,
    ``VmData``."""
    return _table("/proc/self/status")


def largest_so_far() -> int:
    """The largest resident size of this process until now, in bytes; 0 if it is not known."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _table(path: str) -> dict[str, int]:
    """The sizes in a /proc file of lines such as ``VmRSS:   1024 kB``, in bytes."""
    try:
        lines = re.findall(r"^(\w+):\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return {}
    return {name: int(count) * 1024 for name, count in lines}


def _group_limits() -> list[int]:
    """What the control groups this process is in leave, versions 1 and 2."""
    bounds = []
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        names = ("memory.max", "memory.current")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = root / path.strip("/")
        for group in (folder, *folder.parents):
            if group == root.parent:
                break
            try:
                limit, used = ((group / name).read_text().strip() for name in names)
                bounds.append(int(limit) - int(used))
            except (OSError, ValueError):  # no such file, or a limit of "max"
                continue
    return bounds


def _resource_limits() -> list[int]:
    try:
        import resource
    except ImportError:
        return []
    used = process_memory()
    bounds = []
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and name in used:
            bounds.append(limit - used[name])
    return bounds


def peak_allocation(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes that `work` holds at its peak, beyond what was held before: in torch, and on the CPU also in
    NumPy.

    On the CPU each allocation is reported by torch's profiler, those of NumPy by `tracemalloc` (the two peaks
    are added). Unlike the size of the process this is exact and repeatable, and sees nothing of what other
    threads do.

    Raises:
        StanError: for other devices, or while another profiler is running.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise StanError(f"memory on {device} cannot be measured; give tiles= instead of memory=")
    if torch.autograd._profiler_enabled():
        raise StanError("memory cannot be measured while a profiler is running; give tiles=")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes its own state to the terminal
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
            work()
        python = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    results = profile.kineto_results
    assert results is not None
    held = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak + python


_RAN_OUT = (
    "DefaultCPUAllocator",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "bad allocation",
    "out of memory",
    "Insufficient memory",
    "ALLOC_FAILED",
)
"""Words by which torch, its libraries and OpenCV say that memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whichever device and in whichever library."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch raises RuntimeError; OpenCV's error is an Exception of its own
    library = isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] == "cv2"
    return library and any(words in str(error) for words in _RAN_OUT)


def keep_heap() -> None:
    """Let the C library, where it is glibc, keep what is freed for what is allocated next, also large blocks.

    For a program that does nothing but denoise: it allocates the same large tensors for every frame, which are mapped,
    cleared and given back each time otherwise (half of the system time of `stan denoise` on 2 cores). What is free in
    the heap is not given back to other programs until `trim_heap`.
    """
    if _libc is not None and hasattr(_libc, "mallopt"):
        _libc.mallopt(_MMAP_THRESHOLD, 2**30)
        _libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        _libc.mallopt(_ARENA_MAX, 1)  # threads share what is kept


def trim_heap() -> None:
    """Give the free pages of the C library's heap back to the system, where it is glibc's.

    Between tiles, it keeps the heap from growing hole by hole (``docs/inference.md`` has figures).
    """
    if _libc is not None and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def _find_libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    except OSError:
        return None


_libc = _find_libc()
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Names of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX."""


def release_memory(device: torch.device) -> None:
    """Give back what is no longer in use, before a new attempt."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim_heap()
