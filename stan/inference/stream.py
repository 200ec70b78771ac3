"""Denoising frames as they come, each given out a fixed number of frames later."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Literal

import torch
from torch import Tensor

from stan.data.video.properties import Frame
from stan.data.video.raw import RawFormat, RawReader, RawWriter
from stan.errors import StanError, VideoError
from stan.flow import FlowPair
from stan.inference.clip import ClipRunner, needs_flow
from stan.inference.denoise import Progress, SigmaRangeWarning
from stan.inference.frame_noise import NoiseLevel
from stan.inference.overlap import Reading, Writing
from stan.inference.scenes import PAST, is_cut, residual, thumbnail
from stan.inference.tiling import TilePlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from stan.models import VideoDenoiser

__all__ = ["RawFormat", "StreamDenoiser", "denoise_stream"]


class StreamDenoiser:
    """Denoises a stream: each frame from a window of frames before it and, unless the model is causal, a few
    after.

    A frame comes out when the frame `delay` later has gone in: none later for a causal model,
    ``model.temporal_reach`` otherwise. The flow between two neighbours is estimated once. A cut, found
    without looking ahead, ends the window on both sides.

    Args:
        model: the network.
        window: frames it sees at once, at least ``delay + 1``; None is ``2 * model.temporal_reach + 1``. More
            are slower in proportion.
        dtype: run the network under autocast in this type.

    Raises:
        StanError: a window that is too short.
    """

    def __init__(
        self, model: VideoDenoiser, *, window: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.delay = 0 if model.causal else model.temporal_reach
        self.window = 2 * model.temporal_reach + 1 if window is None else window
        if self.window <= self.delay:
            raise StanError(
                f"window={self.window} frames must be at least {self.delay + 1}, the delay and the frame"
            )
        self._model = model
        self._runner = ClipRunner(model, self._flow_of_window, dtype)
        if not needs_flow(model):
            self._runner.flow = None
        self._frames: deque[_Seen] = deque(maxlen=self.window)
        self._ahead = 0  # frames at the end that have not come out
        self._cuts = _CutFinder()

    def push(self, rgb: Tensor, sigma: float | None = None) -> list[Tensor]:
        """Take the next frame and give out those that are due.

        Args:
            rgb: (3, H, W), float in about [0, 1].
            sigma: its noise level in 8-bit units; None for a blind model.
        """
        begins = self._cuts(rgb)
        done = list(self.finish()) if begins else []
        flow = None
        if begins:
            self._frames.clear()
        elif self._runner.flow is not None:
            flow = self._flow_between(self._frames[-1].rgb, rgb)
        self._frames.append(_Seen(rgb, sigma, flow))
        self._ahead += 1
        if self._ahead > self.delay:
            done.append(self._run(len(self._frames) - self._ahead))
            self._ahead -= 1
        return done

    def finish(self) -> Iterator[Tensor]:
        """Give out the frames that wait for later ones, now that there are none."""
        while self._ahead:
            yield self._run(len(self._frames) - self._ahead)
            self._ahead -= 1

    def _run(self, index: int) -> Tensor:
        """The frame at ``index`` of the window, denoised."""
        frames = list(self._frames)
        clip = torch.stack([f.rgb for f in frames])  # (T, 3, H, W)
        sigma = None
        if not self._model.blind:
            sigma = torch.tensor([f.sigma for f in frames], dtype=torch.float32).reshape(-1, 1, 1, 1)
        plan = TilePlan(frames=len(frames), frame_overlap=0)
        return self._runner(clip, sigma, plan)[index]

    def _flow_between(self, before: Tensor, after: Tensor) -> FlowPair:
        """Flow of two neighbours, forward and backward, (2, H, W) each."""
        with torch.no_grad():
            pair = self._model.source(torch.stack((before, after))[None].to(self._runner.device))
        return FlowPair(pair.forward[0, 0], pair.backward[0, 1])

    def _flow_of_window(self, noisy: Tensor) -> FlowPair:
        """Flow of the frames held, (1, T, 2, H, W) each, put together from that of neighbours."""
        zero = noisy.new_zeros(2, *noisy.shape[-2:])
        steps = [f.flow for f in self._frames][1:]
        pairs = [step if step is not None else FlowPair(zero, zero) for step in steps]
        forward = [p.forward for p in pairs] + [zero]
        backward = [zero] + [p.backward for p in pairs]
        return FlowPair(torch.stack(forward)[None], torch.stack(backward)[None])


class _Seen:
    """A frame of the window: pixels, noise level, and the flow from and to the one before it."""

    def __init__(self, rgb: Tensor, sigma: float | None, flow: FlowPair | None) -> None:
        self.rgb, self.sigma, self.flow = rgb, sigma, flow


class _CutFinder:
    """Tells whether a frame begins a scene, from the frames before it only; see `stan.inference.scenes`."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._past: deque[float] = deque(maxlen=PAST)

    def __call__(self, rgb: Tensor) -> bool:
        small = thumbnail(rgb)
        last, self._last = self._last, small
        if last is None:
            return True
        score = residual(last, small)
        begins = is_cut(score, self._past)
        if begins:
            self._past.clear()
        else:
            self._past.append(score)
        return begins


