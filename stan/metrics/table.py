"""All that an evaluation reports, in the order of its tables: `stan.registry.metrics`. A new metric is one more record
here, or in a module of yours, by `add`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stan.metrics import quality
from stan.metrics.record import Metric
from stan.metrics.strred import Terms, combine, strred_terms
from stan.registry import metrics as METRICS


def add(metric: Metric) -> None:
    """Enter a metric at the end of the table.

    Raises:
        ValueError: its name is taken.
    """
    METRICS.add(metric.name, metric, metric.definition)


def in_files() -> list[Metric]:
    """The metrics in the order of results.csv: of the output, of the noisy input, of the work."""
    return sorted(METRICS.values(), key=lambda metric: ("output", "noisy", "run").index(metric.of))


def _strred_both(clean: Tensor, output: Tensor) -> Tensor:
    """The terms at both luma scales, (pairs, 4): the band, which takes the time, is the same."""
    return torch.stack([term for terms in strred_terms(clean, output, (255.0, 1.0)) for term in terms], 1)


def _score(values: Tensor) -> float:
    return combine(Terms(*values.T.contiguous()))


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _noisy(name: str, **changes: Any) -> Metric:
    """The same measure of the noisy input: the files have it, once for all methods."""
    metric = METRICS[name]
    kept = {"definition": "of the noisy input, clamped", "shown": "files", "frames": False, "better": None}
    heading = f"{metric.heading}, noisy"
    return replace(metric, **{"name": f"{name}_noisy", "heading": heading, "of": "noisy", **kept, **changes})


# fmt: off
add(Metric(
    "psnr", "PSNR",
    "`10 log10(1 / MSE)` over all pixels and channels of a frame, dB, RGB in [0, 1], float64; output clamped, not "
    "rounded; mean over frames",
    ".2f", "dB", "higher", quality.psnr, shown="always", frames=True,
))
add(Metric(
    "psnr_rounded", "PSNR, 8 bit",
    "PSNR after rounding the output to whole steps of 1/255: what an 8-bit file has",
    ".2f", "dB", "higher", quality.psnr_rounded,
))
add(_noisy(
    "psnr", heading="noisy", function=quality.psnr_raw, shown="tables", definition=
    "PSNR of the noisy input as it is, not clamped: 20 log10(255 / sigma) for Gaussian noise, so it also shows that "
    "the noise is right. The baseline `noisy` in a list of methods is measured like any output, clamped, and is a "
    "little better",
))
add(Metric(
    "ssim", "SSIM",
    "Wang et al. 2004 as scikit-image computes it by default, channel by channel: flat 7x7 window, sample "
    "covariance, K1 = 0.01, K2 = 0.03, mean over windows inside the frame",
    ".4f", "", "higher", quality.ssim, shown="always", frames=True, smallest=quality.SSIM_WINDOW,
))
add(_noisy("ssim"))
add(Metric(
    "temporal_gain", "temporal gain",
    "PSNR of the method minus its PSNR where it is given each frame alone, of the same noisy video, dB: what it has "
    "from the other frames. Measured with `evaluation.temporal_gain=true`; methods that look at one frame anyway "
    "have none",
    "+.2f", "dB", "higher", shown="always",
))
add(Metric(
    "strred", "ST-RRED", "Soundararajan and Bovik 2013, with luma in [0, 255]; lower is better",
    _three_digits, "", "lower", _strred_both, reduce=lambda values: _score(values[:, :2]), shown="tables",
))
add(Metric(
    "strred_unit", "ST-RRED, peak 1", "ST-RRED with luma in [0, 1]; lower is better",
    ".4f", "", "lower", _strred_both, reduce=lambda values: _score(values[:, 2:]),
))
add(_noisy("strred"))
add(Metric(
    "flicker", "flicker",
    "root mean square, over pixels and channels, of the change of the error from one frame to the next, 8-bit "
    "units, mean over pairs of frames; lower is better. An error that stays in place has none; independent noise of "
    "standard deviation s has 1.41 s",
    ".2f", "", "lower", quality.flicker, per="step", shown="tables", frames=True,
))
add(_noisy("flicker"))
add(Metric(
    "seconds_per_frame", "s/frame", "wall time of denoising alone, on a GPU after a warm-up",
    lambda value: f"{value:.3g}" if value >= 0.001 else "<0.001", of="run", shown="tables",
))
add(Metric(
    "memory_mib", "MiB",
    "peak while denoising: on a GPU what torch had allocated on it; on a CPU the resident size of the process, clip "
    "and libraries included. Of several sequences the largest",
    ".0f", of="run", over=max,
))
