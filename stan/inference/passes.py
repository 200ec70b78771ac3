"""Networks that go over the frames in passes, on frames as they come: each pass follows the one before at a small
distance, so that no frame is cleaned twice, and no flow estimated twice, whatever the length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.data.frame import Frame
from stan.device import choose
from stan.flow import FlowPair
from stan.inference.chunks import ChunkDenoiser, planned, smaller
from stan.inference.clip import as_float, by_passes, device_of, evaluating
from stan.inference.levels import warn_untrained
from stan.inference.memory import is_out_of_memory, release_memory, trim_heap
from stan.inference.options import Options
from stan.inference.overlap import Reading
from stan.inference.planning import AHEAD_PART
from stan.inference.precision import casting, type_of
from stan.inference.tiling import TilePlan, blend_weights
from stan.models.base import Cleaned, joined, pad_space

if TYPE_CHECKING:
    from stan.models import VideoDenoiser

log = logging.getLogger("stan.inference")


def denoiser(
    model: VideoDenoiser, options: Options, total: int | None = None, ahead: bool = False
) -> PassDenoiser | ChunkDenoiser:
    """What takes frames through the network: pass by pass where it can be, else in chunks. Arguments as for these."""
    if by_passes(model, options.flow):
        return PassDenoiser(model, options, total, ahead=ahead)
    return ChunkDenoiser(model, options, total)


@dataclass(eq=False)
class _Seen:
    """A frame between two passes; tensors are on the model's device, padded to the size it likes."""

    frame: Frame
    noisy: Tensor  # (3, H, W)
    level: Tensor | None  # (1, 1, 1) or (1, H, W), in units of the video
    frames: Tensor  # (3, H, W), what the last pass made of it
    features: Tensor  # (F, h, w)
    flow: FlowPair | None = None  # (2, H, W) each: from the frame before to this one, and back
    corrected: FlowPair | None = None  # the same, once all frames are there that it is corrected by


