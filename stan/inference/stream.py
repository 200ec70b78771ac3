"""Denoising frames as they come, each given out a fixed number of frames later."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.data.video.raw import RawFormat, RawReader, RawWriter
from stan.device import choose
from stan.errors import StanError, VideoError
from stan.flow import FlowPair
from stan.inference.chunks import stack_sigma
from stan.inference.clip import ClipRunner, by_passes, needs_flow
from stan.inference.denoise import prepare
from stan.inference.enlarge import scale_of
from stan.inference.files import Result
from stan.inference.levels import NoiseLevels, found_if_not_given, warn_untrained
from stan.inference.options import DEFAULTS, Options
from stan.inference.overlap import Reading, Writing
from stan.inference.passes import PassDenoiser
from stan.inference.tiling import TilePlan

if TYPE_CHECKING:
    from stan.models import VideoDenoiser

__all__ = ["RawFormat", "StreamDenoiser", "denoise_stream"]

WIDEST = 1000
"""Frames of a window at most."""


class StreamDenoiser:
    """The network on a stream: each frame from a window of frames before it and, unless the model is causal, a
    few after.

    A frame comes out when the frame `delay` later has gone in: none later for a causal model,
    ``model.temporal_reach`` otherwise. The flow between two neighbours is estimated once. The start of a scene
    ends the window on both sides.

    Args:
        model: the network.
        options: how; ``window`` is how many frames it sees at once, at least ``delay + 1``: None is
            ``2 * model.temporal_reach + 1``, more are slower in proportion. Frames go through it whole.

    Raises:
        StanError: a window that is too short or too long, or a flow that is no estimator.
    """

    def __init__(self, model: VideoDenoiser, options: Options = DEFAULTS) -> None:
        if options.device is not None:
            model.to(choose(options.device))
        self.delay = 0 if model.causal else model.temporal_reach
        self.window = 2 * model.temporal_reach + 1 if options.window is None else options.window
        if not self.delay < self.window <= WIDEST:
            raise StanError(
                f"window={self.window} frames must be at least {self.delay + 1}, the delay and the frame, "
                f"and at most {WIDEST}"
            )
        if isinstance(options.flow, FlowPair):
            raise StanError("a stream's flow is not known beforehand: give what estimates it")
        self._model, self._options = model, options
        self._source = options.flow or model.source
        self._runner = ClipRunner(model, self._flow_of_window, options.dtype)
        if not needs_flow(model):
            self._runner.flow = None
        self._seen: deque[_Seen] = deque(maxlen=self.window)
        self._ahead = 0  # frames at the end that have not come out

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames with denoised pixels, each as soon as those it waits for are there.

        Args:
            frames: as `stan.inference.denoise.prepare` gives them.
        """
        for frame in warn_untrained(frames, self._model):
            flow = None
            if frame.begins_scene:
                yield from self._rest()
                self._seen.clear()
            elif self._runner.flow is not None:
                flow = self._flow_between(self._seen[-1].frame.rgb, frame.rgb)
            self._seen.append(_Seen(frame, flow))
            self._ahead += 1
            if self._ahead > self.delay:
                yield self._next()
        yield from self._rest()

    def _rest(self) -> Iterator[Frame]:
        """The frames that wait for later ones, now that there are none."""
        while self._ahead:
            yield self._next()

    def _next(self) -> Frame:
        """The first frame of the window that has not come out, denoised."""
        frames = [seen.frame for seen in self._seen]
        index = len(frames) - self._ahead
        self._ahead -= 1
        clip = torch.stack([frame.rgb for frame in frames])  # (T, 3, H, W)
        plan = TilePlan(frames=len(frames), frame_overlap=0)
        rgb = self._runner(clip, stack_sigma(frames), plan)[index]
        rgb = rgb.clamp_(0, 1) if self._options.clamp else rgb
        return replace(frames[index], rgb=rgb, noisy=frames[index].rgb)

    def _flow_between(self, before: Tensor, after: Tensor) -> FlowPair:
        """Flow of two neighbours, forward and backward, (2, H, W) each."""
        with torch.no_grad():
            pair = self._source(torch.stack((before, after))[None].to(self._runner.device))
        return FlowPair(pair.forward[0, 0], pair.backward[0, 1])

    def _flow_of_window(self, noisy: Tensor) -> FlowPair:
        """Flow of the frames held, (1, T, 2, H, W) each, put together from that of neighbours."""
        zero = noisy.new_zeros(2, *noisy.shape[-2:])
        steps = [seen.flow for seen in self._seen][1:]
        pairs = [step if step is not None else FlowPair(zero, zero) for step in steps]
        forward = [p.forward for p in pairs] + [zero]
        backward = [zero] + [p.backward for p in pairs]
        return FlowPair(torch.stack(forward)[None], torch.stack(backward)[None])


