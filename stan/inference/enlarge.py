"""Video for a network that makes frames larger: enlarged to the size of the result first, as in training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from stan.data.degradation.size import enlarge
from stan.data.frame import Frame

if TYPE_CHECKING:
    from stan.data.video import PicturesClip, VideoClip
    from stan.models import VideoDenoiser

    Source = VideoClip | PicturesClip


def scale_of(model: VideoDenoiser) -> int:
    """How many times larger than its source a network's result is: more than 1 after super-resolution."""
    return model.trained.scale if model.trained else 1


def enlarged_source(source: Source, scale: int) -> Source:
    """A source as a writer sees it that is to write its frames `scale` times larger."""
    if scale == 1:
        return source
    larger, size = copy.copy(source), source.properties
    larger.properties = replace(size, height=size.height * scale, width=size.width * scale)
    return larger


def enlarged_frames(frames: Iterable[Frame], scale: int) -> Iterator[Frame]:
    """Frames with float pixels and one noise level each, `scale` times larger."""
    for frame in frames:
        if scale > 1:
            alpha = frame.alpha if frame.alpha is None else enlarge(frame.alpha[None, None], scale)[0, 0]
            frame = replace(frame, rgb=enlarge(frame.rgb[None], scale)[0], alpha=alpha)
        yield frame
