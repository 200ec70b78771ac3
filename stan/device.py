"""Which device to compute on, from the name that a person gives; what the processor is called."""

from __future__ import annotations

import platform

import torch

from stan.errors import ConfigError


def choose(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`, tried out.

    Args:
        name: ``auto`` (a GPU if there is one, else the CPU), ``gpu``, or torch's name: ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        ConfigError: a device that is not known or cannot be used here.
    """
    wanted = name
    if name in ("auto", "gpu"):
        wanted = "cuda" if name == "gpu" or torch.cuda.is_available() else "cpu"
        if name == "gpu" and not torch.cuda.is_available() and torch.backends.mps.is_available():
            wanted = "mps"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if "device type" in reason or "device string" in reason:
            reason = "torch knows no such device, only cpu, cuda, cuda:1 and the like"
        raise ConfigError(f"device {str(name)!r} cannot be used: {reason}; see `stan doctor`") from None
    if device.type == "meta":
        raise ConfigError(f"device {str(name)!r} cannot be used: it computes nothing; see `stan doctor`")
    return device


def processor() -> str:
    """What the maker calls the CPU; its kind, where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = [platform.processor()]
    return next(filter(None, names), platform.machine())
