"""The reference keeps its memory bounded: measured as the peak of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from stan import ops

torch.set_num_threads(1)
name, rows, columns = sys.argv[1], int(sys.argv[2]), 128
random = torch.Generator().manual_seed(0)

def inputs(rows, columns):
    video = [torch.randn(1, 3, 16, rows, columns, generator=random) for _ in range(2)]
    if name == "search":
        flow = 3 * torch.randn(1, 3, 2, 2, rows, columns, generator=random)
        return [*(t.requires_grad_() for t in (*video, flow))], []
    places = (1, 1, 3, rows, columns, 10)
    match = torch.rand(places, generator=random), torch.randn((*places, 2), generator=random)
    return [*(t.requires_grad_() for t in (video[0], *match))], [torch.ones(places, dtype=torch.int32)]

def run(leaves, rest):
    if name == "search":
        result = ops.shifted_nls(*leaves, backend="reference").scores
    elif name == "gather":
        result = ops.gather(*leaves, *rest, patch=3, backend="reference")
    else:
        result = ops.scatter(*leaves, *rest, size=tuple(leaves[0].shape[3:]), backend="reference")
    result.sum().backward()
    return result

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

run(*inputs(12, 12))  # loads what is loaded on first use
leaves, rest = inputs(rows, columns)
before = peak()
run(leaves, rest)
print(peak() - before)
"""


def measured(name: str, rows: int) -> int:
    """Bytes by which the peak of a process grows during forward and backward on 3 frames of rows x 128."""
    fixed = {
        "MALLOC_MMAP_THRESHOLD_": "1000000"
    }  # freed tensors go back at once: the peak is that of live ones
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(rows)],
        env=os.environ | fixed,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts in the units of Linux")
@pytest.mark.parametrize("name", ["search", "gather", "scatter"])
def test_peak_memory(name: str) -> None:
    """A constant, and little for each query, where the 243 candidates of 16 channels would take 15552 bytes.

    The little: results (160), gradients (200), copies of the features and their gradients (256), places (80).
    """
    rows = 48
    queries = 3 * rows * 128
    assert measured(name, rows) < 80e6 + 800 * queries