class PassDenoiser:
    """The network on frames as they come, pass by pass; no pass looks across a cut.

    A pass after the first takes frames in groups, as the search works on whole clips: a group and the frames that it
    looks at are the `frames` of the tile plan. The result is that of the whole scene in one piece, up to rounding
    unless there are tiles. When memory runs out, smaller groups are tried, then smaller tiles.

    Args:
        model: the network; see `by_passes`.
        options: how.
        total: number of frames if it is known, for the progress and the memory plan.
        ahead: the first pass runs ahead in a thread of its own, by `AHEAD_PART` of the plan's frames at most, so that
            no core waits.
        live: give out a frame as soon as `delay` later ones are there, also at the start of a scene, where the frames
            on one side are fewer then.
    """

    def __init__(
        self,
        model: VideoDenoiser,
        options: Options,
        total: int | None = None,
        *,
        ahead: bool = False,
        live: bool = False,
    ) -> None:
        if options.device is not None:
            model.to(choose(options.device))
        self.model, self.options, self.total = model, options, total
        self.device = device_of(model)
        self.dtype = type_of(options.dtype, self.device)
        self.plan = options.tiles or TilePlan()
        self.reach = model.pass_reach
        self.delay = 0 if model.causal else model.reach
        self.window = 2 * model.reach + 1
        self._later = 0 if model.causal else self.reach
        self._slots = self.reach + 1 if model.causal else 2 * self.reach + 1
        self._ahead, self._live = ahead, live
        self._computed = 0  # frames, each counted once for each pass

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames with denoised pixels; the first one is taken at once.

        Args:
            frames: as `stan.inference.denoise.prepare` gives them.

        Raises:
            StanError: if memory does not suffice for the smallest tiles.
            ConfigError: for a `memory` that is no size.
        """
        frames = warn_untrained(frames, self.model)
        first = next(frames, None)
        if first is None:
            return iter(())
        height, width = first.rgb.shape[1:]
        if not self._live:
            self.plan = planned(self.model, self.options, self.total, (height, width))
            log.info("denoising in %s", self.plan.describe(height, width, self.model.multiple))
        return self._run(first, frames)

    def _run(self, first: Frame, frames: Iterator[Frame]) -> Iterator[Frame]:
        def all_frames() -> Iterator[Frame]:
            yield first
            yield from frames

        with evaluating(self.model):
            begun = map(self._first, all_frames())
            if self._ahead:
                room = max(2, int(AHEAD_PART * self.plan.frames))
                with Reading(begun, room, name="stan-first-pass") as reading:
                    yield from self._finished(iter(reading))
            else:
                yield from self._finished(begun)

    def _finished(self, seen: Iterator[_Seen]) -> Iterator[Frame]:
        """The frames behind all passes after the first."""
        for _ in range(self.model.passes - 1):
            seen = self._again(seen)
        for item in seen:
            height, width = item.frame.rgb.shape[1:]
            rgb = item.frames[:, :height, :width].cpu()
            rgb = rgb.clamp(0, 1) if self.options.clamp else rgb.clone()  # a view would keep the group alive
            yield replace(item.frame, rgb=rgb, noisy=item.frame.rgb)

    def _first(self, frame: Frame) -> _Seen:
        """A frame behind the first pass."""
        rgb = as_float(frame.rgb.to(self.device))
        height, width = rgb.shape[1:]
        more = -height % self.model.multiple, -width % self.model.multiple
        noisy = pad_space(rgb[None, None], *more)
        level = None
        if isinstance(frame.sigma, Tensor):
            level = frame.sigma.to(self.device)[None, None] / 255
            level = level if level.numel() == 1 else pad_space(level, *more)

        def run(at: Window) -> Iterator[Cleaned]:
            yield self.model.first_pass(noisy[at].contiguous(), _window(level, at))

        made = None
        while made is None:
            made = next(self._tiled(noisy, run), None)
        self._tell(1)
        level = None if level is None else level[0, 0]
        return _Seen(frame, noisy[0, 0], level, made.frames[0, 0], made.features[0, 0])

    def _again(self, seen: Iterator[_Seen]) -> Iterator[_Seen]:
        """The frames behind one more pass.

        `held` are frames of one scene: those before number `done` are behind the pass, and of them only as many are
        kept as the last frames of a scene look back at.
        """
        held: list[_Seen] = []
        done = 0
        for item in seen:
            if item.frame.begins_scene:
                yield from self._pass(held, done, len(held))
                held, done = [], 0
            full = len(held) - max(0, done - self.reach) >= self._clip
            held.append(item)
            if full or self._live:  # frames before number `ready` have all that they look at
                ready = len(held) - self._later - (0 if self._live else 1)
                yield from self._pass(held if self._live else held[:-1], done, ready)
                past = max(0, ready - 2 * self.reach)
                del held[:past]
                done = max(done, ready) - past
        yield from self._pass(held, done, len(held))

    @property
    def _clip(self) -> int:
        """Frames of a clip that a pass takes: a group, and what it looks at on both sides."""
        return max(self.plan.frames, self._slots)

    @property
    def _group(self) -> int:
        """Frames that a pass takes together, amid a scene."""
        return max(1, self.plan.frames - 2 * self.reach)

    def _pass(self, held: Sequence[_Seen], done: int, stop: int) -> Iterator[_Seen]:
        """The frames `done` to `stop` of those held, behind the pass."""
        if len(held) == 1 and not (self._live and self.model.causal):
            yield from held[done:stop]  # a scene of one frame, which has but the first pass
            return
        while done < stop:
            limit = max(0, done - self.reach) + self._clip
            end = stop if len(held) <= limit else min(stop, max(done + 1, limit - self._later))
            until = min(len(held), max(end + self._later, self._slots))
            begin = max(0, min(done - self.reach, until - self._slots))
            for made in self._merged(held[begin:until], slice(done - begin, end - begin)):
                fresh = held[done : done + made.frames.shape[1]]
                self._tell(len(fresh))
                for item, frames, features in zip(fresh, made.frames[0], made.features[0]):
                    yield replace(item, frames=frames, features=features, flow=None, corrected=None)
                done += len(fresh)
                del made  # not beside what comes next

    def _merged(self, clip: Sequence[_Seen], keep: slice) -> Iterator[Cleaned]:
        """The frames `keep` of a clip behind the pass, a few at a time; fewer of them if memory ran out."""
        if self.options.memory is not None:
            trim_heap()  # takes a twentieth of the time: only where memory was said to be short
        flow = self._flow(clip)
        noisy, frames, features = (
            torch.stack([getattr(item, name) for item in clip])[None]
            for name in ("noisy", "frames", "features")
        )
        levels = [item.level for item in clip if item.level is not None]
        level = None
        if levels:
            largest = max(levels, key=lambda x: x.numel())
            level = torch.stack([x.expand_as(largest) for x in levels])[None]
        scale = noisy.shape[-1] // features.shape[-1]

        def run(at: Window) -> Iterator[Cleaned]:
            small = (..., _part(at[1], scale), _part(at[2], scale))
            before = Cleaned(frames[at].contiguous(), features[small].contiguous())
            pair = FlowPair(*(f[at].contiguous() for f in flow))
            return self.model.next_pass(noisy[at].contiguous(), _window(level, at), before, pair, keep)

        yield from self._tiled(noisy, run)

    @torch.no_grad()
    def _flow(self, clip: Sequence[_Seen]) -> FlowPair:
        """The flow of a clip, `(1, T, 2, H, W)` each; that between two neighbours is estimated once."""
        source, zero = self.model.source, torch.zeros_like(clip[0].noisy[:2])
        first = next((n for n, item in enumerate(clip) if n > 0 and item.flow is None), len(clip))
        if first < len(clip):
            pair = source.measured(self._views(clip[first - 1 :]))
            for n, item in enumerate(clip[first:]):
                item.flow = FlowPair(pair.forward[0, n], pair.backward[0, n + 1])
        measured = [item.flow for item in clip[1:] if item.flow is not None]
        if not source.context:
            return _in_order(measured, zero)
        first = next((n for n, item in enumerate(clip) if n > 0 and item.corrected is None), len(clip))
        known = [item.corrected for item in clip[1:first] if item.corrected is not None]
        if first < len(clip):
            begin = max(0, first - 1 - source.context)
            pair = source.corrected(self._views(clip[begin:]), _in_order(measured[begin:], zero))
            fresh = [FlowPair(*both) for both in zip(pair.forward[0], pair.backward[0, 1:])][
                first - 1 - begin :
            ]
            known += fresh
            for item, both in zip(clip[first : len(clip) - source.context], fresh):
                item.corrected = both  # not at the end of the clip: there may be more to come
        return _in_order(known, zero)

    @torch.no_grad()
    def _views(self, clip: Sequence[_Seen]) -> Tensor:
        """What flow sees of a clip, `(1, T, 3, H, W)`."""
        return torch.stack([self.model.flow_view(item.noisy, item.frames) for item in clip])[None]

    def _tiled(self, noisy: Tensor, run: Callable[[Window], Iterator[Cleaned]]) -> Iterator[Cleaned]:
        """What `run` makes of the parts of frames `(1, T, 3, H, W)`, put together, a few frames at a time. Ends early
        if memory ran out, after which the plan is smaller."""
        height, width = noisy.shape[-2:]
        parts = self._parts(height, width, run)
        while True:
            try:
                with torch.no_grad(), casting(self.dtype, self.device):  # not while the receiver is at work
                    made = next(parts, None)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            if made is None:
                return
            yield made
            del made
        # Outside the handler, where no traceback holds the failed attempt's tensors any more.
        self.plan = self._less(height, width)

    def _less(self, height: int, width: int) -> TilePlan:
        """The plan to try after memory ran out: half the group, which costs little here, before smaller tiles."""
        if self._group == 1:
            return smaller(self.plan, self.model, (height, width))
        frames = self._group // 2 + 2 * self.reach
        less = replace(self.plan, frames=frames, frame_overlap=min(self.plan.frame_overlap, frames - 1))
        release_memory(self.device)
        log.warning("out of memory; trying again in %s", less.describe(height, width, self.model.multiple))
        return less

    def _parts(
        self, height: int, width: int, run: Callable[[Window], Iterator[Cleaned]]
    ) -> Iterator[Cleaned]:
        rows, columns = self.plan.spans(height, width, self.model.multiple)
        if len(rows) * len(columns) == 1:
            yield from run((..., slice(None), slice(None)))
            return
        whole: Cleaned | None = None
        for (top, bottom), weight_y in zip(rows, blend_weights(rows)):
            for (left, right), weight_x in zip(columns, blend_weights(columns)):
                part = joined(run((..., slice(top, bottom), slice(left, right))))
                weight = (weight_y[:, None] * weight_x).to(self.device)  # (h, w)
                scales = [(bottom - top) // x.shape[3] for x in part]
                if whole is None:
                    whole = Cleaned(
                        *(x.new_zeros(*x.shape[:3], height // s, width // s) for x, s in zip(part, scales))
                    )
                for total, x, s in zip(whole, part, scales):
                    at = (..., slice(top // s, bottom // s), slice(left // s, right // s))
                    total[at].addcmul_(x, F.avg_pool2d(weight[None], s)[0])
        assert whole is not None
        yield whole

    def _tell(self, frames: int) -> None:
        """So many frames are behind one more pass."""
        self._computed += frames
        if self.options.progress is not None and not self._live:
            self.options.progress(self._computed / self.model.passes, self.total)


def _in_order(pairs: Sequence[FlowPair], zero: Tensor) -> FlowPair:
    """The flow of a clip, `(1, T, 2, H, W)` each, from that of its neighbours; `zero` beyond its ends."""
    forward = torch.stack([*(pair.forward for pair in pairs), zero])[None]
    return FlowPair(forward, torch.stack([zero, *(pair.backward for pair in pairs)])[None])


Window = tuple[EllipsisType, slice, slice]
"""An index of rows and columns, behind any leading axes."""


def _part(at: slice, scale: int) -> slice:
    """The same part of an axis that is smaller by `scale`."""
    return at if at.start is None else slice(at.start // scale, at.stop // scale)


def _window(level: Tensor | None, at: Window) -> Tensor | None:
    """A noise map's part; one number a frame is the same everywhere."""
    return level if level is None or level.shape[-2:] == (1, 1) else level[at].contiguous()
