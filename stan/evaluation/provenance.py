"""Which program made a figure: versions, commit, and a hash of the source that figures depend on."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stan.source import PACKAGE, source_hash
from stan.version import __version__

_FOLDERS = ("ops", "flow", "models", "data", "inference")
_FILES = tuple(f"evaluation/{name}.py" for name in ("measure", "methods", "metrics", "protocols", "strred"))
_LIBRARIES = ("numpy", "opencv-python", "scikit-image", "av")


@functools.cache
def code() -> dict[str, Any]:
    """The program: `version`, git `commit` and whether files differ from it (`dirty`), and `source`, a hash.

    The commit is None where the package does not lie in a repository of its own. The hash covers what figures
    depend on (operator, flow, models, data, inference, metrics, and users' modules that are imported), so it tells
    two states of a working tree apart.
    """
    commit, dirty = _git()
    return {
        "version": __version__,
        "commit": commit,
        "dirty": dirty,
        "source": source_hash(*_FOLDERS, *_FILES)[:12],
    }


def describe(code: dict[str, Any]) -> str:
    """The program in one phrase: ``0.1.0, commit 3fdcf9d, modified, source 0123456789ab``."""
    words = [str(code["version"])]
    if code["commit"]:
        words.append(f"commit {code['commit'][:10]}" + (", modified" if code["dirty"] else ""))
    return ", ".join([*words, f"source {code['source']}"])


def versions() -> dict[str, str]:
    """Python, the libraries that figures depend on, and the system."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with its build: 2.11.0+cpu
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    found["system"] = f"{platform.system()} {platform.machine()}"
    return found


def device_name(device: torch.device) -> str:
    """What a person calls the device: the GPU's name, or the processor's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
            return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _git() -> tuple[str | None, bool | None]:
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _run(root, "rev-parse", "HEAD")
        return commit, bool(_run(root, "status", "--porcelain", "--untracked-files=no", "--", "stan"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _run(root: Path, *words: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env=environment,
    )
    return done.stdout.strip()
