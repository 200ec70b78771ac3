"""What every network of this package is: `VideoDenoiser`, and the record of what it was trained for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan.errors import DataError
from stan.flow import FlowPair, OffsetSource
from stan.reflection import reflect


@dataclass(frozen=True)
class Trained:
    """What a model was trained for.

    Attributes:
        kind: kind of noise ("gaussian", ...).
        sigma: lowest and highest noise level seen, 8-bit units.
        steps: optimiser steps.
        task: what it undoes beside the noise; "denoise": nothing.
        task_settings: how strong that was.
        scale: the video it restores was enlarged by this factor first.
        replayed: what earlier trainings undid and the last one kept up, as plain data (`training.conditions`).
    """

    kind: str
    sigma: tuple[float, float]
    steps: int
    task: str = "denoise"
    task_settings: dict[str, Any] = field(default_factory=dict)
    scale: int = 1
    replayed: tuple[dict[str, Any], ...] = ()

    @property
    def low(self) -> float:
        """Lowest noise level seen, 8-bit units."""
        return self.sigma[0]

    @property
    def high(self) -> float:
        """Highest noise level seen, 8-bit units."""
        return self.sigma[1]

    @property
    def levels(self) -> str:
        """The noise levels in words: "30", or "0 to 55"."""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"

    @property
    def task_words(self) -> str:
        """The task with its settings in words: "deblur (blur 0.8..2.4)"."""
        inner = ", ".join(f"{key} {value}" for key, value in self.task_settings.items())
        return f"{self.task} ({inner})" if inner else self.task

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        record = {"kind": self.kind, "sigma": [float(s) for s in self.sigma], "steps": int(self.steps)}
        if self.replayed:
            record["replayed"] = list(self.replayed)
        if self.task != "denoise":
            record |= {"task": self.task, "task_settings": self.task_settings, "scale": self.scale}
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Trained:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: a record that `to_dict` does not make.
        """
        low, high = map(float, record["sigma"])
        if not 0 <= low <= high <= 255:
            raise ValueError(
                f"trained for sigma {low:g} to {high:g}, which is no range in 8-bit units [0, 255]"
            )
        scale = int(record.get("scale", 1))
        if not 1 <= scale <= 16:
            raise ValueError(f"trained for video enlarged {scale} times, which is no factor from 1 to 16")
        return cls(
            kind=str(record["kind"]),
            sigma=(low, high),
            steps=int(record["steps"]),
            task=str(record.get("task", "denoise")),
            task_settings=dict(record.get("task_settings", {})),
            scale=scale,
            replayed=tuple(dict(entry) for entry in record.get("replayed", ())),
        )


class AttentionMap(NamedTuple):
    """Where the queries of one attention block attend, best first.

    Attributes:
        block: the block's name in the network ("middle.0").
        scale: pixels of the video per pixel of these tensors (4 means quarter resolution).
        weights: `(B, HD, T, h, w, K)`, in [0, 1], summing to one over K.
        offsets: `(B, HD, T, h, w, K, 2)`, (x, y) in pixels of the block's own resolution.
        frames: `(B, HD, T, h, w, K)` int, frame index of the match; -1 where there is none.
    """

    block: str
    scale: int
    weights: Tensor
    offsets: Tensor
    frames: Tensor


class Cleaned(NamedTuple):
    """What a pass leaves of each frame for the next one.

    Attributes:
        frames: `(B, T, 3, H, W)` float32.
        features: `(B, T, F, h, w)` float32, h and w a whole part of H and W; F may be 0.
    """

    frames: Tensor
    features: Tensor


def joined(parts: Iterable[Cleaned]) -> Cleaned:
    """Parts of a clip that follow each other, in one."""
    return Cleaned(*(torch.cat(tensors, 1) for tensors in zip(*parts)))


