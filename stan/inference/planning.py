"""How much memory a network takes, measured, and the largest chunks and tiles that fit into a budget."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from platformdirs import user_cache_path
from torch import Tensor

from stan.errors import StanError
from stan.files import write_text
from stan.flow import FlowPair
from stan.inference.clip import ClipRunner, FlowOf, evaluating, flow_frames
from stan.inference.memory import (
    format_size,
    free_memory,
    is_out_of_memory,
    parse_size,
    peak_allocation,
    release_memory,
)
from stan.inference.precision import DType, casting
from stan.inference.tiling import TilePlan, round_up
from stan.models.base import joined
from stan.ops.backend import in_use
from stan.source import source_hash

if TYPE_CHECKING:
    from stan.models import VideoDenoiser

log = logging.getLogger("stan.inference")

FREE_PART = {"cpu": 0.5, "cuda": 0.8}
"""The part of the free memory that an automatic plan uses: other programs share the main memory."""

MOST_FRAMES = 32
"""Frames per chunk at most: more saves next to no work, and delays the first frame."""

SEARCH_PART = 0.3
"""What of the work of a network that is run pass by pass goes into the search: `stan_tiny`'s on a CPU."""

AHEAD_PART = 0.25
"""Frames that the first pass of such a network may be ahead of the others, as a part of the plan's."""

LEAST_PROBE, LARGEST_PROBE = 50_000, 500_000
"""Pixels, of all frames, that the measurement goes up to at least and at most."""

AGREE = 0.03
"""The measurement ends when two tiles in a row take the same memory per pixel to this part."""

HEAP_PART, HEAP_MOST = 0.3, 128 << 20
"""What the C library's heap takes beside what is allocated in it: this part, and so many bytes at most.
Blocks below 32 MiB come from the heap, where freed ones leave holes; larger ones are given back to the system."""

LIBRARIES = 64 * 2**20
"""Bytes of code and buffers that libraries load when the network first runs on a CPU (40 to 70 MiB of resident
memory here). `measure` leaves them out: its first probe is not counted, and mostly its figures come from the disk."""


@dataclass(frozen=True)
class MemoryModel:
    """What a network takes at its peak on one tile: ``base + (per_pixel * frames + together) * height * width`` bytes.

    Attributes:
        base: bytes that do not depend on the tile's size.
        per_pixel: bytes per pixel of each frame of a tile.
        flow_per_pixel: bytes per pixel of each frame of a chunk while its flow is estimated, beside the flow
            itself.
        kept: bytes per pixel of a frame that a pass leaves for the next one, of a network that is run pass by pass:
            the others are those of the next pass then. 0 for a network that is run on whole chunks.
        together: bytes per pixel of a tile of any length: what a pass takes for the few frames it has in hand.
        first: bytes per pixel that the first pass takes for one frame, which it may do beside the next pass.
    """

    base: float
    per_pixel: float
    flow_per_pixel: float
    kept: float = 0.0
    together: float = 0.0
    first: float = 0.0

    def tile(self, model: VideoDenoiser, frames: int, height: int, width: int) -> float:
        """Bytes for one tile, as the network pads it."""
        return self.base + (self.per_pixel * frames + self.together) * padded_area(model, height, width)

    def video(
        self, runner: ClipRunner, plan: TilePlan, height: int, width: int, frames: int | None = None
    ) -> float:
        """Bytes on the model's device for a video of `height` x `width`, of `frames` if that is known.

        Beside the network: frames waiting and denoised, the chunk as floats, its flow and the sum of its
        tiles. Pass by pass: frames waiting with their flow and what the last pass left, the same side by side for the
        next pass, those that the first pass is ahead, and the sum of its tiles.
        """
        chunk = plan.frames if frames is None else min(plan.frames, frames)
        area = height * width
        tile_h, tile_w = plan.tile(height, width, runner.model.multiple)
        tiled = (tile_h, tile_w) != (height, width)
        on_cpu = runner.device.type == "cpu"
        peak = self.tile(runner.model, chunk, tile_h, tile_w)
        if self.kept:
            held = ((2 + AHEAD_PART) * (12 + self.kept + 16) + (self.kept if tiled else 0)) * chunk * area
            if runner.model.source.context:  # corrected flow beside the measured, and while it is made
                held += 32 * chunk * area
            peak += self.first * padded_area(runner.model, tile_h, tile_w)
        else:
            held = (24.0 if tiled else 12.0) * chunk * area
            if runner.flow is not None:
                held += 16 * chunk * area
                estimating = flow_frames(runner.flow, chunk, height, width)
                peak = max(peak, self.flow_per_pixel * estimating * area)
            if on_cpu:
                held += (6 * chunk + 12 * plan.frame_overlap) * area
        if on_cpu:
            peak += min(HEAP_PART * peak, HEAP_MOST) + LIBRARIES
        return held + peak


