"""A trained network on a whole video of any size and length: `denoise`, and `denoise_chunks` for a stream of
frames."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from stan.errors import ConfigError, StanError
from stan.flow import FlowPair
from stan.inference.clip import ClipRunner, FlowOf
from stan.inference.memory import is_out_of_memory, release_memory
from stan.inference.noise_level import NoiseTracker
from stan.inference.planning import plan_tiles
from stan.inference.scenes import mark_scenes
from stan.inference.tiling import TilePlan, ramp

if TYPE_CHECKING:
    import numpy as np

    from stan.models import VideoDenoiser

log = logging.getLogger("stan.inference")


class SigmaRangeWarning(UserWarning):
    """The noise level asked for lies outside what the network was trained for."""


class Progress(Protocol):
    """What is told how far the work is."""

    def __call__(self, done: float, total: int | None) -> None:
        """`done` frames of `total` (None: not known) are computed; part of a chunk counts as part of its
        frames."""


def denoise(
    model: VideoDenoiser,
    video: Tensor | np.ndarray,
    sigma: float | Literal["auto"] | Sequence[float] | Tensor | None = None,
    *,
    tiles: TilePlan | None = None,
    memory: str | int | None = None,
    flow: FlowPair | FlowOf | None = None,
    scenes: bool | Sequence[int] = True,
    clamp: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Denoise a video of any size and length.

    Args:
        model: the network; used in eval mode and left in the mode it was in.
        video: `(T, 3, H, W)`, RGB: float in about [0, 1] (noise may leave that range) or uint8; a tensor on
            any device, or an array.
        sigma: standard deviation of the noise in 8-bit units [0, 255]: a number, one per frame `(T,)`, a map
            `(H, W)`, or a map per frame `(T, 1, H, W)`; ``"auto"`` estimates it frame by frame. May be left
            out if the model is blind.
        tiles: how to cut the video; None chooses it from `memory`.
        memory: memory to use at most, on the model's device and beyond what is in use already: ``"4GiB"``, a
            number of bytes, or None for a part of what is free.
        flow: displacements between neighbouring frames, for the whole video as `(T, 2, H, W)` or `(1, T, 2,
            H, W)` each, or what estimates them; None takes ``model.source``.
        scenes: whether to look for scene cuts, which no chunk crosses; False takes the video as one scene;
            known cuts are given as the index of each first frame of a new scene.
        clamp: clamp the result to [0, 1].
        dtype: run the network under autocast in this type (``torch.bfloat16``, ``torch.float16``); None does
        not. device: where to run; the model is moved there. None is where the model is.
        progress: called as ``progress(frames done, T)``.

    Returns:
        `(T, 3, H, W)` float32 on the CPU. The same model, video and `tiles` on the same machine give the same
        bits.

    Raises:
        StanError: for a video or sigma of another layout, a missing sigma, or if memory does not suffice for
            the smallest tiles.
        ConfigError: for a `memory` that is no size, or both `tiles` and `memory`.
    """
    video = torch.as_tensor(video)
    if video.ndim != 4 or video.shape[1] != 3 or 0 in video.shape[2:]:
        raise StanError(f"a video is (T, 3, H, W), RGB; got {tuple(video.shape)}")
    levels = sigma if sigma is None or isinstance(sigma, str | float | int) else _per_frame(sigma, video)
    frames = denoise_chunks(
        model,
        video.unbind(0),
        levels,
        tiles=tiles,
        memory=memory,
        flow=flow,
        scenes=scenes,
        clamp=clamp,
        dtype=dtype,
        device=device,
        progress=progress,
        total=len(video),
    )
    out = torch.empty(video.shape, dtype=torch.float32)
    for t, frame in enumerate(frames):
        out[t] = frame
    return out


def denoise_chunks(
    model: VideoDenoiser,
    frames: Iterable[Tensor],
    sigma: float | Literal["auto"] | Iterable[float | Tensor] | None = None,
    *,
    tiles: TilePlan | None = None,
    memory: str | int | None = None,
    flow: FlowPair | FlowOf | None = None,
    scenes: bool | Sequence[int] = True,
    clamp: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    total: int | None = None,
) -> Iterator[Tensor]:
    """Denoise a stream of frames of any length, holding no more of them than about three chunks.

    Frames are taken from `frames` only as they are needed, and come out in order, as many as went in.

    Args:
        model: as for `denoise`, as is all that is not listed here.
        frames: `(3, H, W)` each, all of one size: uint8, or float in about [0, 1].
        sigma: a number for all frames; for each frame a number or a map `(H, W)` or `(1, H, W)`; or
        ``"auto"``. total: number of frames if it is known, for `progress` and the memory plan.

    Returns:
        an iterator of `(3, H, W)` float32 frames on the CPU.

    Raises:
        StanError: as for `denoise`, and if the frames differ in size: at once where the arguments show it,
            else when the frame is reached.
    """
    if sigma is None and not model.blind:
        raise StanError(
            f"model {model.name!r} needs sigma, the noise level in 8-bit units [0, 255] (or 'auto')"
        )
    if isinstance(sigma, str) and sigma != "auto":
        raise StanError(f"sigma={sigma!r} must be a number in 8-bit units [0, 255], or 'auto'")
    if tiles is not None and memory is not None:
        raise ConfigError(f"give either tiles or memory, not both: {tiles}, memory={memory!r}")
    if device is not None:
        model.to(device)
    runner = ClipRunner(model, flow, dtype)
    source = _checked(frames)
    first = next(source, None)
    if first is None:
        return iter(())
    height, width = first.shape[1:]
    plan = tiles or plan_tiles(model, (height, width), frames=total, memory=memory, dtype=dtype, flow=flow)
    log.info("denoising in %s", plan.describe(height, width, model.multiple))
    scene_frames = mark_scenes(chain([first], source), scenes)
    stream = _Stream(runner, plan, clamp=clamp, progress=progress, total=total)
    return stream.run(_with_sigma(scene_frames, None if model.blind else sigma, model))


