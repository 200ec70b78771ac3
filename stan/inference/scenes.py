"""Scene cuts, found while frames stream by: with one frame of look-ahead, under noise, and not fooled by fast
motion.

A cut is a frame that cannot be made out of the one before, although the frames around it could. Both are
judged on thumbnails, where noise has averaged out: each block of one is sought near its place in the other,
and what is left of the difference (in 8-bit units) is compared with the same for the pairs of frames before
and after. A flash, a sudden movement or shaking that lasts makes these as large, and so no cut.

``docs/inference.md`` has the figures on real video.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.errors import StanError

THUMBNAIL = (36, 64)
BLOCKS = (4, 8)
REACH = 6
"""Thumbnail pixels that a block may have moved: a tenth of the frame's width."""

PAST = 4
"""Pairs of frames before that count; more than one, as videos with repeated frames move every few frames
only."""

RATIO = 1.45
"""How much larger a cut's residual is than that of the pairs around it (with `EASE` added, against still
scenes)."""

EASE = 2.0
LEAST = 8.0
"""A smaller residual is no cut, whatever is around it."""

ALONE = 25.0
"""A residual that is a cut in a video of two frames, which has no pairs to compare with."""


def mark_scenes(
    frames: Iterable[Tensor], scenes: bool | Sequence[int] = True
) -> Iterator[tuple[Tensor, bool]]:
    """Each frame, and whether it begins a scene.

    Args:
        frames: `(3, H, W)` each, uint8 or float in about [0, 1].
        scenes: True looks for cuts, and then runs one frame ahead; False takes all as one scene; a sequence
            names the first frame of each scene after the first.

    Raises:
        StanError: if a named frame is negative.
    """
    if isinstance(scenes, bool):
        return _detect(iter(frames)) if scenes else ((frame, t == 0) for t, frame in enumerate(frames))
    starts = {int(t) for t in scenes} | {0}
    if min(starts) < 0:
        raise StanError(f"scenes={list(scenes)}: {min(starts)} is no frame number")
    return ((frame, t in starts) for t, frame in enumerate(frames))


def find_scenes(video: Iterable[Tensor]) -> list[int]:
    """The index of the first frame of each scene after the first.

    Args:
        video: `(T, 3, H, W)`, or its frames one by one; uint8 or float in about [0, 1].
    """
    return [t for t, (_, begins) in enumerate(mark_scenes(video)) if begins and t > 0]


def _detect(frames: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    waiting = next(frames, None)  # the frame that is judged next, once its successor is known
    if waiting is None:
        return
    small = thumbnail(waiting)
    score: float | None = None  # residual of the waiting frame against the one before it
    past: deque[float] = deque(maxlen=PAST)
    for frame in frames:
        following = thumbnail(frame)
        next_score = residual(small, following)
        begins = score is None or is_cut(score, [*past, next_score])
        if begins:
            past.clear()
        elif score is not None:
            past.append(score)
        yield waiting, begins
        waiting, small, score = frame, following, next_score
    yield waiting, score is None or is_cut(score, past)


def is_cut(score: float, around: Sequence[float] | deque[float]) -> bool:
    """Whether a residual stands out from those `around` it."""
    if not around:
        return score > ALONE
    return score > max(LEAST, RATIO * (max(around) + EASE))


def thumbnail(frame: Tensor) -> Tensor:
    """A frame `(3, H, W)` averaged down to `(3, 36, 64)`, in 8-bit units."""
    scale = 1.0 if frame.dtype == torch.uint8 else 255.0
    # channel by channel: a float copy of a whole large frame would be many times its size
    planes = [F.adaptive_avg_pool2d(plane[None].float(), THUMBNAIL) for plane in frame]
    return torch.cat(planes) * scale


def residual(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two thumbnails after block matching, the smaller of both directions."""
    return min(_match(a, b), _match(b, a))


def _match(a: Tensor, b: Tensor) -> float:
    """The blocks of `b`, each sought in `a` up to `REACH` pixels around: mean absolute difference at the
    best."""
    (rows, columns), side = BLOCKS, 2 * REACH + 1
    padded = F.pad(a[None], (REACH,) * 4, mode="replicate")[0]
    shifted = padded.unfold(1, THUMBNAIL[0], 1).unfold(2, THUMBNAIL[1], 1)  # (3, side, side, 36, 64)
    cost = (shifted - b[:, None, None]).abs_().mean(0)  # (side, side, 36, 64)
    cost = cost.reshape(side * side, rows, THUMBNAIL[0] // rows, columns, THUMBNAIL[1] // columns)
    return float(cost.mean((2, 4)).amin(0).mean())
