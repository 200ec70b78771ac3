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
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.data.frame import Frame
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
    frames: Iterable[Frame], scenes: bool | Sequence[int] = True, *, look_ahead: bool = True
) -> Iterator[Frame]:
    """The frames, each with whether it begins a scene.

    Args:
        frames: with pixels that are uint8 or float in about [0, 1].
        scenes: True looks for cuts; False takes all as one scene; a sequence names the first frame of each
            scene after the first.
        look_ahead: when looking for cuts, judge a frame when the next one is there; without, at once and from
            the frames before it only, so that a flash passes for a cut.

    Raises:
        StanError: if a named frame is negative.
    """
    if scenes is True:
        return _detect(frames, look_ahead)
    starts = {int(t) for t in scenes or ()} | {0}
    if min(starts) < 0:
        raise StanError(f"scenes={scenes}: {min(starts)} is no frame number")
    return (replace(frame, begins_scene=t in starts) for t, frame in enumerate(frames))


def find_scenes(video: Iterable[Tensor]) -> list[int]:
    """The index of the first frame of each scene after the first.

    Args:
        video: `(T, 3, H, W)`, or its frames one by one; uint8 or float in about [0, 1].
    """
    frames = mark_scenes(Frame(rgb) for rgb in video)
    return [t for t, frame in enumerate(frames) if frame.begins_scene and t > 0]


def _detect(frames: Iterable[Frame], look_ahead: bool) -> Iterator[Frame]:
    past: deque[float] = deque(maxlen=PAST)  # residuals of the pairs before, in the same scene

    def judged(frame: Frame, score: float | None, *following: float) -> Frame:
        begins = score is None or is_cut(score, [*past, *following])
        if begins or score is None:
            past.clear()
        else:
            past.append(score)
        return replace(frame, begins_scene=begins)

    small: Tensor | None = None  # thumbnail of the frame before
    waiting: tuple[Frame, float | None] | None = None  # is judged next, by its residual and the next one's
    for frame in frames:
        before, small = small, thumbnail(frame.rgb)
        score = None if before is None else residual(before, small)
        if not look_ahead:
            yield judged(frame, score)
            continue
        if waiting is not None:
            assert score is not None
            yield judged(*waiting, score)
        waiting = frame, score
    if waiting is not None:
        yield judged(*waiting)


def is_cut(score: float, around: Sequence[float]) -> bool:
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
