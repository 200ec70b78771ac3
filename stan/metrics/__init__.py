"""Measures of a denoised video against the clean one.

Plain functions on (T, 3, H, W) videos in [0, 1], and the table of what an evaluation reports (`table.py`)::

    from stan.metrics import psnr, ssim, strred
"""

from __future__ import annotations

from stan.metrics.quality import flicker, psnr, psnr_rounded, ssim
from stan.metrics.record import Metric, mean
from stan.metrics.strred import strred
from stan.metrics.table import METRICS, add

__all__ = [
    "METRICS",
    "Metric",
    "add",
    "flicker",
    "mean",
    "psnr",
    "psnr_rounded",
    "ssim",
    "strred",
]
