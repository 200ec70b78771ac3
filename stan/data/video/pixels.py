"""Decoded pictures as float RGB and back: pixel formats of any layout, 8 to 16 bits, grey, and alpha.

Layouts are first unpacked by swscale to planes (a permutation of code values, nothing else); all arithmetic
on values is in `stan.data.video.colour`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from stan.data.video.colour import (
    LIMITED,
    UNSPECIFIED,
    Colour,
    chroma_from_luma_grid,
    chroma_to_luma_grid,
    code_scales,
    rgb_from_yuv,
    yuv_from_rgb,
)
from stan.errors import VideoError

# libswscale: SWS_POINT, SWS_ACCURATE_RND, SWS_BITEXACT (as numbers, for PyAV 17 does not name the last two)
_EXACT = 0x10 | 0x40000 | 0x80000
_SUBSAMPLING = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411", (2, 2): "410"}
_DEPTHS = (8, 9, 10, 12, 14, 16)


@dataclass(frozen=True)
class PixelFormat:
    """What a pixel format holds, apart from how its bytes are ordered.

    ``family`` is ``yuv``, ``rgb`` or ``grey``; ``subsampling`` is ``420`` and the like for yuv, else empty;
    ``bits`` a sample; ``alpha`` whether it has an opacity plane.
    """

    family: str
    bits: int
    subsampling: str = ""
    alpha: bool = False

    @property
    def planar(self) -> str:
        """FFmpeg's name of the planar little-endian format that holds this without loss."""
        suffix = "" if self.bits == 8 else f"{self.bits}le"
        if self.family == "yuv":
            return f"yuv{'a' if self.alpha else ''}{self.subsampling}p{suffix}"
        if self.family == "rgb":
            return f"gbr{'a' if self.alpha else ''}p{suffix}"
        if self.alpha:  # not planar, but with both samples in place
            return f"ya{self.bits}{'le' if self.bits > 8 else ''}"
        return f"gray{suffix}"


def _format(name: str) -> av.VideoFormat | None:
    try:
        return av.VideoFormat(name, 64, 64)
    except ValueError:
        return None


def _least(family: str, bits: int, subsampling: str = "", alpha: bool = False) -> PixelFormat:
    """The format of at least ``bits`` that FFmpeg has and holds least beyond; else the deepest."""
    formats = [PixelFormat(family, depth, subsampling, alpha) for depth in _DEPTHS]
    known = [held for held in formats if _format(held.planar)]
    return next((held for held in known if held.bits >= bits), known[-1])