class _Seen(NamedTuple):
    """A frame of the window, and the flow from and to the one before it."""

    frame: Frame
    flow: FlowPair | None


def stream_denoiser(model: VideoDenoiser, options: Options) -> StreamDenoiser | PassDenoiser:
    """What denoises a stream: networks that go over the frames in passes keep what the earlier ones gave."""
    reach = model.reach
    if not by_passes(model, options.flow) or options.window not in (None, 2 * reach + 1):
        return StreamDenoiser(model, options)
    seen = 2 * model.pass_reach
    return PassDenoiser(model, replace(options, tiles=TilePlan(seen + 1, seen), memory=None), live=True)


def denoise_stream(
    model: VideoDenoiser,
    input: str | BinaryIO,
    output: str | BinaryIO,
    options: Options = DEFAULTS,
    raw: RawFormat | None = None,
) -> Result:
    """Denoise Y4M or raw frames from a pipe into another, in the same format.

    Args:
        model: the network.
        input: ``-`` for standard input, the name of a file or pipe, or a binary stream.
        output: ``-`` for standard output, the name of a pipe, or a binary stream.
        options: how to denoise; see `StreamDenoiser`. Scene cuts are found without looking ahead.
        raw: what raw frames are; None for Y4M.

    Raises:
        VideoError: an input that is neither, or ends inside a frame (those before it are given out).
        BrokenPipeError: whoever reads the output has gone.
    """
    began = time.monotonic()
    if scale_of(model) > 1:
        raise StanError(
            f"a stream keeps the size of its frames, and this network makes them {scale_of(model)} times larger: "
            "give it a file or a folder of pictures"
        )
    network = stream_denoiser(model, options)
    options = found_if_not_given(model, options)
    levels = NoiseLevels(model, options)
    count = 0
    damage: list[VideoError] = []
    with ExitStack() as stack:
        reader = RawReader(_reading(input, stack), raw)
        writer = RawWriter(_writing(output, stack), reader)
        if said := reader.properties.interlacing:
            options.tell(said)
        options.tell(
            f"streaming with a delay of {network.delay} frames, {network.window} frames seen at once"
        )

        def read() -> Iterator[Frame]:
            try:
                yield from reader
            except VideoError as error:
                damage.append(error)  # told when the frames before it are out

        writing = stack.enter_context(Writing(writer.write, 2))
        ready = prepare(read(), levels, options, look_ahead=False)
        with Reading(ready, 2) as reading:
            for frame in network(reading):
                writing.put(frame)
                count += 1
                if options.progress is not None:
                    options.progress(count, None)
    if damage:
        raise damage[0]
    if count == 0:
        raise VideoError("the input stream holds no frames")
    return Result(None, count, None, time.monotonic() - began, levels.summary)


def _reading(place: str | BinaryIO, stack: ExitStack) -> BinaryIO:
    if not isinstance(place, str):
        return place
    if place == "-":
        if sys.stdin is None:
            raise VideoError("standard input is closed: pipe Y4M into it")
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
        if sys.stdout is None:
            raise VideoError("standard output is closed: pipe it on (... | ffmpeg -i - out.mp4)")
        if sys.stdout.isatty():
            raise VideoError("standard output is a terminal: pipe it on (... | ffmpeg -i - out.mp4)")
        return sys.stdout.buffer
    if not os.path.exists(place) or not stat.S_ISFIFO(os.stat(place).st_mode):
        raise VideoError(
            f"{place} is not a pipe: with --stream the output is - (then > {place}) or a named pipe"
        )
    return stack.enter_context(open(place, "wb"))
