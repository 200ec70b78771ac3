"""Which program made a figure: versions, commit, and a hash of the source that figures depend on."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stan.device import processor
from stan.files import sha256_of
from stan.source import PACKAGE, source_hash
from stan.version import __version__

_FOLDERS = ("ops", "flow", "models", "data", "inference", "metrics")
_FILES = tuple(f"evaluation/{name}.py" for name in ("measure", "methods", "protocols"))
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


def foreign(functions: Mapping[str, Callable[..., Any] | None]) -> dict[str, str]:
    """Of some functions by name those that are not of this package, each with a hash of the file it stands in."""
    found = {}
    for name, function in functions.items():
        module = sys.modules.get(function.__module__) if function else None
        file = Path(getattr(module, "__file__", None) or "")
        if module and PACKAGE not in file.resolve().parents:
            found[name] = sha256_of(file)[:12] if file.is_file() else "unknown"
    return found


def describe(code: dict[str, Any]) -> str:
    """The program in one phrase: ``0.1.0, commit 3fdcf9d, modified, source 0123456789ab``."""
    words = [str(code["version"])]
    if code["commit"]:
        words.append(f"commit {code['commit'][:10]}" + (", modified" if code["dirty"] else ""))
    return ", ".join([*words, f"source {code['source']}"])


def versions() -> dict[str, str]:
    """Python, the libraries that figures depend on, and the system."""
    system = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), **libraries(), "system": system}


@functools.cache
def libraries() -> dict[str, str]:
    """The libraries that figures depend on, with their versions."""
    found = {"torch": str(torch.__version__)}  # with its build: 2.11.0+cpu
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def device_name(device: torch.device) -> str:
    """What a person calls the device: the GPU's name, or the processor's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{processor()}, {torch.get_num_threads()} threads"


def _git() -> tuple[str | None, bool | None]:
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None, None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    status = ("status", "--porcelain", "--untracked-files=no", "--", "stan")
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(root), *words],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
                env=environment,
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), status)
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changed)
