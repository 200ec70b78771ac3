"""Two-pass networks: clean each frame, look in the cleaned frames, merge the noisy ones, clean again.

The paper's network (`stan`) searches features of noisy frames and leaves it to training what to make of the
matches. At the sizes and training times of a small network that gains next to nothing from time
(docs/results.md). These networks do by measurement what need not be learned, see `merge.Merge`, and tell the
second pass how much noise is left.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stan.flow
from stan.errors import ConfigError, nearest
from stan.flow import FlowPair
from stan.models.base import AttentionMap, VideoDenoiser
from stan.models.merge import GRID, Merge, Merged, alone
from stan.models.registry import register
from stan.models.settings import checked
from stan.models.unet import UNet

BLOCK = 2
"""Side of the pixel blocks that are moved into the channels: both passes work at half resolution."""


@dataclass(frozen=True)
class TwoPassSettings:
    """All that defines a two-pass network; plain values, checked when it is made. The defaults are `stan_tiny`.

    Tuples run from the finest level (half resolution) down.

    Attributes:
        blind: find the noise level always, even where one is given.
        causal: no frame looks ahead.
        flow: offset source that centres the search, a name of `stan.flow`. It sees the cleaned frames.
        flow_settings: settings of the offset source.
        first_channels: features of each level of the first pass.
        first_depths: its residual units at each level.
        channels: features of each level of the second pass.
        depths: its residual units at each level.
        temporal_window: wt, frames merged each side; 0 is a network of single frames.
        window: ws, side of the search window around where the flow points.
        key_stride: distance of the candidates in the window, in pixels.
        patch: ps, side of the compared patches, in pixels.
        correction: channels inside the learned correction of the merge's weights; 0 is none.
    """

    blind: bool = False
    causal: bool = False
    flow: str = "dis"
    flow_settings: dict[str, Any] = field(default_factory=dict)
    first_channels: tuple[int, ...] = (32, 48, 48)
    first_depths: tuple[int, ...] = (1, 1, 1)
    channels: tuple[int, ...] = (32, 64, 72)
    depths: tuple[int, ...] = (2, 1, 1)
    temporal_window: int = 2
    window: int = 3
    key_stride: float = 1.0
    patch: int = 7
    correction: int = 8

    def __post_init__(self) -> None:
        """Turn lists into tuples and check every value.

        Raises:
            ConfigError: names the setting and its value.
        """
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, checked(item.name, str(item.type), getattr(self, item.name)))
        for channels, depths in (("first_channels", "first_depths"), ("channels", "depths")):
            levels = len(getattr(self, channels))
            self._require(
                channels, levels >= 1 and min(getattr(self, channels), default=0) >= 1, "numbers above 0"
            )
            fits = len(getattr(self, depths)) == levels and min(getattr(self, depths)) >= 0
            self._require(depths, fits, f"one number for each of {levels} levels")
        self._require("temporal_window", self.temporal_window >= 0, "at least 0")
        self._require("correction", self.correction >= 0, "at least 0")
        self._require("window", self.window >= 1, "at least 1")
        self._require("key_stride", 0 < self.key_stride < float("inf"), "a number above 0")
        self._require("patch", self.patch >= 1 and self.patch % 2 == 1, "odd and at least 1")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"model setting {name}={getattr(self, name)} must be {wanted}")

    def plain(self) -> dict[str, Any]:
        """As plain data that YAML and JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


