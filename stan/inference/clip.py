"""One chunk of frames through the network, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stan.errors import StanError
from stan.flow import FlowPair
from stan.inference.memory import trim_heap
from stan.inference.pace import Pace, Tell
from stan.inference.precision import DType, casting, type_of
from stan.inference.tiling import TilePlan, blend_weights, round_up

if TYPE_CHECKING:
    from stan.models import VideoDenoiser

FlowOf = Callable[[Tensor], FlowPair]
"""What estimates the flow of a noisy video (1, T, 3, H, W) in [0, 1]; an `OffsetSource` is one."""

FLOW_PIXELS = 4_000_000
"""Pixels, of all frames, whose flow is estimated in one go where it depends on neighbouring frames only."""

CORNER = 64
"""Side of the corner of the first chunk on which the network's pace is measured; no larger than a sixteenth of
the frame."""

TRIM_ABOVE = 1 << 18
"""Values in a tile from which on the heap is put in order before it; below, it does not matter."""


class ClipRunner:
    """A network, ready for chunks of a video: knows where it runs, in which type, and where flow comes from.

    Args:
        model: the network.
        flow: what estimates the flow of a chunk, or the flow of the whole video as `(T, 2, H, W)` or
            `(1, T, 2, H, W)` each; None takes ``model.source``, if the model looks at flow at all.
        dtype: run the network under autocast in this type; None does not, "auto" where the device is fast at bfloat16.

    The flow is estimated once per chunk, on whole frames, and cropped for each tile: near a tile's border it
    then still knows what moves in from outside, and no pixel's flow is computed twice.
    """

    def __init__(
        self, model: VideoDenoiser, flow: FlowOf | FlowPair | None = None, dtype: DType = None
    ) -> None:
        self.model = model
        self.dtype = type_of(dtype, device_of(model))
        self.by_passes = by_passes(model, flow)
        self.pace = Pace(model)
        self.flow = flow
        if isinstance(flow, FlowPair):
            self.flow = FlowPair(*(f[0] if f.ndim == 5 else f for f in flow))
        elif flow is None and needs_flow(model):
            self.flow = model.source

    @property
    def device(self) -> torch.device:
        """Where the network is, and so where tiles are computed."""
        return device_of(self.model)

    def __call__(
        self,
        clip: Tensor,
        sigma: Tensor | None,
        plan: TilePlan,
        *,
        start: int = 0,
        tell: Tell | None = None,
    ) -> Tensor:
        """Denoise one chunk.

        Args:
            clip: `(T, 3, H, W)`, uint8 or float in about [0, 1].
            sigma: `(T, 1, 1, 1)` or `(T, 1, H, W)`, 8-bit units; None for a blind model.
            plan: how to cut the frames (its `frames` plays no part).
            start: index of the first frame in the video, for a flow given for the whole video.
            tell: called now and then with the part of this chunk's time that has passed, in [0, 1].

        Returns:
            `(T, 3, H, W)` float32 on the CPU.
        """
        height, width = clip.shape[-2:]
        rows, columns = plan.spans(height, width, self.model.multiple)
        area = sum(b - a for a, b in rows) * sum(b - a for a, b in columns)
        done = 0.0  # part of the tiles
        with torch.no_grad(), evaluating(self.model):
            noisy = as_float(clip.to(self.device))
            level = None if sigma is None else sigma.to(self.device)
            if tell and not self.pace.known:
                self._rehearse(noisy, level)
            self.pace.begin(tell, self.device.type == "cpu")  # a GPU only queues what modules do
            flow = self._flow(noisy, start)
            if len(rows) * len(columns) == 1:
                with self.pace.tile():
                    out = self.tile(noisy, level, flow)
                return out.cpu()
            out = torch.zeros_like(noisy)
            for (top, bottom), weight_y in zip(rows, blend_weights(rows)):
                for (left, right), weight_x in zip(columns, blend_weights(columns)):
                    window = (..., slice(top, bottom), slice(left, right))
                    part = (bottom - top) * (right - left) / area
                    with self.pace.tile(done, part):
                        clean = self.tile(
                            noisy[window],
                            level if level is None or level.shape[-1] == 1 else level[window],
                            None if flow is None else FlowPair(*(f[window] for f in flow)),
                        )
                    weight = (weight_y[:, None] * weight_x).to(self.device)  # (h, w)
                    out[window].addcmul_(clean, weight)
                    done += part
            return out.cpu()

    def tile(self, noisy: Tensor, sigma: Tensor | None, flow: FlowPair | None) -> Tensor:
        """The network on one tile `(T, 3, h, w)`; `flow` as `(T, 2, h, w)` each."""
        if noisy.device.type == "cpu" and noisy.numel() >= TRIM_ABOVE:
            trim_heap()
        with casting(self.dtype, noisy.device):
            clean = self.model(
                noisy.contiguous()[None],
                None if sigma is None else sigma.contiguous()[None],
                None if flow is None else FlowPair(*(f.contiguous()[None] for f in flow)),
            )
        if clean.shape[1:] != noisy.shape:
            raise StanError(
                f"model {self.model.name!r} returned {tuple(clean.shape[1:])} for {tuple(noisy.shape)}"
            )
        return clean[0].float().contiguous()

    def _rehearse(self, noisy: Tensor, sigma: Tensor | None) -> None:
        """Run on a corner of a large chunk, so that the pace of the first one is known beforehand."""
        side = round_up(CORNER, self.model.multiple)
        if noisy.device.type != "cpu" or noisy[0, 0].numel() < 16 * side * side:
            return
        corner = (..., slice(side), slice(side))
        self.pace.begin(lambda part: None)
        zero = noisy.new_zeros(len(noisy), 2, side, side)
        flow = None if self.flow is None else FlowPair(zero, zero)
        if self.flow is not None and not isinstance(self.flow, FlowPair):
            flow = estimate_flow(self.flow, noisy[corner], self.pace.flow)
        with self.pace.tile():
            self.tile(noisy[corner], None if sigma is None else sigma[corner], flow)

    def _flow(self, noisy: Tensor, start: int) -> FlowPair | None:
        """The flow of a chunk, `(T, 2, H, W)` each on the model's device."""
        if self.flow is None:
            return None
        if not isinstance(self.flow, FlowPair):
            return estimate_flow(self.flow, noisy, self.pace.flow)
        stop = start + len(noisy)
        pair = FlowPair(*(f[start:stop].to(noisy.device, torch.float32, copy=True) for f in self.flow))
        for f in pair:
            if f.shape != (len(noisy), 2, *noisy.shape[2:]):
                raise StanError(
                    f"flow of frames {start} to {stop} has shape {tuple(f.shape)}, expected "
                    f"{(len(noisy), 2, *noisy.shape[2:])}"
                )
        pair.forward[-1] = 0  # the chunk ends here, whatever the video does
        pair.backward[0] = 0
        return pair