def padded_area(model: VideoDenoiser, height: int, width: int) -> int:
    """Pixels of a frame as the network pads it."""
    return round_up(height, model.multiple) * round_up(width, model.multiple)


def measure(runner: ClipRunner) -> MemoryModel:
    """Measure the network's memory by running it on a few tiles of growing size.

    The line goes through the two largest tiles. Results are kept, in the process and for the networks of this
    package on disk (in the user's cache folder), by the network's settings, the device, the type,
    torch's version and this package's code.

    Raises:
        StanError: where memory cannot be measured, or the smallest probe runs out of memory.
    """
    key = _key(runner)
    if key not in _measured:
        path = _cache_file(key)
        known = _read_cache(path) if _is_ours(runner) else None
        if known is None:
            known = _measure(runner)
            if _is_ours(runner):
                _write_cache(path, known)
        _measured[key] = known
    return _measured[key]


def _measure(runner: ClipRunner) -> MemoryModel:
    model, device = runner.model, runner.device
    frames = round_up(2 * model.reach + 1, 2)
    height = width = round_up(64, model.multiple)
    points: list[tuple[int, int]] = []
    flow_per_pixel = 0.0
    probe = _probe_pass if runner.by_passes else _probe
    probe(runner, frames, height, width)  # libraries load their code and make their buffers on first use
    while True:
        try:
            peak, flow = probe(runner, frames, height, width)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        pixels = frames * height * width
        points.append((pixels, peak))
        flow_per_pixel = flow / pixels
        if pixels >= LEAST_PROBE and len(points) > 1:
            (fewer, less), (more, most) = points[-2:]
            if abs(less / fewer / (most / more) - 1) <= AGREE or 2 * pixels > LARGEST_PROBE:
                break
        if height == width:
            height *= 2
        else:
            width *= 2
    release_memory(device)
    if not points:
        raise StanError(f"out of memory on {device} on a tile of {frames} frames of {height}x{width}")
    needs = fit(points, flow_per_pixel)
    return _of_passes(runner, needs, frames) if runner.by_passes else needs


def _of_passes(runner: ClipRunner, needs: MemoryModel, frames: int) -> MemoryModel:
    """What was measured on clips of `frames`, with what a pass keeps, and told apart what grows with the frames: on
    longer clips, from where on what a pass has in hand at a time grows no more."""
    height, width = 2 * (round_up(128, runner.model.multiple),)
    area = height * width
    shorter, longer = (_probe_pass(runner, n * frames, height, width)[0] / area for n in (2, 4))
    per_pixel = (longer - shorter) / (2 * frames)
    together = max(0.0, shorter - needs.base / area - per_pixel * 2 * frames)
    noisy, level = _clip(runner, 1, height, width)
    with torch.no_grad(), evaluating(runner.model), casting(runner.dtype, runner.device):
        left = runner.model.first_pass(noisy, level)
        first = peak_allocation(runner.device, lambda: runner.model.first_pass(noisy, level))
    return replace(
        needs,
        per_pixel=per_pixel,
        kept=sum(x.nbytes for x in left) / area,
        together=together,
        first=first / area,
    )


