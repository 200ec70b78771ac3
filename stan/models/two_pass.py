"""Two-pass networks: clean each frame, look in the cleaned frames, merge the noisy ones, clean the mean.

The paper's network (`stan`) searches features of noisy frames and leaves it to training what to make of the
matches. At the sizes and training times of a small network that gains next to nothing from time
(docs/results.md). These networks do by measurement what need not be learned, see `merge.Merge`: frames are
averaged, and how much noise the average still has is known. What remains is a denoiser that is told the noise of
each pixel. One and the same cleans single frames first and the averages then, so that all it learns about pictures
serves both, and time pays from the first steps on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stan.flow
from stan.errors import ConfigError
from stan.flow import FlowPair
from stan.models.base import AttentionMap, VideoDenoiser
from stan.models.merge import GRID, Merge, Merged, alone
from stan.models.registry import register
from stan.models.unet import UNet
from stan.registry import sources
from stan.settings import ODD, above, at_least, between, complete

Positive = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]

BLOCK = 2
"""Side of the pixel blocks that are moved into the channels: both passes work at half resolution."""


@dataclass(frozen=True)
class TwoPassSettings:
    """All that defines a two-pass network; plain values, checked when it is made. The defaults are `stan_tiny`.

    Tuples run from the finest level (half resolution) down.

    Attributes:
        causal: no frame looks ahead.
        flow: offset source that centres the search. It sees the cleaned frames.
        flow_settings: settings of the offset source.
        channels: features of each level, from the finest (half resolution) down.
        depths: residual units of each level.
        features: channels at half resolution that a pass hands to the next one, merged like the frames.
        passes: how often the frames are cleaned: 1 is a network of single frames, each further one merges anew.
        temporal_window: wt, frames merged each side.
        window: ws, side of the search window around where the flow points.
        key_stride: distance of the candidates in the window, in pixels.
        patch: ps, side of the compared patches, in pixels.
        correction: channels inside the learned correction of the merge's weights; 0 is none.
    """

    causal: bool = False
    flow: Annotated[str, sources] = "dis"
    flow_settings: dict[str, Any] = field(default_factory=dict)
    channels: tuple[Positive, ...] = (32, 64, 88)
    depths: tuple[Natural, ...] = (2, 1, 2)
    features: Natural = 16
    passes: Positive = 2
    temporal_window: Annotated[int, between(1, 64)] = 2
    window: Annotated[int, between(1, 255)] = 5
    key_stride: Annotated[float, above(0)] = 1.0
    patch: Annotated[int, ODD] = 7
    correction: Natural = 8

    def __post_init__(self) -> None:
        """Turn lists into tuples, fill in the settings of the offset source, and check all values.

        Raises:
            ConfigError: names the setting and its value.
        """
        given = vars(self)
        for name, value in complete(TwoPassSettings, given, "the network", prefix="model setting ").items():
            object.__setattr__(self, name, value)
        levels = len(self.channels)
        self._require("channels", levels >= 1, "one number a level")
        self._require("depths", len(self.depths) == levels, f"one number for each of {levels} levels")

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
            blind=False,
            causal=s.causal,
            temporal_reach=s.temporal_window * (s.passes - 1),
            multiple=BLOCK * 2 ** (len(s.channels) - 1),
            least_frames=1,
        )
        self.passes = s.passes
        self.features = s.features
        inputs = 3 * planes + s.features + 2 + Merge.EVIDENCE
        self.clean = UNet(inputs, planes + s.features, s.channels, s.depths)
        self.merge = Merge(
            temporal_window=s.temporal_window,
            window=s.window,
            patch=s.patch,
            key_stride=s.key_stride,
            causal=s.causal,
            hidden=s.correction,
        )

    def needs_flow(self) -> bool:
        """The flow is estimated on cleaned frames, not on the noisy ones."""
        return False

    def forward_core(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None, return_matches: bool = False
    ) -> tuple[Tensor, list[AttentionMap]]:
        """See `VideoDenoiser.forward_core`."""
        estimates, merged = self._passes(noisy, noise_map, flow)
        return estimates[-1], [attention_map(merged)] if return_matches else []

    def estimates_core(self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None) -> list[Tensor]:
        """See `VideoDenoiser.estimates_core`: the result of each pass."""
        return self._passes(noisy, noise_map, flow)[0]

    def _passes(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None
    ) -> tuple[list[Tensor], Merged]:
        """The results of all passes, and what the last of them merged. A single frame needs but one pass."""
        assert noise_map is not None  # it is not blind
        t = noisy.shape[1]
        level = F.avg_pool2d(noise_map.flatten(0, 1), BLOCK).unflatten(0, (-1, t)).float()  # (B, T, 1, h, w)
        features = level.new_zeros(*level.shape[:2], self.features, *level.shape[3:])
        merged = alone(noisy.float(), noisy.float(), features, level)
        clean, features = self._clean(noisy, level, merged)
        estimates = [clean]
        for _ in range(self.passes - 1 if t > 1 else 0):
            seen = clean.detach()
            merged = self.merge(noisy, seen, features, level, self.source(seen) if flow is None else flow)
            clean, features = self._clean(noisy, level, merged)
            estimates.append(clean)
        return estimates, merged

    def _clean(self, noisy: Tensor, level: Tensor, merged: Merged) -> tuple[Tensor, Tensor]:
        """One pass of the network: the merged frames with what is to be changed in them, `(B, T, 3, H, W)`, and the
        features for the next pass, `(B, T, F, h, w)`."""
        t = noisy.shape[1]
        mean = blocks(merged.noisy)  # (N, 12, h, w)
        known = [x.flatten(0, 1) for x in (merged.features, level, merged.remaining, merged.evidence)]
        result = each(self.clean, torch.cat([blocks(noisy), mean, blocks(merged.cleaned), *known], 1))
        change, features = result[:, : mean.shape[1]], result[:, mean.shape[1] :]
        return unblocks(mean + change, t), features.unflatten(0, (-1, t))


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


SMALL: dict[str, Any] = {
    "channels": (64, 128, 192),
    "depths": (2, 2, 3),
    "temporal_window": 3,
}


@register("stan_small", declares=TwoPassSettings, preset=SMALL)
def stan_small(**settings: Any) -> TwoPass:
    """At most 4 M parameters, in two passes over cleaned frames."""
    return TwoPass("stan_small", TwoPassSettings(**settings))


@register("stan_tiny", declares=TwoPassSettings)
def stan_tiny(**settings: Any) -> TwoPass:
    """At most 0.6 M parameters, in two passes over cleaned frames: trains and runs on a CPU."""
    return TwoPass("stan_tiny", TwoPassSettings(**settings))
