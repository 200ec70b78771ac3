"""Two-pass networks: clean each frame, look in the cleaned frames, merge the noisy ones, clean the mean.

The paper's network (`stan`) searches features of noisy frames and leaves it to training what to make of the
matches. At the sizes and training times of a small network that gains next to nothing from time
(docs/results.md). These networks do by measurement what need not be learned, see `merge.Merge`: frames are
averaged, and how much noise the average still has is known. What remains is a denoiser that is told the noise of
each pixel. One and the same cleans single frames first and the averages then, so that all it learns about pictures
serves both, and time pays from the first steps on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stan.flow
from stan.errors import ConfigError, DataError
from stan.flow import FlowPair
from stan.models.base import AttentionMap, Cleaned, VideoDenoiser, joined
from stan.models.cells import BLOCK, CELL
from stan.models.convolutions import conv_3x3
from stan.models.merge import Merge, Merged, alone
from stan.models.registry import register
from stan.models.settings import learns
from stan.models.unet import UNet
from stan.registry import sources
from stan.settings import ODD, Limit, at_least, between, complete, plain

Positive = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]

BAND = 8
"""Rows of a picture that are turned from one order in memory to another at a time."""

TOGETHER = 8
"""Frames that are averaged at a time, where no gradient is wanted. Fewer take less memory, but the frames beside them
are laid out for the gather again each time."""


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
        brightness: merged frames keep their own brightness where it changes from frame to frame.
        flow_noise: share of the noise that the offset source sees again: cleaning has taken fine texture with it, by
            which flow finds its way.
    """

    causal: bool = False
    flow: Annotated[str, sources] = "dis"
    flow_settings: dict[str, Any] = field(default_factory=dict)
    channels: tuple[Positive, ...] = (32, 64, 88)
    depths: tuple[Natural, ...] = (2, 1, 2)
    features: Natural = 16
    passes: Positive = 2
    temporal_window: Annotated[int, between(1, 64)] = 3
    window: Annotated[int, between(1, 255)] = 3
    key_stride: Annotated[float, Limit(lambda pixels: 0 < pixels <= 1024, "above 0, at most 1024")] = 1.0
    patch: Annotated[int, ODD, between(1, 255)] = 7
    correction: Natural = 16
    brightness: bool = True
    flow_noise: Annotated[float, between(0, 1)] = 0.0

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
        if learns(self.flow) and self.passes == 1:
            raise ConfigError(
                f"model setting flow={self.flow!r} would never learn: with passes=1 nothing looks at flow; take "
                "flow=zero, or two passes"
            )

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"model setting {name}={getattr(self, name)} must be {wanted}")


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
            settings=plain(s),
            source=stan.flow.build(s.flow, **s.flow_settings),
            blind=False,
            causal=s.causal,
            temporal_reach=s.temporal_window * (s.passes - 1),
            multiple=BLOCK * 2 ** (len(s.channels) - 1),
        )
        self.passes = s.passes
        self.features, self.flow_noise = s.features, s.flow_noise
        inputs = 3 * planes + s.features + 2 + Merge.EVIDENCE
        self.clean = UNet(inputs, planes + s.features, s.channels, s.depths)
        self.merge = Merge(
            temporal_window=s.temporal_window,
            window=s.window,
            patch=s.patch,
            key_stride=s.key_stride,
            causal=s.causal,
            hidden=s.correction,
            brightness=s.brightness,
        )

    def needs_flow(self) -> bool:
        """The flow is estimated on cleaned frames, not on the noisy ones."""
        return False

    def forward_core(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None, return_matches: bool = False
    ) -> tuple[Tensor, list[AttentionMap]]:
        """See `VideoDenoiser.forward_core`."""
        estimates, merged = self._passes(noisy, noise_map, flow, return_matches)
        if not return_matches:
            return estimates[-1], []
        return estimates[-1], [attention_map(merged or self._alone(noisy, block_level(noise_map, noisy)))]

    def estimates_core(self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None) -> list[Tensor]:
        """See `VideoDenoiser.estimates_core`: the result of each pass."""
        return self._passes(noisy, noise_map, flow)[0]

    def flow_view(self, noisy: Tensor, cleaned: Tensor) -> Tensor:
        """See `VideoDenoiser.flow_view`."""
        return torch.lerp(cleaned.float(), noisy.float(), self.flow_noise) if self.flow_noise else cleaned

    def first_pass(self, noisy: Tensor, noise_map: Tensor | None) -> Cleaned:
        """See `VideoDenoiser.first_pass`.

        Raises:
            DataError: for parameters that are not float32, unless autocast brings them to its own type.
        """
        self._check_type(noisy.device.type)
        level = block_level(noise_map, noisy)
        if not torch.is_grad_enabled():
            return self._clean_alone(noisy, level)
        return self._clean(noisy, level, self._alone(noisy, level))

    def next_pass(
        self,
        noisy: Tensor,
        noise_map: Tensor | None,
        before: Cleaned,
        flow: FlowPair,
        keep: slice = slice(None),
    ) -> Iterator[Cleaned]:
        """See `VideoDenoiser.next_pass`."""
        level = block_level(noise_map, noisy)
        if torch.is_grad_enabled():
            yield self._again(noisy, level, before, flow, keep)[0]
            return
        found = self.merge.look(noisy, before.frames, level, flow, keep)
        begin, end, _ = keep.indices(noisy.shape[1])
        for first in range(begin, end, TOGETHER):
            part = slice(first, min(end, first + TOGETHER))
            merged = self.merge.average(found, before.features, level, part)
            yield self._clean(noisy[:, part], level[:, part], merged)

    def _check_type(self, kind: str) -> None:
        """Raise for parameters of a type in which nothing is computed: the merge measures in float32."""
        dtype = self.clean.enter.weight.dtype
        casts = torch.is_autocast_enabled(kind) and dtype != torch.float64  # which autocast leaves as it is
        if dtype != torch.float32 and not casts:
            raise DataError(
                f"{self.name} computes in float32, and its parameters are {dtype}: call .float() on it, and use "
                "torch.autocast for a shorter type"
            )

    def _passes(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None, wanted: bool = False
    ) -> tuple[list[Tensor], Merged | None]:
        """The results of all passes, and what the last of them merged if that is `wanted`. A single frame needs but
        one pass."""
        cleaned = self.first_pass(noisy, noise_map)
        level = block_level(noise_map, noisy)
        estimates, merged = [cleaned.frames], None
        for _ in range(self.passes - 1 if noisy.shape[1] > 1 else 0):
            before = Cleaned(cleaned.frames.detach(), cleaned.features)
            displacement = self.source(self.flow_view(noisy, before.frames)) if flow is None else flow
            if torch.is_grad_enabled() or wanted:
                cleaned, merged = self._again(noisy, level, before, displacement)
            else:
                cleaned = joined(self.next_pass(noisy, noise_map, before, displacement))
            estimates.append(cleaned.frames)
        return estimates, merged

    def _again(
        self, noisy: Tensor, level: Tensor, before: Cleaned, flow: FlowPair, keep: slice = slice(None)
    ) -> tuple[Cleaned, Merged]:
        """Merge the frames and clean the mean of those of `keep`; also what the merge gave."""
        found = self.merge.look(noisy, before.frames, level, flow, keep)
        merged = self.merge.average(found, before.features, level)
        return self._clean(noisy[:, keep], level[:, keep], merged), merged

    def _alone(self, noisy: Tensor, level: Tensor) -> Merged:
        """What the first pass sees in place of merged frames."""
        features = level.new_zeros(*level.shape[:2], self.features, *level.shape[3:])
        return alone(noisy.float(), noisy.float(), features, level)

    def _clean(self, noisy: Tensor, level: Tensor, merged: Merged) -> Cleaned:
        """One pass of the network: the merged frames with what is to be changed in them, and features."""
        b, t = noisy.shape[:2]
        pictures = noisy, merged.noisy, merged.cleaned
        maps = merged.features, level, merged.remaining, merged.evidence
        if torch.is_grad_enabled():
            x = torch.cat([*map(blocks, pictures), *(m.flatten(0, 1) for m in maps)], 1)
            result = self.clean(x.contiguous(memory_format=torch.channels_last)).float()
            mean = blocks(merged.noisy)
            change, features = result[:, : mean.shape[1]], result[:, mean.shape[1] :]
            return Cleaned(unblocks(mean + change, t), features.unflatten(0, (b, t)))
        flat = [[p.flatten(0, 1) for p in parts] for parts in (pictures, maps)]
        results = (
            self.clean(laid_out([p[n] for p in flat[0]], [m[n] for m in flat[1]])) for n in range(b * t)
        )
        return self._changed(merged.noisy, results)

    def _clean_alone(self, noisy: Tensor, level: Tensor) -> Cleaned:
        """`_clean` of single frames, whose channels repeat each other: they are 14, with the weights of the first
        convolution added up."""
        enter, planes, f = self.clean.enter, 3 * BLOCK**2, self.features
        w = enter.weight.float()
        seen = w[:, : 3 * planes].unflatten(1, (3, planes)).sum(1)
        levels, evidence = w[:, 3 * planes + f :][:, :2].sum(1, keepdim=True), w[:, 3 * planes + f + 2 :]
        known = torch.einsum("oekl,e->okl", evidence, ALONE.to(w))[:, None]
        weight = torch.cat([seen, levels, known], 1)  # (channels, 14, 3, 3)
        frames, level = noisy.flatten(0, 1), level.flatten(0, 1)
        one = torch.ones_like(level[0])

        def results() -> Iterator[Tensor]:
            for frame, sigma in zip(frames, level):
                x = conv_3x3(laid_out([frame], [sigma, one]), weight, enter.bias)
                yield self.clean.inner(x)

        return self._changed(noisy, results())

    def _changed(self, mean: Tensor, results: Iterable[Tensor]) -> Cleaned:
        """The frames `mean` changed by what the network gives for one after the other, without gradient."""
        b, t, _, height, width = mean.shape
        h, w = height // BLOCK, width // BLOCK
        clean = torch.empty(b * t, 3, height, width, device=mean.device)
        features = clean.new_empty(b * t, self.features, h, w)
        for n, (before, result) in enumerate(zip(mean.flatten(0, 1), results)):
            made = planar(result[0])
            change = made[: -self.features or None].unflatten(0, (3, BLOCK, BLOCK))
            for i, j in product(range(BLOCK), repeat=2):  # pixel by pixel of a block: long runs along a row
                at = (slice(None), slice(i, None, BLOCK), slice(j, None, BLOCK))
                torch.add(before[at], change[:, i, j], out=clean[n][at])
            features[n] = made[change.shape[0] * BLOCK**2 :]
        return Cleaned(clean.unflatten(0, (b, t)), features.unflatten(0, (b, t)))