def _probe(runner: ClipRunner, frames: int, height: int, width: int) -> tuple[int, int]:
    """Peak bytes of the network on one tile, and of the flow's estimation on as many frames as go together.

    The tile is a little smaller than said, so that the network pads it, which takes memory too.
    """
    cut = min(runner.model.multiple - 1, 1)
    noisy = torch.full((frames, 3, height - cut, width - cut), 0.5, device=runner.device)
    sigma = None if runner.model.blind else torch.full((frames, 1, 1, 1), 25.0, device=runner.device)
    pair: FlowPair | None = None
    flow = 0
    with torch.no_grad(), evaluating(runner.model):
        if runner.flow is not None:
            zeros = noisy.new_zeros(frames, 2, *noisy.shape[2:])
            pair = FlowPair(zeros, zeros)
            if not isinstance(runner.flow, FlowPair):
                source = runner.flow
                flow = peak_allocation(runner.device, lambda: source(noisy[None]))
        peak = peak_allocation(runner.device, lambda: runner.tile(noisy, sigma, pair))
    return peak, flow


def _probe_pass(runner: ClipRunner, frames: int, height: int, width: int) -> tuple[int, int]:
    """Peak bytes of the next pass of all frames of one tile, and none for flow, of which passes see two frames."""
    noisy, level = _clip(runner, frames, height, width)
    flow = FlowPair(*noisy.new_zeros(2, 1, frames, 2, height, width))
    with torch.no_grad(), evaluating(runner.model), casting(runner.dtype, runner.device):
        left = runner.model.first_pass(noisy, level)
        return peak_allocation(
            runner.device, lambda: joined(runner.model.next_pass(noisy, level, left, flow))
        ), 0


def _clip(runner: ClipRunner, frames: int, height: int, width: int) -> tuple[Tensor, Tensor | None]:
    """A clip and its noise level, as passes take them."""
    noisy = torch.full((1, frames, 3, height, width), 0.5, device=runner.device)
    return noisy, None if runner.model.blind else noisy.new_full((1, frames, 1, 1, 1), 0.1)


def fit(points: list[tuple[int, int]], flow_per_pixel: float = 0.0) -> MemoryModel:
    """The line through the two largest of some (pixels, bytes), falling nowhere below the origin's."""
    pixels, peak = points[-1]
    base, slope = 0.0, peak / pixels
    if len(points) > 1:
        fewer, smaller = points[-2]
        slope = (peak - smaller) / (pixels - fewer)
        base = peak - slope * pixels
        if base < 0 or slope < 0:
            base, slope = 0.0, max(slope, peak / pixels)
    return MemoryModel(base=base, per_pixel=slope, flow_per_pixel=flow_per_pixel)


_measured: dict[str, MemoryModel] = {}


def _is_ours(runner: ClipRunner) -> bool:
    """Whether name and settings say all about the network, so that a measurement can be kept on disk."""
    model = runner.model
    standard = runner.flow is None or runner.flow is model.source
    return standard and type(model).__module__.partition(".")[0] == "stan"