@lru_cache(maxsize=256)
def describe(name: str) -> PixelFormat:
    """What FFmpeg's pixel format ``name`` holds.

    Raises:
        VideoError: a format that is no picture in memory (hardware surfaces, raw Bayer mosaics, floats).
    """
    if (fmt := _format(name)) is None:
        raise VideoError(f"unknown pixel format {name!r}: ffmpeg -pix_fmts lists them")
    if not fmt.components or fmt.is_bayer or "f32" in name or "f16" in name or name.startswith("xyz"):
        raise VideoError(
            f"pixel format {name} is not supported: convert the video to yuv or rgb of 8 to 16 bits first"
        )
    if fmt.has_palette:
        return PixelFormat("rgb", 8, alpha=True)
    alpha = any(c.is_alpha for c in fmt.components)
    colours = [c for c in fmt.components if not c.is_alpha]
    bits = max(c.bits for c in fmt.components)
    if len(colours) == 1 or fmt.is_rgb:
        return _least("rgb" if fmt.is_rgb else "grey", bits, alpha=alpha)
    shifts = ((64 // fmt.chroma_width(64)).bit_length() - 1, (64 // fmt.chroma_height(64)).bit_length() - 1)
    subsampling = _SUBSAMPLING.get(shifts, "444")
    if alpha and subsampling not in ("444", "422", "420"):  # FFmpeg has no others with alpha
        subsampling = "444"
    return _least("yuv", bits, subsampling, alpha)


class PictureDecoder:
    """Turns decoded `av.VideoFrame` of one stream into float RGB; keeps swscale's context between frames."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, colour: Colour) -> tuple[Tensor, Tensor | None]:
        """RGB (3, H, W) float32, nominally in [0, 1] and not clipped, and alpha (H, W) in [0, 1] or None."""
        held = describe(frame.format.name)
        full_range = colour.full_range or frame.format.name.startswith("yuvj")
        planar = held.planar
        if frame.format.name.replace("yuvj", "yuv") != planar:
            frame.colorspace, frame.color_range = UNSPECIFIED, 0  # swscale must unpack and not convert
            frame = self._reformatter.reformat(frame, format=planar, interpolation=_EXACT, threads=1)
        planes = [torch.from_numpy(codes.astype(np.float32)) for codes in _codes(frame)]
        alpha = planes.pop() / float((1 << held.bits) - 1) if held.alpha else None
        if held.family == "yuv":
            y0, ys, c0, cs = code_scales(held.bits, full_range)
            height, width = planes[0].shape
            cb, cr = (chroma_to_luma_grid((c - c0) / cs, height, width, colour.centred) for c in planes[1:])
            rgb = rgb_from_yuv((planes[0] - y0) / ys, cb, cr, colour.luma_weights(height, width))
        elif held.family == "rgb":
            green, blue, red = planes
            rgb = torch.stack((red, green, blue)) / float((1 << held.bits) - 1)
        else:  # grey is of full range unless tagged limited, as FFmpeg takes it
            offset, scale = code_scales(held.bits, colour.range != LIMITED)[:2]
            rgb = ((planes[0] - offset) / scale).expand(3, -1, -1)
        return rgb, alpha


class PictureEncoder:
    """Turns float RGB into `av.VideoFrame` of pixel format ``name`` with the given colour tags."""

    def __init__(self, name: str, colour: Colour) -> None:
        self.name = name
        self.held = describe(name)
        self.colour = colour
        self._reformatter = VideoReformatter()

    def __call__(self, rgb: Tensor, alpha: Tensor | None = None) -> av.VideoFrame:
        """A frame from RGB (3, H, W) and alpha (H, W), rounded and cut to the format's codes."""
        held, colour = self.held, self.colour
        height, width = rgb.shape[-2:]
        peak = float((1 << held.bits) - 1)
        frame = av.VideoFrame(width, height, held.planar)
        room = _codes(frame)
        if held.family == "yuv":
            y0, ys, c0, cs = code_scales(held.bits, colour.full_range)
            y, cb, cr = yuv_from_rgb(rgb, colour.luma_weights(height, width))
            _fill(room[0], y * ys + y0, peak)
            for k, c in ((1, cb), (2, cr)):
                h, w = room[k].shape
                coarse = chroma_from_luma_grid(c, h, w, colour.centred)
                _fill(room[k], coarse * cs + c0, peak)
        elif held.family == "rgb":
            red, green, blue = rgb
            for k, c in enumerate((green, blue, red)):  # FFmpeg's order of gbrp
                _fill(room[k], c * peak, peak)
        else:  # grey is of full range unless tagged limited, as FFmpeg takes it
            offset, scale = code_scales(held.bits, colour.range != LIMITED)[:2]
            _fill(room[0], rgb.mean(0) * scale + offset, peak)
        if held.alpha:
            _fill(room[-1], (torch.ones(height, width) if alpha is None else alpha) * peak, peak)
        if self.name.replace("yuvj", "yuv") != held.planar:
            frame = self._reformatter.reformat(frame, format=self.name, interpolation=_EXACT, threads=1)
        frame.colorspace = colour.matrix
        frame.color_range = colour.range
        frame.color_primaries = colour.primaries
        frame.color_trc = colour.transfer
        return frame


def _codes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Views of the planes of a planar frame, or of both samples of grey with alpha, (h, w) each."""
    deep = max(c.bits for c in frame.format.components) > 8
    views = []
    for plane in frame.planes:
        buffer: Any = plane  # a buffer, which its type does not say
        rows = np.frombuffer(buffer, np.dtype("<u2") if deep else np.uint8).reshape(plane.height, -1)
        if frame.format.name.startswith("ya"):
            views += [rows[:, k : 2 * plane.width : 2] for k in (0, 1)]
        else:
            views.append(rows[:, : plane.width])
    return views


def _fill(room: np.ndarray, codes: Tensor, peak: float) -> None:
    """Write float code values (h, w), rounded and cut to [0, peak], into a view of a frame."""
    room[:] = codes.round().clamp(0.0, peak).numpy().astype(room.dtype)
