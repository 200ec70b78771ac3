"""A trained network on a video in memory, or on frames as they come: `denoise` and `denoise_chunks`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.errors import StanError
from stan.inference.levels import NoiseLevels
from stan.inference.options import DEFAULTS, Options
from stan.inference.passes import denoiser
from stan.inference.scenes import mark_scenes

if TYPE_CHECKING:
    import numpy as np

    from stan.models import VideoDenoiser


def denoise(
    model: VideoDenoiser,
    video: Tensor | np.ndarray,
    sigma: float | Literal["auto"] | Sequence[float] | Tensor | None = None,
    options: Options = DEFAULTS,
    **settings: Any,
) -> Tensor:
    """Denoise a video of any size and length.

    Args:
        model: the network; used in eval mode and left in the mode it was in.
        video: `(T, 3, H, W)`, RGB: float in about [0, 1] (noise may leave that range) or uint8; a tensor on
            any device, or an array.
        sigma: standard deviation of the noise in 8-bit units [0, 255]: a number, one per frame `(T,)`, a map
            `(H, W)`, or a map per frame `(T, 1, H, W)`; ``"auto"`` estimates it frame by frame. May be left
            out if the model is blind.
        options: all else that can be chosen.
        settings: fields of `Options` by name, laid over `options`: ``memory="4GiB"``, ``clamp=True``.

    Returns:
        `(T, 3, H, W)` float32 on the CPU. The same model, video and `tiles` on the same machine give the same
        bits.

    Raises:
        StanError: for a video or sigma of another layout, pixels that are not finite, a missing sigma, or if
            memory does not suffice for the smallest tiles.
        ConfigError: for a `memory` that is no size, or both `tiles` and `memory`.
    """
    video = torch.as_tensor(video)
    if video.ndim != 4 or video.shape[1] != 3 or 0 in video.shape[2:]:
        raise StanError(f"a video is (T, 3, H, W), RGB; got {tuple(video.shape)}")
    levels: float | Literal["auto"] | Iterable[float | Tensor] | None
    levels = sigma if sigma is None or isinstance(sigma, str | float | int) else _per_frame(sigma, video)
    out = torch.empty(video.shape, dtype=torch.float32)
    clean = denoise_chunks(model, video.unbind(0), levels, options, total=len(video), **settings)
    for t, rgb in enumerate(clean):
        out[t] = rgb
    return out


def denoise_chunks(
    model: VideoDenoiser,
    frames: Iterable[Tensor],
    sigma: float | Literal["auto"] | Iterable[float | Tensor] | None = None,
    options: Options = DEFAULTS,
    *,
    total: int | None = None,
    **settings: Any,
) -> Iterator[Tensor]:
    """Denoise a stream of frames of any length, holding no more of them than about three chunks.

    Frames are taken from `frames` only as they are needed, and come out in order, as many as went in.

    Args:
        model: as for `denoise`, as is all that is not listed here.
        frames: `(3, H, W)` each, all of one size: uint8, or float in about [0, 1].
        sigma: a number for all frames; for each frame a number or a map `(H, W)` or `(1, H, W)`; or
            ``"auto"``.
        total: number of frames if it is known, for `progress` and the memory plan.

    Returns:
        an iterator of `(3, H, W)` float32 frames on the CPU.

    Raises:
        StanError: as for `denoise`, and if the frames differ in size: at once where the arguments show it,
            else when the frame is reached.
    """
    if sigma is None or isinstance(sigma, str | float | int):
        settings["sigma"] = options.sigma if sigma is None else sigma
        records: Iterable[Frame] = map(Frame, frames)
    else:
        records = _with_levels(frames, sigma)
    options = replace(options, **settings)
    ready = prepare(records, NoiseLevels(model, options), options)
    return (frame.rgb for frame in denoiser(model, options, total)(ready))


def prepare(
    frames: Iterable[Frame], levels: NoiseLevels, options: Options, *, look_ahead: bool = True
) -> Iterator[Frame]:
    """Frames as they are read made ready for the network: checked, with scenes marked and noise levels set.

    Args:
        frames: all of one size and type; on any device.
        levels: sets the levels.
        options: ``scenes`` counts.
        look_ahead: see `mark_scenes`.

    Raises:
        StanError: when a frame is reached that is not like the others, or whose pixels are not finite.
    """
    return levels(mark_scenes(_checked(frames), options.scenes, look_ahead=look_ahead))


def _checked(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames on the CPU, each found to be an RGB frame of the first one's size and type, and finite."""
    first: Tensor | None = None
    for t, frame in enumerate(frames):
        rgb = frame.rgb
        if rgb.ndim != 3 or rgb.shape[0] != 3 or 0 in rgb.shape:
            raise StanError(f"frame {t}: expected (3, H, W), RGB; got {tuple(rgb.shape)}")
        if not (rgb.dtype == torch.uint8 or rgb.is_floating_point()):
            raise StanError(f"frame {t}: expected float in [0, 1] or uint8, got {rgb.dtype}")
        first = rgb if first is None else first
        if rgb.shape != first.shape or rgb.dtype != first.dtype:
            raise StanError(
                f"frame {t} is {tuple(rgb.shape)} of {rgb.dtype}, those before are {tuple(first.shape)} "
                f"of {first.dtype}; all frames of a video have one size"
            )
        if rgb.is_floating_point():
            low, high = (float(v) for v in rgb.detach().aminmax())  # NaN anywhere makes both NaN
            if not -float("inf") < low <= high < float("inf"):
                bad = int((~rgb.isfinite()).any(0).sum())
                raise StanError(
                    f"frame {t} has {bad} pixels that are NaN or infinite: replace them before denoising "
                    "(torch.nan_to_num)"
                )
            if t == 0 and high > 32:
                raise StanError(f"video values reach {high:g}: float videos are in [0, 1], divide by 255")
        yield replace(frame, rgb=rgb.detach().cpu())


def _with_levels(frames: Iterable[Tensor], sigma: Iterable[float | Tensor]) -> Iterator[Frame]:
    """Each frame with its own noise level."""
    levels = iter(sigma)
    for t, rgb in enumerate(frames):
        try:
            yield Frame(rgb, sigma=next(levels))
        except StopIteration:
            raise StanError(f"sigma has {t} values, the video has more frames") from None


def _per_frame(sigma: Sequence[float] | Tensor, video: Tensor) -> list[Tensor]:
    """The noise level of each frame, a number or a map, from all forms that `denoise` takes."""
    level = torch.as_tensor(sigma, dtype=torch.float32).detach().cpu()
    length, _, height, width = video.shape
    if level.shape in ((length,), (length, 1, 1, 1), (length, 1, height, width)):
        return list(level.unbind(0))
    if level.shape in ((), (1,), (1, 1, 1, 1), (height, width), (1, 1, height, width)):
        return [level] * length
    raise StanError(
        f"sigma has shape {tuple(level.shape)}; for this video it is a number, (T,) = ({length},), "
        f"(H, W) = {(height, width)} or (T, 1, H, W) = {(length, 1, height, width)}"
    )
