"""The figures of one denoised sequence, frame by frame, and the pictures that the report shows of it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from stan.evaluation import metrics
from stan.evaluation.protocols import to_float
from stan.evaluation.strred import Terms, combine, strred_terms

PIECE = 2
"""Frames measured at a time: even, for ST-RRED's pairs, and few, for the memory of large frames."""
CROP = 224
"""Side of the report's pictures, pixels."""
PEAKS = (255.0, 1.0)

Figures = dict[str, Any]


def figures(
    clean: Tensor, output: Tensor, *, border: int = 0, progress: Callable[[float], None] | None = None
) -> Figures:
    """Everything that is measured of a video.

    Args:
        clean: (T, 3, H, W) uint8.
        output: (T, 3, H, W) float; measured as the protocols say, clamped to [0, 1].
        border: pixels left out at each side.
        progress: told the part that is done.

    Returns:
        `psnr`, `psnr_rounded`, `ssim`, `flicker` (means over frames), `strred` (at peak 255), `strred_unit`
        (at peak 1), and `psnr_frames`, `ssim_frames`, `flicker_frames` (lists). A figure is NaN where the
        clip is too short or too small for it.
    """
    inside = (..., slice(border, clean.shape[-2] - border), slice(border, clean.shape[-1] - border))
    total = len(clean)

    def measured(start: int) -> _Measured:
        before = max(start - 1, 0)  # the flicker of this piece's first frame needs the one before
        stop = min(start + PIECE, total)
        return _measure(
            to_float(clean[before:stop])[inside], output[before:stop].float()[inside], start - before
        )

    frames: dict[str, list[float]] = {"psnr": [], "psnr_rounded": [], "ssim": [], "flicker": []}
    terms: list[list[Terms]] = []
    with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:  # the libraries' loops run side by side
        for done, (values, of_piece) in enumerate(pool.map(measured, range(0, total, PIECE)), 1):
            for name in frames:
                frames[name] += values[name]
            terms.append(of_piece)
            if progress:
                progress(min(1.0, done * PIECE / total))
    result: Figures = {name: mean(values) for name, values in frames.items()}
    for peak, name in zip(range(len(PEAKS)), ("strred", "strred_unit")):
        spatial, temporal = (torch.cat([piece[peak][i] for piece in terms]) for i in (0, 1))
        result[name] = combine(Terms(spatial, temporal))
    for name in ("psnr", "ssim", "flicker"):
        result[f"{name}_frames"] = frames[name]
    return result


_Measured = tuple[dict[str, list[float]], list[Terms]]


def _measure(clean: Tensor, output: Tensor, skip: int) -> _Measured:
    """The figures of a few frames; the first `skip` of them are there for the flicker only."""
    values = {"flicker": metrics.flicker(clean, output).tolist()}
    clean, output = clean[skip:], output[skip:]
    values["psnr"] = metrics.psnr(clean, output).tolist()
    values["psnr_rounded"] = metrics.psnr_rounded(clean, output).tolist()
    large = min(clean.shape[-2:]) >= metrics.SSIM_WINDOW
    values["ssim"] = metrics.ssim(clean, output).tolist() if large else []
    return values, strred_terms(clean, output, PEAKS)


def psnr_raw(clean: Tensor, noisy: Tensor) -> float:
    """Mean PSNR of the noisy video as it is, not clamped, dB: 20 log10(255 / sigma) for white Gaussian noise.

    It is what papers call the PSNR of the noisy input, and it shows that the noise has the level it should
    have.
    """
    values = []
    for a, b in zip(clean, noisy):
        error = float((b.double() - to_float(a).double()).square().mean())
        values.append(-10 * math.log10(error) if error > 0 else math.inf)
    return mean(values)


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of nothing, and infinite if a value is."""
    listed = list(values)
    return (
        math.fsum(listed) / len(listed)
        if listed and all(map(math.isfinite, listed))
        else (math.nan if not listed or any(map(math.isnan, listed)) else math.inf)
    )


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
        scores.append(
            total[rows:, columns:]
            - total[:-rows, columns:]
            - total[rows:, :-columns]
            + total[:-rows, :-columns]
        )
    detail, motion = scores
    score = detail * (motion + 0.2 * motion.max() + 1e-6)
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return int(top), int(left), rows, columns


def pictures(clean: Tensor, noisy: Tensor, output: Tensor) -> dict[str, np.ndarray]:
    """What the report shows of a sequence: a crop of the middle frame, and a slice through time.

    Returns:
        uint8 RGB: `clean`, `noisy`, `output` (h, w, 3), and `clean_slice`, `noisy_slice`, `output_slice` (T,
            w, 3),
        one row of pixels of every frame, in which flicker shows as horizontal streaks; and `place`: frame,
        top and left of the crop.
    """
    t = len(clean) // 2
    top, left, rows, columns = best_crop(clean[[max(t - 1, 0), t]])
    row = top + rows // 2
    result = {"place": np.array([t, top, left])}
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


class Cost:
    """Wall time and peak memory of the work inside a ``with`` block.

    Attributes:
        seconds: wall time, the device's queue included.
        memory: peak in bytes: on a GPU what torch had allocated on it; on the CPU the resident size of the
            whole process, clip and libraries included.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = math.nan
        self.memory = 0

    def __enter__(self) -> Cost:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._sampler = _ResidentPeak()
            self._sampler.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.seconds = time.perf_counter() - self._start
            self.memory = torch.cuda.max_memory_allocated(self.device)
        else:
            self.seconds = time.perf_counter() - self._start
            self.memory = self._sampler.stop()


class _ResidentPeak(threading.Thread):
    """Samples the resident size of this process every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = resident()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, resident())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return max(self.peak, resident())


def resident() -> int:
    """Resident size of this process in bytes: now, or (outside Linux) the largest so far; 0 if not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        pass
    try:
        import resource
        import sys

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024
    except ImportError:
        return 0