def _key(runner: ClipRunner) -> str:
    """What a measurement depends on, as one short name."""
    model, device = runner.model, runner.device
    where = str(device) if device.type == "cpu" else torch.cuda.get_device_name(device)
    facts = [
        type(model).__module__,
        type(model).__qualname__,
        model.name,
        model.settings,
        sum(p.numel() for p in model.parameters()),
        type(runner.flow).__qualname__,
        where,
        str(runner.dtype),
        torch.__version__,
        torch.get_num_threads(),
        source_hash("models", "ops", "flow", "inference"),
        in_use(device),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def _cache_file(key: str) -> Path:
    return user_cache_path("stan", appauthor=False) / "memory" / f"{key}.json"


def _read_cache(path: Path) -> MemoryModel | None:
    try:
        return MemoryModel(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_cache(path: Path, model: MemoryModel) -> None:
    """Keep a measurement; a cache that cannot be written is no reason to stop."""
    try:
        write_text(path, json.dumps(asdict(model)))
    except OSError as error:
        log.debug("memory measurement not kept: %s", error)


def plan_tiles(
    model: VideoDenoiser,
    size: tuple[int, int],
    *,
    frames: int | None = None,
    memory: str | int | None = None,
    dtype: DType = None,
    flow: FlowOf | FlowPair | None = None,
) -> TilePlan:
    """The plan with the least work of those that fit into a memory budget.

    Args:
        model: the network, on the device it will run on.
        size: height and width of the video.
        frames: its length, if known.
        memory: what denoising may take on the model's device beyond what is in use: bytes, or text such as
            ``"4GiB"``; None is `FREE_PART` of what is free.
        dtype: the type of autocast, as for `denoise`.
        flow: the flow, as for `denoise`.

    Returns:
        the plan. If not even the smallest fits, that one, with a warning in the log: whether memory really
        does not suffice, only the attempt can tell.

    Raises:
        ConfigError: for a `memory` that is no size.
        StanError: if memory cannot be measured on this device.
    """
    runner = ClipRunner(model, flow, dtype)
    height, width = size
    budget = None if memory is None else parse_size(memory)
    if budget is None:
        if frames is not None and frames * padded_area(model, height, width) <= 2**16:
            return TilePlan(frames=max(frames, 5))  # smaller than what would be measured
        budget = int(free_memory(runner.device) * FREE_PART[runner.device.type])
    needs = measure(runner)
    best: tuple[float, float, TilePlan] | None = None  # work, bytes and plan of the best that fits
    smallest: tuple[float, TilePlan] | None = None
    for overlap in (TilePlan().overlap, TilePlan().overlap // 2):
        for row in candidates(model, height, width, frames, overlap):
            for plan in row:  # tiles ever narrower: the first that fits is the row's best
                expected = needs.video(runner, plan, height, width, frames)
                if smallest is None or expected < smallest[0]:
                    smallest = expected, plan
                if expected <= budget:
                    work = work_of(runner, plan, height, width, frames)
                    if best is None or (work, expected) < best[:2]:
                        best = work, expected, plan
                    break
        if best is not None:
            log.info("memory: %s expected, %s allowed", format_size(best[1]), format_size(budget))
            return best[2]
    assert smallest is not None
    log.warning(
        "memory: even the smallest tiles are expected to take %s, %s are allowed; trying",
        format_size(smallest[0]),
        format_size(budget),
    )
    return smallest[1]


def work_of(runner: ClipRunner, plan: TilePlan, height: int, width: int, frames: int | None = None) -> float:
    """Work for each pixel given out, 1 or more: pixels computed; pass by pass only the search is done for more frames
    than are given out."""
    model = runner.model
    if not runner.by_passes:
        return plan.work(height, width, model.multiple, frames)
    within = plan.work(height, width, model.multiple, plan.frames)  # of the tiles alone
    if frames is not None and frames <= plan.frames:
        return within
    group = max(1, plan.frames - 2 * model.pass_reach)
    return within * (1 + SEARCH_PART * (plan.frames / group - 1))


def candidates(
    model: VideoDenoiser, height: int, width: int, frames: int | None, overlap: int
) -> Iterator[Iterator[TilePlan]]:
    """Plans to choose from: chunks of 6 to `MOST_FRAMES` frames, tiles down to twice the overlap.

    Each row holds plans of one chunk and one tile height, by falling tile width.
    """
    shared = TilePlan().frame_overlap
    lengths = {32, 24, 20, 16, 12, 10, 8, 6}
    if frames is not None:  # chunks that share a known length evenly
        lengths |= {-(-(frames + (count - 1) * shared) // count) for count in range(1, frames)}
        lengths = {n for n in lengths if n <= frames} or {frames}
    least = min(6, frames or 6)
    rows, columns = (_tile_sides(length, overlap, model.multiple) for length in (height, width))
    for length in sorted(n for n in lengths if least <= n <= MOST_FRAMES):
        for tile_h in rows:
            yield (TilePlan(length, min(shared, length // 3), tile_h, w, overlap) for w in columns)


def _tile_sides(length: int, overlap: int, multiple: int) -> list[int | None]:
    """The tile sizes at which one tile more is needed to cover `length`."""
    sides: list[int | None] = [None]
    count = 2
    while (side := round_up(-(-(length + (count - 1) * overlap) // count), multiple)) >= max(
        128, 2 * overlap
    ):
        if side < length:
            sides.append(side)
        count += 1
        if count > 64:
            break
    return sides
