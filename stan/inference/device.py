"""Which device a network runs on."""

from __future__ import annotations

import torch

from stan.errors import ConfigError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device called ``name``, found to work; ``"auto"`` is a GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or cannot compute on it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that it lacks
        reason = str(error).splitlines()[0]
        if "device type" in reason or "device string" in reason:
            reason = "torch knows no such device, only cpu, cuda, cuda:1 and the like"
        elif str(name).startswith("meta"):
            reason = "it computes shapes only"
        raise ConfigError(f"device {str(name)!r} cannot be used: {reason}; see `stan doctor`") from None
    return device
