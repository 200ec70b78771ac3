"""Helper processes: with ``trainer.devices`` above one, an evaluation starts its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import IO

import torch

from stan.config import Config, to_dict
from stan.evaluation.devices import device_count


class Helpers:
    """The processes beside this one, on the other devices of this machine; they end with the block.

    Each is a process of its own with RANK, LOCAL_RANK and WORLD_SIZE set, as torchrun would start it. Where
    such variables are set already, somebody else has started the others, and none is started here.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.world = 1 if "WORLD_SIZE" in os.environ else device_count(config, device)
        self.processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Helpers:
        threads = str(max(1, (os.cpu_count() or 1) // self.world))
        for rank in range(1, self.world):
            environment = {"OMP_NUM_THREADS": threads, **os.environ}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= {"WORLD_SIZE": str(self.world), "LOCAL_WORLD_SIZE": str(self.world)}
            errors = tempfile.TemporaryFile()
            process = subprocess.Popen(
                [sys.executable, "-m", "stan.evaluation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
            )
            assert process.stdin is not None
            with process.stdin as pipe:
                pipe.write(json.dumps(to_dict(self.config)).encode())
            self.processes.append((process, errors))
        return self

    def __exit__(self, *exception: object) -> None:
        for process, errors in self.processes:
            process.terminate()
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
