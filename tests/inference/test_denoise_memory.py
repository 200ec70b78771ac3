"""`denoise` where memory runs out."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stan.errors import StanError
from stan.flow import FlowPair
from stan.inference import TilePlan, denoise
from tests.inference.networks import StandIn
from tests.inference.videos import video


def test_out_of_memory_is_halved_and_retried_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    limit = 6 * 32 * 32

    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        if noisy[:, :, 0].numel() > limit:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"
            )
        return noisy

    noisy = video(20, 64, 100)
    with caplog.at_level(logging.WARNING, "stan.inference"):
        result = denoise(StandIn(core), noisy, tiles=TilePlan(8, 2, None, None, 16))
    assert (result - noisy).abs().max() < 1e-6
    lines = [record.getMessage() for record in caplog.records]
    assert 2 <= len(lines) <= 8
    assert all(
        line.startswith("out of memory; trying again in chunks of ") and "\n" not in line for line in lines
    )


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_to_the_end_is_an_error(error: Exception) -> None:
    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        raise error

    with pytest.raises(
        StanError, match=r"out of memory on cpu even in chunks of \d+ frames .* smaller model"
    ):
        denoise(StandIn(core), video(9, 64, 64), tiles=TilePlan(8, 2, None, None, 16))


def test_other_errors_pass_through() -> None:
    def core(noisy: Tensor, _: Tensor | None, __: FlowPair) -> Tensor:
        raise RuntimeError("the size of tensor a must match")

    with pytest.raises(RuntimeError, match="must match"):
        denoise(StandIn(core), video(2, 8, 8))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource limits are Linux's")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_real_memory_limit_is_survived(limit: str, tmp_path: Path) -> None:
    """A network that takes about 500 MiB for the whole frames, in a process that may not grow by more than
    200."""
    script = tmp_path / "limited.py"
    script.write_text(
        textwrap.dedent(f"""
        import logging, resource, torch
        torch.set_num_threads(1)
        from stan.inference import TilePlan, denoise
        from stan.inference.memory import process_memory
        from tests.inference.networks import StandIn
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        model = StandIn(lambda noisy, _, __: noisy.repeat(1, 1, 40, 1, 1)[:, :, 60:63] * 2)
        noisy = torch.rand(8, 3, 360, 384)
        denoise(model, noisy[:2, :, :64, :64], tiles=TilePlan(2, 0))
        used = process_memory()["VmSize" if {limit!r} == "RLIMIT_AS" else "VmData"]
        resource.setrlimit(resource.{limit}, (used + (200 << 20),) * 2)
        result = denoise(model, noisy, tiles=TilePlan(8, 2, None, None, 64), scenes=False)
        print(result.shape, float((result - 2 * noisy).abs().max()) < 1e-5)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([8, 3, 360, 384]) True\n"
    lines = done.stderr.strip().splitlines()
    assert lines
    assert all(line.startswith("out of memory; trying again in ") for line in lines), done.stderr
