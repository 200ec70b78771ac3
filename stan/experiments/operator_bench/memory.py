"""Peak memory of one call, beyond what was held before it and what it returns.

On the GPU the caching allocator counts. On the CPU nothing in torch counts reliably (a kernel may take
scratch from anywhere), so the operating system does: a child process runs the call, with the allocator set to
give every block back at once, and reads the highest resident size since a mark (`/proc/self/clear_refs`). The
child also keeps a method that takes too much memory or time from harming the run: it is refused or killed,
and reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stan.experiments.operator_bench.cases import Case
from stan.experiments.operator_bench.methods import call, warm_up

OUT_OF_MEMORY = "out of memory"
_PR_SET_THP_DISABLE = 41  # linux/prctl.h: huge pages would round every block up to 2 MiB
_MESSAGES = ("can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")


@dataclass(frozen=True)
class Probe:
    """What a single call took: bytes beyond inputs and results, seconds; or why it did not run."""

    extra: int | None
    seconds: float | None
    problem: str | None = None


def available_memory() -> int:
    """Bytes that a new process can take now (`MemAvailable`)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable: the CPU memory of a call cannot be measured here")


def probe_cuda(name: str, case: Case, which: str) -> Probe:
    """Peak of torch's CUDA allocator over one call."""
    try:
        warm_up(name, case, "cuda")
        run = call(name, case, "cuda")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        results = run(which)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        extra = torch.cuda.max_memory_allocated() - before - _size(results)
        return Probe(max(extra, 0), seconds)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return Probe(None, None, _reason(error))


class Prober:
    """A child process that measures calls on the CPU; started when first needed, and again after one dies.

    Args:
        limit: bytes the child may hold.
        seconds: how long one call may take before the child is killed.
        threads: torch threads of the child.
    """

    def __init__(self, limit: int, seconds: float, threads: int) -> None:
        self.limit, self.seconds, self.threads = limit, seconds, threads
        self._child: subprocess.Popen[str] | None = None

    def probe(self, name: str, case: Case, which: str) -> Probe:
        """Run method `name` once in the child."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps({"name": name, "case": asdict(case), "which": which}) + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            self.close()
            return Probe(None, None, "the measuring process ended")
        if not select.select([child.stdout], [], [], self.seconds + 10)[0]:
            self.close()
            return Probe(None, None, f"over {self.seconds:g} s")
        line = child.stdout.readline()
        if not line:
            code = child.wait()
            self.close()
            return Probe(None, None, OUT_OF_MEMORY if code == -9 else f"the measuring process ended ({code})")
        probe = Probe(**json.loads(line))
        if probe.seconds is not None and probe.seconds > self.seconds:
            return Probe(probe.extra, probe.seconds, f"over {self.seconds:g} s")
        return probe

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._child = None

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            # The paths of this process: without them the child would look in the current folder first, and may
            # find another copy of this package there, with other kernels or none.
            program = (
                f"import sys; sys.path[:] = {sys.path!r}\n"
                f"from {__name__} import serve; serve({self.limit}, {self.threads})"
            )
            environment = dict(os.environ)
            environment.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
            self._child = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        return self._child


def _size(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _reason(error: Exception) -> str:
    text = str(error)
    return OUT_OF_MEMORY if any(message in text for message in _MESSAGES) else text.splitlines()[0][:200]


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure(name: str, case: Case, which: str) -> Probe:
    try:
        warm_up(name, case, "cpu")
        run = call(name, case, "cpu")
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the mark: the peak is counted from here
        before = _status("VmRSS")
        started = time.perf_counter()
        results = run(which)
        seconds = time.perf_counter() - started
        return Probe(max(_status("VmHWM") - before - _size(results), 0), seconds)
    except (RuntimeError, ValueError, NotImplementedError, MemoryError) as error:
        return Probe(None, None, _reason(error))


def serve(limit: int, threads: int) -> None:
    """Main loop of the child: a JSON task a line comes in, a JSON `Probe` a line goes out."""
    import resource

    torch.set_num_threads(threads)
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (limit + _status("VmData"), resource.RLIM_INFINITY))
    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        probe = _measure(task["name"], Case(**task["case"]), task["which"])
        print(json.dumps(asdict(probe)), flush=True)