def denoise_stream(
    model: VideoDenoiser,
    input: str | BinaryIO,
    output: str | BinaryIO,
    sigma: float | Literal["auto"] | None = None,
    *,
    raw: RawFormat | None = None,
    strength: float = 1.0,
    window: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> int:
    """Denoise Y4M or raw frames from a pipe into another, in the same format.

    Args:
        model: the network.
        input: ``-`` for standard input, the name of a file or pipe, or a binary stream.
        output: ``-`` for standard output, the name of a pipe, or a binary stream.
        sigma: as for `stan.inference.files.denoise_file`.
        raw: what raw frames are; None for Y4M.
        strength: factor on sigma.
        window: see `StreamDenoiser`.
        dtype: run the network under autocast in this type.
        progress: called with (frames done, None).
        tell: called with each line worth telling.

    Returns:
        the number of frames.

    Raises:
        VideoError: an input that is neither, or ends inside a frame (those before it are given out).
        BrokenPipeError: whoever reads the output has gone.
    """
    tell = tell or (lambda line: None)
    denoiser = StreamDenoiser(model, window=window, dtype=dtype)
    count = 0
    with ExitStack() as stack:
        reader = RawReader(_reading(input, stack), raw)
        level = NoiseLevel(model, sigma, strength)
        writer = RawWriter(_writing(output, stack), reader)
        for line in level.notes:
            tell(line)
        tell(f"streaming with a delay of {denoiser.delay} frames, {denoiser.window} frames seen at once")
        waiting: deque[Frame] = deque()
        damage: list[VideoError] = []

        def read() -> Iterator[tuple[Frame, float | None]]:
            try:
                for frame in reader:
                    level.measure(frame)
                    levels = level.per_frame()
                    yield frame, None if levels is None else next(levels)
            except VideoError as error:
                damage.append(error)  # told when the frames before it are out

        writing = Writing(writer.write, 2)

        def give(done: list[Tensor]) -> None:
            nonlocal count
            for rgb in done:
                writing.put(replace(waiting.popleft(), rgb=rgb))
                count += 1
                if progress is not None:
                    progress(count, None)

        try:
            with Reading(read(), 2) as reading:
                for frame, sigma_of_frame in reading:
                    if count == 0 and not waiting:
                        _warn_outside(model, sigma_of_frame)
                    waiting.append(frame)
                    give(denoiser.push(frame.rgb, sigma_of_frame))
                give(list(denoiser.finish()))
            writing.close()
        except BaseException:
            writing.abort()
            raise
    if damage:
        raise damage[0]
    if count == 0:
        raise VideoError("the input stream holds no frames")
    return count


def _warn_outside(model: VideoDenoiser, sigma: float | None) -> None:
    trained = model.trained
    if trained is None or sigma is None or trained.low <= sigma <= trained.high:
        return
    warnings.warn(
        f"sigma {sigma:.4g} is outside what model {model.name!r} was trained for ({trained.levels}); "
        "fine-tune it at this level for a good result",
        SigmaRangeWarning,
        stacklevel=2,
    )


def _reading(place: str | BinaryIO, stack: ExitStack) -> BinaryIO:
    if not isinstance(place, str):
        return place
    if place == "-":
        if sys.stdin.isatty():
            raise VideoError(
                "standard input is a terminal: pipe Y4M into it (ffmpeg -i FILE -f yuv4mpegpipe - | ...)"
            )
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(place, "rb"))
    except OSError as error:
        raise VideoError(f"{place} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _writing(place: str | BinaryIO, stack: ExitStack) -> BinaryIO:
    if not isinstance(place, str):
        return place
    if place == "-":
        if sys.stdout.isatty():
            raise VideoError("standard output is a terminal: pipe it on (... | ffmpeg -i - out.mp4)")
        return sys.stdout.buffer
    if not os.path.exists(place) or not stat.S_ISFIFO(os.stat(place).st_mode):
        raise VideoError(
            f"{place} is not a pipe: with --stream the output is - (then > {place}) or a named pipe"
        )
    return stack.enter_context(open(place, "wb"))
