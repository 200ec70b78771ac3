"""What figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

from stan.device import processor


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures were measured on: processor or GPU, versions, threads, date."""
    machine: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "load": os.getloadavg()[0],  # of others too: figures of a busy machine are worth less
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        machine["gpu"] = properties.name
        machine["gpu_capability"] = f"{properties.major}.{properties.minor}"
        machine["gpu_multiprocessors"] = properties.multi_processor_count
        machine["cuda"] = torch.version.cuda
    return machine


def machine_words(machine: dict[str, Any]) -> str:
    """Device, versions and date, in one phrase."""
    device = machine.get("gpu", f"{machine['processor']}, {machine['threads']} threads")
    cuda = f", CUDA {machine['cuda']}" if "cuda" in machine else ""
    return f"{device}; torch {machine['torch']}{cuda}, Python {machine['python']}, {machine['date']}"
