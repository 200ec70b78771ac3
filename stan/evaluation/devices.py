"""Which device this process uses, and how many processes share an evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from stan.config import Config
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


def sharing(config: Config, device: torch.device, ranks: Ranks) -> int:
    """How many processes share this machine: those that are there, or those that this one is about to start."""
    return ranks.local_world if "WORLD_SIZE" in os.environ else device_count(config, device)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"environment variable {name}={text!r} should be a whole number") from None