class _Frame(NamedTuple):
    """One frame on its way in."""

    pixels: Tensor  # (3, H, W)
    sigma: Tensor | None  # (1, 1, 1) or (1, H, W)
    begins_scene: bool


class _Stream:
    """Chunk after chunk of a stream of frames, each blended over the end of the one before.

    Args:
        runner: denoises one chunk.
        plan: how to cut; replaced by a smaller one when memory runs out.
        clamp: clamp the result to [0, 1].
        progress: told after each tile.
        total: number of frames, for `progress`.
    """

    def __init__(
        self, runner: ClipRunner, plan: TilePlan, *, clamp: bool, progress: Progress | None, total: int | None
    ) -> None:
        self.runner = runner
        self.plan = plan
        self.clamp = clamp
        self.progress = progress
        self.total = total
        self.done = 0  # frames of the video that are given out

    def run(self, frames: Iterator[_Frame]) -> Iterator[Tensor]:
        """The denoised frames, scene by scene."""
        upcoming = next(frames, None)
        while upcoming is not None:
            scene = _Scene(upcoming, frames)
            for frame in self._scene(scene):
                self.done += 1
                yield frame.clamp_(0, 1) if self.clamp else frame
            upcoming = scene.following

    def _scene(self, scene: _Scene) -> Iterator[Tensor]:
        """The denoised frames of one scene.

        Positions count from the scene's first frame. A chunk begins where the frames that are given out end,
        but the last one begins earlier, so that it is not shorter than the others.
        """
        begin = self.done
        held: deque[_Frame] = deque()  # frames [base, end) of the scene
        base = end = given = 0
        pending: Tensor | None = None  # result of the frames from `given` on that the next chunk shares
        while True:
            while end <= given + self.plan.frames and (frame := scene.take()) is not None:
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
            given = stop - keep
            pending = result[len(result) - keep :].clone() if keep else None
            for t in range(len(result) - keep):
                yield result[t].clone()  # a view would keep the whole chunk alive
            del result
            if stop == end:
                return
            while base < min(given, end - self.plan.frames):
                held.popleft()
                base += 1

    def _chunk(self, chunk: list[_Frame], start: int, fresh: int) -> Tensor | None:
        """One chunk through the network, `(T, 3, H, W)`; None if memory ran out, after which the plan is
        smaller."""
        clip = torch.stack([frame.pixels for frame in chunk])  # (T, 3, H, W)
        sigma = _stack_sigma(chunk)

        def on_tile(part: float) -> None:
            if self.progress:
                self.progress(self.done + part * fresh, self.total)

        try:
            return self.runner(clip, sigma, self.plan, start=start, on_tile=on_tile)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, where no traceback holds the failed attempt's tensors any more.
        release_memory(self.runner.device)
        height, width = clip.shape[2:]
        multiple = self.runner.model.multiple
        smaller = self.plan.halved(height, width, multiple)
        if smaller is None:
            raise StanError(
                f"out of memory on {self.runner.device} even in "
                f"{self.plan.describe(height, width, multiple)}; free some memory or use a smaller model"
            )
        log.warning("out of memory; trying again in %s", smaller.describe(height, width, multiple))
        self.plan = smaller
        return None


class _Scene:
    """The frames of one scene, taken one by one from a stream that goes on after it."""

    def __init__(self, first: _Frame, frames: Iterator[_Frame]) -> None:
        self._next: _Frame | None = first
        self._frames = frames
        self.following: _Frame | None = None  # first frame of the scene after this one, once this one ended

    def take(self) -> _Frame | None:
        """The next frame, or None at the end of the scene."""
        frame = self._next
        if frame is not None:
            self._next = next(self._frames, None)
            if self._next is not None and self._next.begins_scene:
                self.following, self._next = self._next, None
        return frame


