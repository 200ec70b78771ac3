"""The shared library of native kernels: found and loaded once, never built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "_C.abi3.so"
RECORD = FOLDER / "_build.json"  # written by setup.py: whether a library was built, and why not
HOW = "see docs/install.md"


def _record() -> dict[str, Any]:
    """What the build wrote down; empty where nothing was built."""
    try:
        return json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}


def _load() -> str:
    """Load the library; return why that failed, or an empty string."""
    if not LIBRARY.is_file():
        reason = _record().get("reason")
        return f"not built: {reason}" if reason else f"{LIBRARY.name} is missing; {HOW}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"{LIBRARY.name} does not load: {str(error).splitlines()[0]}"
    return ""


WHY_NOT = _load()  # why there are no native kernels; empty when there are
INFO: dict[str, str] = {} if WHY_NOT else json.loads(torch.ops.stan.build_info())
CAPABILITY: str = "" if WHY_NOT else torch.ops.stan.cpu_capability()
CUDA_ARCHS = tuple(int(arch) for arch in INFO.get("cuda_archs", "").split())
CAPABILITIES = "compute capability " + ", ".join(f"{arch // 10}.{arch % 10}" for arch in CUDA_ARCHS)


def why_no_cuda() -> str:
    """Why the library, where there is one without CUDA kernels, has none."""
    return _record().get("cuda") or "built with STAN_BUILD=cpu"


def cuda_supports(major: int, minor: int) -> bool:
    """Whether a GPU of this compute capability can run the kernels.

    Machine code runs on the same major version from its minor version on; that of the newest architecture is also there
    in a form that later GPUs translate.
    """
    capability = 10 * major + minor
    same_major = any(arch // 10 == major and arch <= capability for arch in CUDA_ARCHS)
    return same_major or (bool(CUDA_ARCHS) and capability >= CUDA_ARCHS[-1])
