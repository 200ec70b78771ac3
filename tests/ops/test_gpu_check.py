"""The operator's benchmark runs where scripts/gpu_check.sh does: with torch, and little beside."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"av", "cv2", "filelock", "omegaconf", "PIL", "platformdirs", "safetensors"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""


def test_benchmark_needs_few_packages() -> None:
    """All of it but a run, and the one thing that it loads late."""
    pytest.importorskip("rich")
    program = (
        f"{BLOCKED}\nfrom stan.cli import bench\n"
        "from stan.experiments.operator_bench import bench, memory, methods, report\n"
        "assert bench._memory(bench.Settings(device='cuda')) == 0\n"
        "assert bench._memory(bench.Settings(memory=3)) == 3\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
