"""The figures of one denoised sequence, frame by frame, and the pictures that the report shows of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from stan.evaluation.protocols import to_float
from stan.inference.memory import largest_so_far, process_memory
from stan.metrics import Metric, mean
from stan.metrics.record import Function

PIECE = 2
"""Frames measured at a time: even, as metrics may go by pairs, and few, for the memory of large frames."""
CROP = 224
"""Side of the report's pictures, pixels."""

Figures = dict[str, Any]


def figures(clean: Tensor, output: Tensor, metrics: Iterable[Metric], border: int = 0) -> Figures:
    """What is measured of a video.

    Args:
        clean: (T, 3, H, W) uint8.
        output: (T, 3, H, W) float; metrics clamp it to [0, 1], as the protocols say.
        metrics: what to measure; those without a function are passed over.
        border: pixels left out at each side.

    Returns:
        for each metric NAME, and NAME_frames (a list) where its record says so. A figure is NaN where the clip is
        too short or too small for it.
    """
    inside = (..., slice(border, clean.shape[-2] - border), slice(border, clean.shape[-1] - border))
    total = len(clean)
    least = min(clean[inside].shape[-2:])
    metrics = [metric for metric in metrics if metric.function]
    # each function once, though several metrics may use its values
    calls = {
        metric.function: metric.per for metric in metrics if metric.function and least >= metric.smallest
    }

    def measured(start: int, stop: int, whole: bool) -> dict[Function, Tensor]:
        before = max(start - 1, 0)  # for changes from the frame before to this piece's first
        pair = to_float(clean[before:stop])[inside], output[before:stop].float()[inside]
        rest = tuple(video[start - before :] for video in pair)
        return {
            function: function(*(pair if per == "step" else rest))
            for function, per in calls.items()
            if (per == "clip") == whole
        }

    with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:  # the libraries' loops run side by side
        starts = range(0, total, PIECE)
        pieces = list(pool.map(lambda start: measured(start, min(start + PIECE, total), False), starts))
    if "clip" in calls.values():
        pieces.append(measured(0, total, True))
    result: Figures = {}
    for metric in metrics:
        got = [piece[metric.function] for piece in pieces if metric.function in piece]
        values = torch.cat(got) if got else torch.empty(0)
        result[metric.name] = metric.reduce(values) if got and metric.reduce else mean(values.tolist())
        if metric.frames:
            result[f"{metric.name}_frames"] = values.tolist()
    return result


def best_crop(frames: Tensor, side: int = CROP) -> tuple[int, int, int, int]:
    """Top, left, height and width of the crop that the report shows: where the clean video has most detail
    that also moves, as that is where denoisers differ.

    Args:
        frames: the frame to crop and the one before it, (2, 3, H, W) uint8.
        side: side of the crop; smaller frames are shown whole.
    """
    height, width = frames.shape[-2:]
    rows, columns = min(side, height), min(side, width)
    before, grey = (np.asarray(cv2.GaussianBlur(f.float().mean(0).numpy(), (0, 0), 1.5)) for f in frames)
    scores = []
    for value in (np.abs(cv2.Laplacian(grey, cv2.CV_32F)), np.abs(grey - before)):
        value = np.minimum(value, 6 * value.mean())  # a few hard edges shall not outweigh texture
        total = cv2.integral(value.astype(np.float64))
        bands = total[rows:] - total[:-rows]
        scores.append(bands[:, columns:] - bands[:, :-columns])
    detail, motion = scores
    score = detail * (motion + 0.2 * motion.max() + 1e-6)
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return int(top), int(left), rows, columns


def pictures(clean: Tensor, noisy: Tensor, output: Tensor) -> dict[str, np.ndarray]:
    """What the report shows of a sequence: a crop of the middle frame, and a slice through time.

    Returns:
        uint8 RGB: `clean`, `noisy`, `output` (h, w, 3), and `clean_slice`, `noisy_slice`, `output_slice`
        (T, w, 3), one row of pixels of every frame, in which flicker shows as horizontal streaks.
    """
    t = len(clean) // 2
    top, left, rows, columns = best_crop(clean[[max(t - 1, 0), t]])
    row = top + rows // 2
    result = {}
    for name, video in (("clean", clean), ("noisy", noisy), ("output", output)):
        window = video[t, :, top : top + rows, left : left + columns]
        through = video[:, :, row, left : left + columns]
        result[name] = levels(window).permute(1, 2, 0).contiguous().numpy()
        result[f"{name}_slice"] = levels(through).permute(0, 2, 1).contiguous().numpy()
    return result


def levels(video: Tensor) -> Tensor:
    """8-bit levels of a video; float values are clamped and rounded."""
    if video.dtype == torch.uint8:
        return video
    return (video.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: wall time, the device's queue included.
        memory: peak in bytes: on a GPU what torch had allocated on it; elsewhere the resident size of the whole
            process, clip and libraries included; 0 where it is not known.
    """

    seconds: float = math.nan
    memory: int = 0


@contextmanager
def costs(device: torch.device) -> Iterator[Cost]:
    """Measures the work inside the block; the figures are there when it has ended."""
    cost, gpu = Cost(), device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # where this cannot be done, the peak is the process's since it began
            Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    yield cost
    if gpu:
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    if gpu:
        cost.memory = torch.cuda.max_memory_allocated(device)
    else:
        cost.memory = process_memory().get("VmHWM") or largest_so_far()
