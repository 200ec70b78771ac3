"""Helper processes: with ``trainer.devices`` above one, an evaluation starts its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, TYPE_CHECKING

import torch

from stan.errors import ConfigError

if TYPE_CHECKING:
    from stan.config import Config
    from stan.evaluation.plan import Plan


class Helpers:
    """The processes beside this one, on the other devices of this machine; they end with the block.

    Each is a process of its own with RANK, LOCAL_RANK and WORLD_SIZE set, as torchrun would start it. Where
    such variables are set already, somebody else has started the others, and none is started here.

    Args:
        config: the configuration.
        plan: what there is to do.
    """

    def __init__(self, config: Config, plan: Plan) -> None:
        self.config = config
        self.count = 0
        if "WORLD_SIZE" not in os.environ:
            self.count = device_count(config, plan.device) - 1
        self.processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Helpers:
        from stan.config import to_dict

        world = self.count + 1
        text = json.dumps(to_dict(self.config)).encode()
        for rank in range(1, world):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "OMP_NUM_THREADS": os.environ.get(
                    "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world))
                ),
            }
            errors = tempfile.TemporaryFile()
            process = subprocess.Popen(
                [sys.executable, "-m", "stan.evaluation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
            )
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.close()
            self.processes.append((process, errors))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, errors in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()
            errors.close()

    def failures(self) -> list[str]:
        """Wait for the helpers; a line for each that did not end well (its work was done by the others)."""
        lines = []
        for rank, (process, errors) in enumerate(self.processes, 1):
            if process.wait() != 0:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                lines.append(
                    f"helper process {rank} ended with code {process.returncode}: {said[-1] if said else ''}"
                )
        return lines


def device_count(config: Config, device: torch.device) -> int:
    """How many processes ``trainer.devices`` asks for on this machine.

    Raises:
        ConfigError: not a number, a list of indices, or auto.
    """
    wanted = config.trainer.devices
    if wanted in ("auto", None, -1):
        return max(1, torch.cuda.device_count()) if device.type == "cuda" else 1
    if isinstance(wanted, str) and wanted.isdigit():
        wanted = int(wanted)
    count = len(wanted) if isinstance(wanted, list) else wanted
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(
            f"trainer.devices={wanted!r} should be a number from 1 up, a list of indices, or auto"
        )
    if device.type == "cuda" and not isinstance(wanted, list) and count > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={count}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and count > 1:
        raise ConfigError(f"trainer.devices={wanted!r}: this machine has one such device")
    return count