def estimate_flow(source: FlowOf, noisy: Tensor, tell: Tell | None = None) -> FlowPair:
    """The flow of a chunk `(T, 3, H, W)`, as `(T, 2, H, W)` each, by as many frames at a time as the source
    needs; `tell` hears the part that is done."""
    length, _, height, width = noisy.shape
    together = flow_frames(source, length, height, width)
    if together == length:
        pair = FlowPair(*(f[0].to(noisy.device, torch.float32) for f in source(noisy[None])))
        if tell:
            tell(1.0)
        return pair
    forward, backward = noisy.new_zeros(2, length, 2, height, width, dtype=torch.float32)
    for start in range(0, length - 1, together - 1):
        pair = source(noisy[None, start : start + together])
        forward[start : start + together - 1] = pair.forward[0, : together - 1]
        backward[start + 1 : start + together] = pair.backward[0, 1:]
        if tell:
            tell(min(1.0, (start + together) / length))
    return FlowPair(forward, backward)


def flow_frames(source: FlowOf | FlowPair, length: int, height: int, width: int) -> int:
    """How many frames of a chunk are given to the offset source together."""
    if not getattr(source, "pairwise", False) or getattr(source, "context", None):
        return length
    return min(length, max(2, FLOW_PIXELS // (height * width)))


def by_passes(model: VideoDenoiser, flow: FlowOf | FlowPair | None) -> bool:
    """Whether the network can be run pass by pass: it has passes, and flow needs no more than two neighbours."""
    return model.passes > 0 and flow is None and getattr(model.source, "pairwise", False)


def needs_flow(model: VideoDenoiser) -> bool:
    """Whether the network looks at flow; where not, none is estimated."""
    return model.source is not None and model.needs_flow()


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def as_float(frames: Tensor) -> Tensor:
    """uint8 frames as float32 in [0, 1]; float frames as float32."""
    if frames.dtype == torch.uint8:
        return frames.float().div_(255)
    return frames.float()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each of its modules is as it was."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
