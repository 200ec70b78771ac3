"""The network on frames in chunks of a bounded length, each blended over the end of the one before."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.device import choose
from stan.errors import StanError
from stan.inference.clip import ClipRunner, device_of
from stan.inference.levels import warn_untrained
from stan.inference.memory import is_out_of_memory, release_memory
from stan.inference.options import Options
from stan.inference.planning import plan_tiles
from stan.inference.tiling import TilePlan, ramp

if TYPE_CHECKING:
    from stan.models import VideoDenoiser

log = logging.getLogger("stan.inference")


class ChunkDenoiser:
    """The network on frames as they come, chunk after chunk; cuts between scenes are respected.

    Holds no more frames than about three chunks. When memory runs out, smaller chunks or tiles are tried.

    Args:
        model: the network.
        options: how.
        total: number of frames if it is known, for the progress and the memory plan.
    """

    def __init__(self, model: VideoDenoiser, options: Options, total: int | None = None) -> None:
        if options.device is not None:
            model.to(choose(options.device))
        self.model = model
        self.runner = ClipRunner(model, options.flow, options.dtype)
        self.options = options
        self.total = total
        self.plan = options.tiles or TilePlan()
        self.done = 0  # frames of the video that are given out
        self._frames: Iterator[Frame] = iter(())
        self._upcoming: Frame | None = None  # the next of them

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames with denoised pixels; the first one is taken at once.

        Args:
            frames: as `stan.inference.denoise.prepare` gives them.

        Raises:
            StanError: if memory does not suffice for the smallest tiles.
            ConfigError: for a `memory` that is no size.
        """
        self._frames = warn_untrained(frames, self.model)
        self._upcoming = next(self._frames, None)
        if self._upcoming is None:
            return iter(())
        height, width = self._upcoming.rgb.shape[1:]
        self.plan = planned(self.model, self.options, self.total, (height, width))
        log.info("denoising in %s", self.plan.describe(height, width, self.model.multiple))
        return self._run()

    def _run(self) -> Iterator[Frame]:
        while self._upcoming is not None:
            for frame in self._scene():
                self.done += 1
                yield frame

    def _take(self, first: bool) -> Frame | None:
        """The next frame, None at the end of the scene whose ``first`` it is or not."""
        frame = self._upcoming
        if frame is None or (frame.begins_scene and not first):
            return None
        self._upcoming = next(self._frames, None)
        return frame

    def _scene(self) -> Iterator[Frame]:
        """The denoised frames of one scene.

        Positions count from the scene's first frame. A chunk begins where the frames that are given out end,
        but the last one begins earlier, so that it is not shorter than the others.
        """
        begin = self.done
        held: deque[Frame] = deque()  # frames [base, end) of the scene
        base = end = given = 0
        pending: Tensor | None = None  # result of the frames from `given` on that the next chunk shares
        while True:
            while end <= given + self.plan.frames and (frame := self._take(end == 0)) is not None:
                held.append(frame)
                end += 1
            stop = min(given + self.plan.frames, end)
            start = max(base, stop - self.plan.frames) if stop == end else given
            keep = 0 if stop == end else self.plan.frame_overlap
            chunk = list(held)[start - base : stop - base]
            result = self._chunk(chunk, begin + start, stop - keep - given)
            if result is None:
                continue  # out of memory: again, with the smaller plan
            result = result[given - start :]
            if pending is not None:
                weight = ramp(len(pending)).float()[:, None, None, None]
                result[: len(pending)] = torch.lerp(pending, result[: len(pending)], weight)
            noisy = list(held)[given - base :]
            given = stop - keep
            pending = result[len(result) - keep :].clone() if keep else None
            for frame, clean in zip(noisy, result[: len(result) - keep]):
                rgb = clean.clone()  # a view would keep the whole chunk alive
                yield replace(frame, rgb=rgb.clamp_(0, 1) if self.options.clamp else rgb, noisy=frame.rgb)
            del result, noisy
            if stop == end:
                return
            while base < min(given, end - self.plan.frames):
                held.popleft()
                base += 1

    def _chunk(self, chunk: list[Frame], start: int, fresh: int) -> Tensor | None:
        """One chunk through the network, `(T, 3, H, W)`; None if memory ran out, after which the plan is
        smaller."""
        clip = torch.stack([frame.rgb for frame in chunk])  # (T, 3, H, W)
        sigma = stack_sigma(chunk)

        progress, done = self.options.progress, self.done

        def tell(part: float) -> None:
            assert progress is not None
            progress(done + part * fresh, self.total)

        try:
            return self.runner(clip, sigma, self.plan, start=start, tell=tell if progress else None)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, where no traceback holds the failed attempt's tensors any more.
        self.plan = smaller(self.plan, self.model, tuple(clip.shape[2:]))
        return None


def planned(model: VideoDenoiser, options: Options, total: int | None, size: tuple[int, int]) -> TilePlan:
    """The plan that the options give for frames of `size` (H, W), or the one that fits into their memory."""
    if options.tiles is not None:
        return options.tiles
    o = options
    return plan_tiles(model, size, frames=total, memory=o.memory, dtype=o.dtype, flow=o.flow)


def smaller(plan: TilePlan, model: VideoDenoiser, size: tuple[int, ...]) -> TilePlan:
    """The plan to try after memory ran out with `plan` on frames of `size` (H, W); what is unused is given back.

    Raises:
        StanError: there is no smaller one.
    """
    device, (height, width) = device_of(model), size
    release_memory(device)
    less = plan.halved(height, width, model.multiple)
    if less is None:
        raise StanError(
            f"out of memory on {device} even in {plan.describe(height, width, model.multiple)}; "
            "free some memory or use a smaller model"
        )
    log.warning("out of memory; trying again in %s", less.describe(height, width, model.multiple))
    return less


def stack_sigma(chunk: list[Frame]) -> Tensor | None:
    """The noise levels of a chunk, `(T, 1, 1, 1)` or `(T, 1, H, W)`."""
    levels = [frame.sigma for frame in chunk if isinstance(frame.sigma, Tensor)]
    if not levels:
        return None
    largest = max(levels, key=lambda level: level.numel())
    return torch.stack([level.expand_as(largest) for level in levels])
