"""Evaluation that can be compared: frozen protocols, metrics, baselines, and a report of everything that was
done.

The measures are plain functions on (T, 3, H, W) videos in [0, 1] and need nothing else::

    from stan.evaluation import psnr, ssim, strred
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stan.evaluation.protocols import PROTOCOLS, Protocol, add_noise
from stan.evaluation.sheet import picture_sheet
from stan.metrics import flicker, psnr, psnr_rounded, ssim, strred

if TYPE_CHECKING:
    from stan.evaluation.results import Results
    from stan.evaluation.run import evaluate

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Results",
    "add_noise",
    "evaluate",
    "flicker",
    "picture_sheet",
    "psnr",
    "psnr_rounded",
    "ssim",
    "strred",
]


def __getattr__(name: str) -> Any:
    """Import ``evaluate`` and ``Results`` when asked for: they bring in networks and the configuration."""
    if name == "evaluate":
        from stan.evaluation.run import evaluate

        return evaluate
    if name == "Results":
        from stan.evaluation.results import Results

        return Results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
