"""What every offset source is: a module that says where each pixel went in the neighbouring frames."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan.errors import DataError
from stan.settings import complete


class FlowPair(NamedTuple):
    """Displacements between neighbouring frames, each `(B, T, 2, H, W)` float32 in pixels, (x, y) order.

    ``forward[:, t]`` maps frame t to t+1 (last frame: zero), ``backward[:, t]`` maps frame t to t-1 (first
    frame: zero): the thing at x in frame t is at x + flow in the other frame.
    """

    forward: Tensor
    backward: Tensor


def grey(video: Tensor) -> Tensor:
    """BT.601 luma of a video `(B, T, 3, H, W)` clipped to [0, 1], without a gradient: `(B, T, H, W)` float32.

    A pixel that is not a number is black.
    """
    red, green, blue = video.detach().float().clamp(0, 1).unbind(2)
    return (0.299 * red).add_(0.587 * green).add_(0.114 * blue).nan_to_num_(0.0)


def bordered(frames: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Frames `(N, C, H, W)`, the border repeated to sides that are multiples of `multiple`, and at least `least`."""
    below, right = (-(-max(side, least) // multiple) * multiple - side for side in frames.shape[-2:])
    return F.pad(frames, (0, right, 0, below), mode="replicate")


def enlarged(flow: Tensor, times: int) -> Tensor:
    """Flow `(..., 2, h, w)` at `times` the size, bilinearly, in the larger pixels."""
    if times == 1 or flow.numel() == 0:
        return flow.reshape(*flow.shape[:-2], flow.shape[-2] * times, flow.shape[-1] * times)
    large = F.interpolate(flow.flatten(0, -4), scale_factor=times, mode="bilinear", align_corners=False)
    return (large * times).unflatten(0, flow.shape[:-3])


def smoothed(x: Tensor, side: int) -> Tensor:
    """`(..., h, w)`, each value replaced by the mean over the square of `side` (odd) around it, inside the frame.

    As `avg_pool2d` with `count_include_pad=False`, which takes twice the time.
    """
    reach = side // 2
    for dim in (-1, -2):
        n = x.shape[dim]
        wide = F.pad(x, (reach, reach, 0, 0) if dim == -1 else (0, 0, reach, reach))
        total = wide.narrow(dim, 0, n) + wide.narrow(dim, 1, n)
        for k in range(2, side):
            total += wide.narrow(dim, k, n)
        at = torch.arange(n, device=x.device)
        count = (at + reach).clamp(max=n - 1) - (at - reach).clamp(min=0) + 1
        x = total / (count if dim == -1 else count[:, None])
    return x


class OffsetSource(nn.Module):
    """Base of the offset sources: ``source(video) -> FlowPair``.

    A subclass is registered in `stan.registry.sources`, hands its settings (plain values that rebuild it) to this
    constructor, which checks them as the subclass declares them, and implements `estimate`. Sources with
    parameters that learn through the search's flow gradient return a differentiable result and set `trainable`;
    all others return plain data. One whose flow between two neighbours depends on these two frames alone sets
    `pairwise`: long videos are then estimated in pieces. One that corrects such flow by what is around it sets
    `pairwise` and `context`, and implements `measured`, the flow of the two frames alone, and `corrected`, of which
    `estimate` is the second after the first. One that calls another library than torch unsets `torch_only`: it cannot
    be part of an exported graph.

    Args:
        settings: the keyword arguments that rebuild this source, ``build(source.name, **source.settings)``.

    Attributes:
        trainable, pairwise, torch_only: see above.
        needs_training: a fresh source says nothing of worth; it is trained with a network, or by itself for one.
        context: frames on each side of two neighbours that `corrected` looks at as well.
        causal: no later frame may say anything about earlier flow; set by a network that does not look ahead.
    """

    name: ClassVar[str] = "own"
    trainable: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    pairwise: ClassVar[bool] = False
    context: ClassVar[int] = 0
    torch_only: ClassVar[bool] = True

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.causal = False
        self.settings: dict[str, Any] = complete(type(self), settings, f"offset source {self.name!r}")

    @property
    def version(self) -> str:
        """The library and version that computes the flow; a cached flow of another version is not used."""
        return "1"

    def forward(self, video: Tensor) -> FlowPair:
        """Displacements to the next and the previous frame.

        Args:
            video: `(B, T, 3, H, W)` float, about [0, 1]; noise may leave that range. Any T >= 1, H, W >= 1.

        Returns:
            a `FlowPair` on the video's device.

        Raises:
            DataError: if the video has another layout.
        """
        if video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point() or 0 in video.shape[3:]:
            raise DataError(
                f"flow needs a float video (B, T, 3, H, W), got {tuple(video.shape)} of {video.dtype}"
            )
        b, t, _, h, w = video.shape
        if t == 1 or b == 0:  # nothing moves anywhere
            zeros = torch.zeros(b, t, 2, h, w, device=video.device)
            return FlowPair(zeros, zeros.clone())
        return self.estimate(video)

    def estimate(self, video: Tensor) -> FlowPair:
        """Compute the flow of a checked video of two frames or more (see `forward`)."""
        raise TypeError(f"{type(self).__name__} is an offset source without an estimate() method")

    def measured(self, video: Tensor) -> FlowPair:
        """The flow of a `pairwise` source before anything but the two neighbours is looked at; as for the call."""
        return self(video)

    def corrected(self, video: Tensor, flow: FlowPair) -> FlowPair:
        """`measured` flow, corrected by frames and flow around it; it stays as it is where `context` is 0.

        Args:
            video: `(B, T, 3, H, W)`; the flow at its ends is corrected by less than that amid it.
            flow: of `measured`.
        """
        return flow

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
