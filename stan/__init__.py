"""STAN: space-time attention networks for video denoising.

>>> import stan
>>> model = stan.load("checkpoints/stan_tiny.ckpt")          # doctest: +SKIP
>>> clean = stan.denoise(model, noisy, sigma=25)             # doctest: +SKIP  (T, 3, H, W) in [0, 1]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stan.version import __version__

__all__ = ["__version__", "denoise", "load"]

if TYPE_CHECKING:
    from stan.inference.denoise import denoise
    from stan.models import load


_HOMES = {"load": "stan.models", "denoise": "stan.inference"}


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``denoise`` when they are first asked for, so that ``import stan`` stays light."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'stan' has no attribute {name!r}")
