"""Which device this process uses, and the helper processes that share an evaluation on the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

import torch

from stan.config import Config, to_dict
from stan.device import choose
from stan.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: number of this process.
        world: how many there are.
        local_rank: number of this process on its machine.
        local_world: how many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        """As torchrun, Lightning and SLURM scripts set them in the environment."""
        world = _number("WORLD_SIZE", 1)
        rank = _number("RANK", 0)
        return cls(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))


def pick_device(config: Config, ranks: Ranks) -> torch.device:
    """The device of this process, from ``trainer.accelerator``, ``trainer.devices`` and the local rank.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    device, listed = choose(config.trainer.accelerator), config.trainer.devices
    if device.type != "cuda":
        return device
    cuda = torch.cuda.device_count()
    if not isinstance(listed, list) or not listed:
        return torch.device("cuda", ranks.local_rank % cuda)
    index = listed[ranks.local_rank % len(listed)]
    if not 0 <= index < cuda:
        raise ConfigError(f"trainer.devices={listed}: this machine has CUDA devices 0 to {cuda - 1}")
    return torch.device("cuda", index)


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


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"environment variable {name}={text!r} should be a whole number") from None