class TwoPass(VideoDenoiser):
    """Clean each frame, look in the cleaned frames, merge the noisy ones, clean again.

    Args:
        name: of the registry.
        settings: see `TwoPassSettings`.
    """

    def __init__(self, name: str, settings: TwoPassSettings) -> None:
        s = settings
        planes = 3 * BLOCK**2
        super().__init__(
            name=name,
            settings=s.plain(),
            source=stan.flow.build(s.flow, **s.flow_settings),
            blind=s.blind,
            causal=s.causal,
            temporal_reach=s.temporal_window,
            multiple=BLOCK * 2 ** (max(len(s.first_channels), len(s.channels)) - 1),
            least_frames=1,
        )
        self.first = UNet(planes + 1, planes, s.first_channels, s.first_depths)
        self.merge = (
            Merge(
                temporal_window=s.temporal_window,
                window=s.window,
                patch=s.patch,
                key_stride=s.key_stride,
                causal=s.causal,
                hidden=s.correction,
            )
            if s.temporal_window
            else None
        )
        self.second = UNet(4 * planes + 2 + Merge.EVIDENCE, planes, s.channels, s.depths)

    def needs_flow(self) -> bool:
        """The flow is estimated on cleaned frames, not on the noisy ones."""
        return False

    def forward_core(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None, return_matches: bool = False
    ) -> tuple[Tensor, list[AttentionMap]]:
        """See `VideoDenoiser.forward_core`."""
        *_, clean, merged = self._passes(noisy, noise_map, flow)
        return clean, [attention_map(merged)] if return_matches else []

    def estimates_core(self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None) -> list[Tensor]:
        """See `VideoDenoiser.estimates_core`: after the first pass and after the second."""
        first, clean, _ = self._passes(noisy, noise_map, flow)
        return [first, clean]

    def _passes(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None
    ) -> tuple[Tensor, Tensor, Merged]:
        assert noise_map is not None  # the base class finds the level where none is given
        t = noisy.shape[1]
        level = F.avg_pool2d(noise_map.flatten(0, 1), BLOCK).float()  # (N, 1, h, w)
        y = blocks(noisy)  # (N, 12, h, w)
        first = y + each(self.first, torch.cat([y, level], 1))
        cleaned = unblocks(first, t)  # (B, T, 3, H, W)
        grid = level.unflatten(0, (-1, t))  # (B, T, 1, h, w)
        if self.merge is None or t == 1:
            merged = alone(noisy, cleaned, grid)
        else:
            if flow is None:
                flow = self.source(cleaned.detach())
            merged = self.merge(noisy, cleaned, grid, flow)
        middle = blocks(merged.cleaned)
        known = [merged.remaining.flatten(0, 1), merged.evidence.flatten(0, 1)]
        x = torch.cat([y, first, blocks(merged.noisy), middle, level, *known], 1)
        return cleaned, unblocks(middle + each(self.second, x), t), merged


def each(network: UNet, x: Tensor) -> Tensor:
    """Run `network` on `(N, C, h, w)`; without gradients frame by frame, whose features stay in the cache."""
    x = x.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() or x.shape[0] == 1:
        return network(x).float()
    return torch.cat([network(frame).float() for frame in x.split(1)])


def blocks(video: Tensor) -> Tensor:
    """`(B, T, 3, H, W)` to `(N, 12, h, w)`: each 2x2 block of pixels becomes channels."""
    return F.pixel_unshuffle(video.flatten(0, 1).float(), BLOCK)


def unblocks(x: Tensor, frames: int) -> Tensor:
    """The inverse of `blocks`, for clips of `frames`."""
    return F.pixel_shuffle(x, BLOCK).unflatten(0, (-1, frames))


def attention_map(merged: Merged) -> AttentionMap:
    """Where the merge looked, as the record that all networks give."""
    weights = merged.weights.detach().movedim(2, -1)[:, None]  # (B, 1, T, h, w, K)
    return AttentionMap("merge", GRID, weights, merged.offsets[:, None] / GRID, merged.frames[:, None])


def make(name: str, defaults: dict[str, Any], overrides: dict[str, Any]) -> TwoPass:
    """A network whose settings are `defaults`, changed by `overrides`."""
    known = [f.name for f in dataclasses.fields(TwoPassSettings)]
    for key in overrides:
        if key not in known:
            raise ConfigError(f"model {name!r} has no setting {key!r}; {nearest(key, known)}")
    return TwoPass(name, TwoPassSettings(**{**defaults, **overrides}))


@register("two_pass")
def two_pass(**settings: Any) -> TwoPass:
    """At most 0.6 M parameters: trains and runs on a CPU."""
    return make("two_pass", {}, settings)
