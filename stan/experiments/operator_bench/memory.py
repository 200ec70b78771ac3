"""Peak memory of one call, beyond what was held before it and what it returns.

On the GPU the caching allocator counts. On the CPU nothing in torch counts reliably (a kernel may take scratch from
anywhere), so the operating system does: a child process runs the call, with the allocator set to give every block back
at once, and reads the highest resident size since a mark (`/proc/self/clear_refs`). The child also keeps a method that
takes too much memory or time from harming the run: it is refused or killed, and reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from stan.experiments.cost import measured, status
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

    def probe(self, name: str, case: Case, which: str, device: str = "cpu") -> Probe:
        """Run method `name` once: in the child; on a GPU in this process."""
        if device != "cpu":
            return _measure(name, case, which, device)
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
            with contextlib.suppress(BrokenPipeError), self._child:  # waits for it and closes the pipes
                self._child.kill()
            self._child = None

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            # The paths of this process: without them the child would look in the current folder first, and may
            # find another copy of this package there, with other kernels or none.
            program = (
                f"import sys; sys.path[:] = {sys.path!r}\n"
                f"from {__name__} import serve; serve({self.limit}, {self.threads})"
            )
            thresholds = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            self._child = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **thresholds},
            )
        return self._child


def _measure(name: str, case: Case, which: str, device: str) -> Probe:
    try:
        warm_up(name, case, device)
        run = call(name, case, device)
        with measured(device) as cost:
            results = run(which)
        held = sum(tensor.numel() * tensor.element_size() for tensor in results)
        return Probe(None if cost.peak is None else max(cost.peak - held, 0), cost.elapsed)
    except (RuntimeError, ValueError, NotImplementedError, MemoryError) as error:
        short = isinstance(error, MemoryError) or any(words in str(error) for words in _MESSAGES)
        return Probe(None, None, OUT_OF_MEMORY if short else str(error).splitlines()[0][:200])


def serve(limit: int, threads: int) -> None:
    """Main loop of the child: a JSON task a line comes in, a JSON `Probe` a line goes out."""
    import resource

    torch.set_num_threads(threads)
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (limit + (status("VmData") or 0), resource.RLIM_INFINITY))
    for line in sys.stdin:
        task: dict[str, Any] = json.loads(line)
        probe = _measure(task["name"], Case(**task["case"]), task["which"], "cpu")
        print(json.dumps(asdict(probe)), flush=True)
