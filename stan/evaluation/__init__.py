"""Evaluation that can be compared: frozen protocols, baselines, and a report of everything that was done.

What it measures is in `stan.metrics`: plain functions on (T, 3, H, W) videos in [0, 1].
"""

from __future__ import annotations

from stan.evaluation.protocols import PROTOCOLS, Protocol, add_noise
from stan.evaluation.results import Results
from stan.evaluation.run import evaluate
from stan.evaluation.sheet import picture_sheet
from stan.metrics import flicker, psnr, psnr_rounded, ssim, strred

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
