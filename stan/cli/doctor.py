"""``stan doctor``: what this installation is made of and what it can use."""

from __future__ import annotations

import argparse
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

HELP = "print versions, devices, and which operator backend is used and why not another"

DISTRIBUTION = "stan-video"
OF_DEVELOPERS = ("dev", "docs")
"""Extras without which no part of stan can do less."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    import torch
    from rich.console import Console
    from rich.table import Table

    import stan
    from stan.ops import backend

    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("stan", f"{stan.__version__} at {Path(stan.__file__).parent}")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in _packages():
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "not installed")
    table.add_row("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            memory = f"{gpu.total_memory / 2**30:.0f} GiB"
            table.add_row(f"cuda:{index}", f"{gpu.name}, {memory}, sm_{gpu.major}{gpu.minor}")
    else:
        build = torch.version.cuda
        reason = "torch is a CPU build" if build is None else f"torch has CUDA {build}"
        table.add_row("cuda", f"no device found ({reason})")
    for label, text in backend.report().items():
        table.add_row(label, str(text))
    console.print(table)
    return 0


def _packages() -> list[str]:
    """What stan needs or can use, as its own metadata says (`pyproject.toml`); without it, its own name."""
    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from its sources
        return [DISTRIBUTION]
    parts = [re.match(r"([\w.-]+)[^;]*(?:;.*\bextra == \W(\w+))?", line) for line in needed]
    return [part[1] for part in parts if part and part[2] not in OF_DEVELOPERS]
