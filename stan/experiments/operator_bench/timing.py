"""Time on CPU or GPU: methods in turn, medians; and the machine's own ceilings, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Best rates seen on this device in this run: float32 operations and bytes moved per second."""

    flops: float
    bandwidth: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that this much work must take here, whichever of arithmetic and memory is slower."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure_ceilings(device: str) -> Ceilings:
    """Float32 multiply-adds in a matrix product (TensorFloat-32 off) and a large copy, best of several."""
    precise = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        side = 1536 if device == "cpu" else 8192
        a = torch.randn(side, side, device=device)
        b = torch.randn(side, side, device=device)
        out = torch.empty_like(a)
        product = min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(7))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = precise
    count = 2**26 if device == "cpu" else 2**30  # 256 MiB, past any cache; 4 GiB on a GPU
    if device != "cpu":
        count = min(count, torch.cuda.mem_get_info()[0] // 16)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    copied = min(seconds(lambda: target.copy_(source), device) for _ in range(7))
    return Ceilings(2 * side**3 / product, 8 * count / copied)


def seconds(run: Callable[[], object], device: str) -> float:
    """Duration of one call: a wall clock on the CPU, events in the stream on the GPU."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(2_000_000)  # about a millisecond: Python gets ahead, so that its launches cost nothing
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def alternate(
    runs: Mapping[str, Callable[[], object]], device: str, budget: float, most: int = 101
) -> dict[str, list[float]]:
    """Time every function in turn, round after round, so that a drift of the machine meets all alike.

    Args:
        runs: the calls by name.
        budget: seconds for each; at least one round is run, and a call stops being repeated once its own
            total passes the budget (the fast ones go on to their own).
        most: rounds at most.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(most):
        waiting = [name for name in runs if sum(taken[name]) < budget or len(taken[name]) < 1]
        if not waiting:
            break
        for name in waiting:
            taken[name].append(seconds(runs[name], device))
    return taken
