"""The sequences that are aligned: of a data set, or synthetic ones whose true motion is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stan.flow
from stan.data import open_clips
from stan.data.synthetic import read_flow, synthetic_clips
from stan.evaluation.protocols import to_float
from stan.flow import FlowPair
from stan.training.validation import central_square

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Truth:
    """Where everything really went.

    Attributes:
        flow: `(1, T, 2, H, W)` each.
        seen: forward and backward, `(T, H, W)` bool: the point is visible in the next, the previous frame.
    """

    flow: FlowPair
    seen: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sequence:
    """One clean clip.

    Attributes:
        name: of the sequence.
        frames: `(T, 3, H, W)` uint8.
        truth: None where it is not known.
    """

    name: str
    frames: Tensor
    truth: Truth | None

    @property
    def clean(self) -> Tensor:
        """`(T, 3, H, W)` float in [0, 1]."""
        return to_float(self.frames)

    def motion(self) -> FlowPair:
        """The true flow, or DIS on the clean frames in its place."""
        return self.truth.flow if self.truth else stan.flow.build("dis")(self.clean[None])


def names(root: str, split: str | None, count: int, speeds: list[float]) -> list[str]:
    """The names of the sequences, without decoding anything: of a data set in DAVIS layout those of the list `split`
    (None: all), at most `count` (0: all); of `synthetic` clips `count` a speed (0: four), split train or val."""
    if root == SYNTHETIC:
        return [f"{speed:g}x-{i:02d}" for speed in speeds for i in range(count or 4)]
    return [clip.name for clip in open_clips("davis", root, split)][: count or None]


def load(
    root: str, split: str | None, name: str, *, frames: int, crop: int, size: tuple[int, int], seed: int
) -> Sequence:
    """The first frames of a sequence, in the central square of `crop` pixels (0: whole); others as for `names`."""
    synthetic = root == SYNTHETIC
    found = _rendered(split, name, frames, size, seed) if synthetic else _read(root, split, name, frames)
    truth = found.truth and Truth(
        FlowPair(*(central_square(f, crop) for f in found.truth.flow)),
        (central_square(found.truth.seen[0], crop), central_square(found.truth.seen[1], crop)),
    )
    return Sequence(name, central_square(found.frames, crop), truth)


def _rendered(split: str | None, name: str, frames: int, size: tuple[int, int], seed: int) -> Sequence:
    speed, index = name.split("x-")
    *_, clip = synthetic_clips(
        split or "train", int(index) + 1, frames=frames, size=size, seed=seed, speed=float(speed)
    )
    return Sequence(name, clip.frames, _truth(vars(clip), frames))


def _read(root: str, split: str | None, name: str, frames: int) -> Sequence:
    clip = next(clip for clip in open_clips("davis", root, split) if clip.name == name)
    count = min(frames, len(clip))
    known = (Path(root) / "Flow/480p" / f"{name}.npz").is_file()
    return Sequence(name, clip.read(0, count), _truth(read_flow(root, name), count) if known else None)


def _truth(stored: Mapping[str, Any], frames: int) -> Truth:
    forward, backward = stored["forward"][None, :frames].float(), stored["backward"][None, :frames].float()
    seen = ~stored["occluded_forward"][:frames], ~stored["occluded_backward"][:frames]
    seen[0][-1] = False
    return Truth(FlowPair(forward, torch.cat([torch.zeros_like(backward[:, :1]), backward[:, 1:]], 1)), seen)