ALONE = alone(*(torch.zeros(1, 1, c, 1, 1) for c in (3, 3, 0, 1))).evidence.flatten()
"""The evidence that a frame without matches has, `(3,)`."""


def block_level(noise_map: Tensor | None, noisy: Tensor) -> Tensor:
    """The noise level of each block, `(B, T, 1, h, w)` float32, from one of each pixel or each frame."""
    assert noise_map is not None  # these networks are not blind
    b, t, _, height, width = noisy.shape
    if noise_map.shape[-2:] == (1, 1) != (height, width):
        return noise_map.float().expand(b, t, 1, height // BLOCK, width // BLOCK)
    return F.avg_pool2d(noise_map.flatten(0, 1), BLOCK).unflatten(0, (b, t)).float()


def laid_out(pictures: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """Pictures `(3, H, W)`, by blocks, and maps `(C, h, w)` as one input of the network, `(1, channels, h, w)`:
    at once in the type and order in which the convolution reads it."""
    height, width = pictures[0].shape[1:]
    h, w = height // BLOCK, width // BLOCK
    kind = pictures[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    channels = 3 * BLOCK**2 * len(pictures) + sum(len(m) for m in maps)
    x = torch.empty(channels, h, w, dtype=dtype, device=pictures[0].device)
    at = 0
    for picture in pictures:
        picture = picture.unflatten(1, (h, BLOCK)).unflatten(3, (w, BLOCK))  # (3, h, 2, w, 2)
        stop = at + 3 * BLOCK**2
        x[at:stop].view(3, BLOCK, BLOCK, h, w).copy_(picture.permute(0, 2, 4, 1, 3))
        at = stop
    for m in maps:
        x[at : at + len(m)] = m
        at += len(m)
    return x[None].contiguous(memory_format=torch.channels_last)


def planar(x: Tensor) -> Tensor:
    """`(C, H, W)` contiguous, whatever order it lay in: by bands of rows that stay in the cache, 3 times as fast."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for into, band in zip(out.split(BAND, 1), x.split(BAND, 1)):
        into.copy_(band)
    return out


def blocks(video: Tensor) -> Tensor:
    """`(B, T, 3, H, W)` to `(N, 12, h, w)`: each 2x2 block of pixels becomes channels."""
    return F.pixel_unshuffle(video.flatten(0, 1).float(), BLOCK)


def unblocks(x: Tensor, frames: int) -> Tensor:
    """The inverse of `blocks`, for clips of `frames`."""
    return F.pixel_shuffle(x, BLOCK).unflatten(0, (-1, frames))


def attention_map(merged: Merged) -> AttentionMap:
    """Where the merge looked, as the record that all networks give."""
    weights = merged.weights.detach().movedim(2, -1)[:, None]  # (B, 1, T, h', w', K)
    offsets, frames = merged.places()
    return AttentionMap("merge", CELL, weights, offsets[:, None] / CELL, frames[:, None])


SMALL: dict[str, Any] = {
    "channels": (64, 128, 192),
    "depths": (2, 2, 3),
}


@register("stan_small", declares=TwoPassSettings, preset=SMALL)
def stan_small(**settings: Any) -> TwoPass:
    """At most 4 M parameters, in two passes over cleaned frames."""
    return TwoPass("stan_small", TwoPassSettings(**settings))


@register("stan_tiny", declares=TwoPassSettings)
def stan_tiny(**settings: Any) -> TwoPass:
    """At most 0.6 M parameters, in two passes over cleaned frames: trains and runs on a CPU."""
    return TwoPass("stan_tiny", TwoPassSettings(**settings))