class VideoDenoiser(nn.Module):
    """Base of the networks: checks and pads a noisy video, finds its flow, crops what the core returns.

    A subclass implements `forward_core`, which sees only sizes it likes: H and W multiples of `multiple`. T is any
    number, one included.

    A network of `passes` over the frames can also be run pass by pass, so that a long video is computed as it comes
    and nothing twice. Its output is then ``first_pass``, and ``passes - 1`` times ``next_pass`` with the flow of what
    `flow_view` makes of the frames that the pass before has left; a pass looks at ``pass_reach`` frames each side. A
    clip of one frame has the first pass only.

    Attributes:
        name: the registry's name.
        settings: plain data; ``build(model.name, **model.settings)`` makes the same architecture.
        blind: the network takes no noise level.
        causal: no frame looks ahead.
        temporal_reach: frames each side that a frame's output uses directly.
        multiple: heights and widths that are multiples of it need no padding.
        source: the offset source used when no flow is given.
        trained: what the weights were trained for; None for fresh weights.
        passes: how many there are; 0 for a network that is run on whole clips only.
    """

    passes: int = 0

    def __init__(
        self,
        *,
        name: str,
        settings: dict[str, Any],
        source: OffsetSource,
        blind: bool,
        causal: bool,
        temporal_reach: int,
        multiple: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.settings = settings
        self.source = source
        source.causal = causal
        self.blind = blind
        self.causal = causal
        self.temporal_reach = temporal_reach
        self.multiple = multiple
        self.trained: Trained | None = None

    def forward_core(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None, return_matches: bool = False
    ) -> tuple[Tensor, list[AttentionMap]]:
        """Denoise a video of a size the network likes.

        Args:
            noisy: `(B, T, 3, H, W)`.
            noise_map: `(B, T, 1, H, W)`, the noise level in units of the video; None when blind.
            flow: at full resolution; None where none was given and `needs_flow` is false.
            return_matches: also say where the attention blocks looked.

        Returns:
            the denoised video and the attention maps, none unless asked for.
        """
        raise TypeError(f"{type(self).__name__} is a VideoDenoiser without a forward_core() method")

    def estimates_core(self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None) -> list[Tensor]:
        """What training compares with the clean video: the estimates of successive passes, the output last.

        Arguments are those of `forward_core`; a network of one pass need not implement it.
        """
        return [self.forward_core(noisy, noise_map, flow)[0]]

    @property
    def pass_reach(self) -> int:
        """Frames each side that a pass after the first looks at, those by which flow is corrected included."""
        return self.temporal_reach // max(1, self.passes - 1) + self.source.context

    @property
    def reach(self) -> int:
        """Frames each side that a frame's output depends on, if flow is pairwise; later ones not where it is causal."""
        return self.pass_reach * (self.passes - 1) if self.passes > 1 else self.temporal_reach

    def first_pass(self, noisy: Tensor, noise_map: Tensor | None) -> Cleaned:
        """The first pass, which sees single frames.

        Args:
            noisy, noise_map: as for `forward_core`; a map of one number a frame, `(B, T, 1, 1, 1)`, will do.
        """
        raise TypeError(f"{type(self).__name__} has no passes: passes={self.passes}")

    def next_pass(
        self,
        noisy: Tensor,
        noise_map: Tensor | None,
        before: Cleaned,
        flow: FlowPair,
        keep: slice = slice(None),
    ) -> Iterator[Cleaned]:
        """A pass after the first, of frames `keep` of a clip; the others are only looked at.

        Gives the frames in their order, a few at a time, each time as soon as they are done.

        Args:
            noisy, noise_map: as for `first_pass`.
            before: what the pass before has left.
            flow: of `flow_view`.
            keep: of the clip's frames.
        """
        raise TypeError(f"{type(self).__name__} has no passes: passes={self.passes}")

    def flow_view(self, noisy: Tensor, cleaned: Tensor) -> Tensor:
        """The frames of which flow is estimated between two passes, from the noisy ones and what the pass before has
        left of them, `(..., 3, H, W)`."""
        return cleaned

    def needs_flow(self) -> bool:
        """Whether `forward_core` looks at the flow; where not, none is estimated."""
        return True

    def forward(
        self,
        noisy: Tensor,
        sigma: float | Tensor | None = None,
        flow: FlowPair | None = None,
        *,
        return_matches: bool = False,
    ) -> Tensor | tuple[Tensor, list[AttentionMap]]:
        """Denoise a video.

        Args:
            noisy: `(B, T, 3, H, W)` in about [0, 1], not clamped. Any B, T, H, W >= 1, any type of floats; it is
                brought to that of the network's parameters.
            sigma: standard deviation of the noise in 8-bit units [0, 255]: a number, or a tensor that
                broadcasts to `(B, T, 1, H, W)` after trailing axes are added: `()`, `(B,)`, `(B, T)` or
                `(B, T, 1, H, W)`. Needed unless the model is blind; a blind model ignores it.
            flow: displacements between neighbouring frames; None asks ``self.source``.
            return_matches: also return where each attention block looked.

        Returns:
            `(B, T, 3, H, W)`, not clamped; with `return_matches` a tuple of it and a list of `AttentionMap`.

        Raises:
            DataError: for another layout, a missing or impossible sigma, or a flow of another size.
        """
        padded, noise_map, flow = self._prepare(noisy, sigma, flow)
        clean, matches = self.forward_core(padded, noise_map, flow, return_matches)
        h, w = noisy.shape[3:]
        clean = clean[..., :h, :w]
        if not return_matches:
            return clean
        return clean, [crop_matches(m, h, w) for m in matches]

    def estimates(
        self, noisy: Tensor, sigma: float | Tensor | None = None, flow: FlowPair | None = None
    ) -> list[Tensor]:
        """The estimates of successive passes, `(B, T, 3, H, W)` each, the output last; arguments as for the call."""
        h, w = noisy.shape[3:]
        return [e[..., :h, :w] for e in self.estimates_core(*self._prepare(noisy, sigma, flow))]

    def _prepare(
        self, noisy: Tensor, sigma: float | Tensor | None, flow: FlowPair | None
    ) -> tuple[Tensor, Tensor | None, FlowPair | None]:
        """The padded video, its noise map and flow."""
        if noisy.ndim != 5 or noisy.shape[2] != 3 or not noisy.is_floating_point() or 0 in noisy.shape:
            raise DataError(
                f"a model takes a float video (B, T, 3, H, W), got {tuple(noisy.shape)} of {noisy.dtype}"
            )
        video = noisy.to(next((p.dtype for p in self.parameters()), noisy.dtype))
        noise_map = None if self.blind else noise_map_of(sigma, video)
        if flow is None:
            flow = self.source(noisy) if self.needs_flow() else None
        elif any(f.shape != (*noisy.shape[:2], 2, *noisy.shape[3:]) for f in flow):
            shapes = ", ".join(str(tuple(f.shape)) for f in flow)
            raise DataError(f"flow of shapes {shapes} does not fit a video of shape {tuple(noisy.shape)}")

        bottom, right = (-side % self.multiple for side in noisy.shape[3:])
        if noise_map is not None:
            noise_map = pad_space(noise_map, bottom, right)
        if flow is not None:
            flow = FlowPair(*(pad_space(f.float(), bottom, right, edge=True) for f in flow))
        return pad_space(video, bottom, right), noise_map, flow


def noise_map_of(sigma: float | Tensor | None, video: Tensor) -> Tensor:
    """The noise level in units of the video, `(B, T, 1, H, W)` expanded, from sigma in 8-bit units.

    Raises:
        DataError: if sigma is missing, negative, not finite, or does not broadcast.
    """
    b, t, _, h, w = video.shape
    if sigma is None:
        raise DataError(
            "this model needs sigma, the noise level in 8-bit units [0, 255]; a blind model would not"
        )
    if not isinstance(sigma, Tensor):
        if not 0 <= float(sigma) < float("inf"):
            raise DataError(f"sigma={sigma} must be a finite number of at least 0, in 8-bit units [0, 255]")
        sigma = torch.tensor(float(sigma))
    level = sigma.to(device=video.device, dtype=video.dtype) / 255
    level = level.reshape(*level.shape, *[1] * (5 - level.ndim)) if level.ndim < 5 else level
    try:
        return level.expand(b, t, 1, h, w)
    except RuntimeError:
        raise DataError(
            f"sigma of shape {tuple(sigma.shape)} does not broadcast to (B, T, 1, H, W) = {(b, t, 1, h, w)}"
        ) from None


def pad_space(video: Tensor, bottom: int, right: int, edge: bool = False) -> Tensor:
    """Extend `(B, T, C, H, W)` below and to the right by reflection, as often as needed, or by its edge."""
    if bottom == 0 and right == 0:
        return video
    b, t, c, h, w = video.shape
    if edge or (bottom < h and right < w):
        padded = F.pad(
            video.reshape(b * t, c, h, w), (0, right, 0, bottom), mode="replicate" if edge else "reflect"
        )
        return padded.reshape(b, t, c, h + bottom, w + right)
    rows = torch.tensor(reflect(range(h + bottom), h), device=video.device)
    columns = torch.tensor(reflect(range(w + right), w), device=video.device)
    return video.index_select(3, rows).index_select(4, columns)


def crop_matches(matches: AttentionMap, h: int, w: int) -> AttentionMap:
    """AttentionMap of the padded video as that of the original one, of `h` x `w`."""
    at = (slice(None), slice(None), slice(None), slice(-(-h // matches.scale)), slice(-(-w // matches.scale)))
    return matches._replace(
        weights=matches.weights[at], offsets=matches.offsets[at], frames=matches.frames[at].long()
    )