def _checked(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames on the CPU, each found to be an RGB frame of the first one's size and type."""
    first: Tensor | None = None
    for t, frame in enumerate(frames):
        if frame.ndim != 3 or frame.shape[0] != 3 or 0 in frame.shape:
            raise StanError(f"frame {t}: expected (3, H, W), RGB; got {tuple(frame.shape)}")
        if not (frame.dtype == torch.uint8 or frame.is_floating_point()):
            raise StanError(f"frame {t}: expected float in [0, 1] or uint8, got {frame.dtype}")
        if first is None:
            first = frame
            if frame.is_floating_point() and frame.max() > 32:
                raise StanError(
                    f"video values reach {float(frame.max()):g}: float videos are in [0, 1], divide by 255"
                )
        if frame.shape != first.shape or frame.dtype != first.dtype:
            raise StanError(
                f"frame {t} is {tuple(frame.shape)} of {frame.dtype}, those before are {tuple(first.shape)} "
                f"of {first.dtype}; all frames of a video have one size"
            )
        yield frame.detach().cpu()


def _per_frame(sigma: Sequence[float] | Tensor, video: Tensor) -> list[Tensor]:
    """The noise level of each frame, `(1, 1, 1)` or `(1, H, W)`, from all forms that `denoise` takes."""
    level = torch.as_tensor(sigma, dtype=torch.float32).detach().cpu()
    length, _, height, width = video.shape
    if level.shape in ((), (1,)):
        level = level.reshape(1, 1, 1, 1)
    elif level.shape == (length,):
        level = level.reshape(length, 1, 1, 1)
    elif level.shape == (height, width):
        level = level.reshape(1, 1, height, width)
    elif level.shape not in ((length, 1, height, width), (length, 1, 1, 1), (1, 1, height, width)):
        raise StanError(
            f"sigma has shape {tuple(level.shape)}; for this video it is a number, (T,) = ({length},), "
            f"(H, W) = {(height, width)} or (T, 1, H, W) = {(length, 1, height, width)}"
        )
    return list(level.expand(length, -1, -1, -1).unbind(0))


def _with_sigma(
    frames: Iterator[tuple[Tensor, bool]],
    sigma: float | Literal["auto"] | Iterable[float | Tensor] | None,
    model: VideoDenoiser,
) -> Iterator[_Frame]:
    """Each frame with its noise level; warns once of a level that the model was not trained for."""
    given = iter(sigma) if isinstance(sigma, Iterable) and not isinstance(sigma, str) else None
    tracker = NoiseTracker()
    warned = False
    for t, (pixels, begins_scene) in enumerate(frames):
        level: Tensor | None = None
        if sigma == "auto":
            level = torch.tensor(tracker.update(pixels, begins_scene))
        elif given is not None:
            try:
                level = torch.as_tensor(next(given), dtype=torch.float32)
            except StopIteration:
                raise StanError(f"sigma has {t} values, the video has more frames") from None
        elif sigma is not None:
            level = torch.tensor(float(sigma))  # type: ignore[arg-type]
        if level is not None:
            level = _frame_level(level, pixels, t)
            if not warned:
                warned = _warn_if_untrained(level, t, model)
        yield _Frame(pixels, level, begins_scene)


def _frame_level(level: Tensor, pixels: Tensor, t: int) -> Tensor:
    """A frame's noise level as `(1, 1, 1)` or `(1, H, W)`, checked."""
    if level.numel() == 1:
        level = level.reshape(1, 1, 1)
    elif level.shape[-2:] == pixels.shape[1:] and level.numel() == pixels[0].numel():
        level = level.reshape(1, *pixels.shape[1:])
    else:
        raise StanError(
            f"sigma of frame {t} has shape {tuple(level.shape)}; expected a number or a map of the frame's "
            f"size {tuple(pixels.shape[1:])}"
        )
    if not bool(torch.isfinite(level).all()) or bool((level < 0).any()):
        raise StanError(
            f"sigma of frame {t} must be finite and at least 0, in 8-bit units [0, 255]; got {_range(level)}"
        )
    return level


def _warn_if_untrained(level: Tensor, t: int, model: VideoDenoiser) -> bool:
    """Warn if `level` lies outside what the model was trained for; True if it did."""
    trained = model.trained
    if trained is None or (float(level.min()) >= trained.low and float(level.max()) <= trained.high):
        return False
    warnings.warn(
        f"sigma {_range(level)} (frame {t}) is outside what model {model.name!r} was trained for "
        f"({trained.levels}); fine-tune it at this level for a good result",
        SigmaRangeWarning,
        stacklevel=2,
    )
    return True


def _range(level: Tensor) -> str:
    low, high = float(level.min()), float(level.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _stack_sigma(chunk: list[_Frame]) -> Tensor | None:
    """The noise levels of a chunk, `(T, 1, 1, 1)` or `(T, 1, H, W)`."""
    levels = [frame.sigma for frame in chunk if frame.sigma is not None]
    if not levels:
        return None
    largest = max(levels, key=lambda level: level.numel())
    return torch.stack([level.expand_as(largest) for level in levels])
