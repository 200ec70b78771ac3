"""Stand-ins for trained networks: tiny, deterministic, each built to make one property of the inference
visible."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.flow import FlowPair, OffsetSource
from stan.models import VideoDenoiser
from stan.models.base import AttentionMap


class ZeroSource(OffsetSource):
    """No motion."""

    name = "zero"

    def estimate(self, video: Tensor) -> FlowPair:
        b, t, _, h, w = video.shape
        zeros = video.new_zeros(b, t, 2, h, w)
        return FlowPair(zeros, zeros)


class StandIn(VideoDenoiser):
    """A network whose core is a function of (noisy, noise map, flow)."""

    def __init__(
        self,
        core: Callable[[Tensor, Tensor | None, FlowPair], Tensor],
        *,
        blind: bool = True,
        multiple: int = 1,
        temporal_reach: int = 1,
        source: OffsetSource | None = None,
    ) -> None:
        super().__init__(
            name="stand-in",
            settings={},
            source=source or ZeroSource(),
            blind=blind,
            causal=False,
            temporal_reach=temporal_reach,
            multiple=multiple,
        )
        self.core = core
        self.uses_flow = source is not None
        self.sizes: list[tuple[int, ...]] = []

    def needs_flow(self) -> bool:
        return self.uses_flow

    def forward_core(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair, return_matches: bool = False
    ) -> tuple[Tensor, list[AttentionMap]]:
        self.sizes.append(tuple(noisy.shape))
        return self.core(noisy, noise_map, flow), []


def identity(multiple: int = 1) -> StandIn:
    """Returns its input."""
    return StandIn(lambda noisy, _, __: noisy, multiple=multiple)


class Convolutions(StandIn):
    """A real network with a small receptive field: two strides down and up, a 3-D convolution between them.

    A pixel sees 14 pixels to each side and one frame. Random weights, so that its output differs much from
    its input.
    """

    RADIUS = 14

    def __init__(self, blind: bool = True, width: int = 8) -> None:
        super().__init__(self._run, blind=blind, multiple=4)
        inputs = 3 if blind else 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.down = torch.nn.Conv2d(inputs, width, 4, stride=4)
            self.mix = torch.nn.Conv3d(width, width, 3, padding=1)
            self.up = torch.nn.ConvTranspose2d(width, 3, 4, stride=4)
            self.last = torch.nn.Conv2d(3, 3, 3, padding=1)

    def _run(self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair) -> Tensor:
        b, t, _, h, w = noisy.shape
        x = noisy if noise_map is None else torch.cat([noisy, noise_map], 2)
        x = F.relu(self.down(x.flatten(0, 1)))  # (B*T, width, h/4, w/4)
        x = self.mix(x.unflatten(0, (b, t)).transpose(1, 2)).transpose(1, 2)  # (B, T, width, h/4, w/4)
        x = self.last(self.up(x.flatten(0, 1))).view(b, t, 3, h, w)
        return noisy + x
