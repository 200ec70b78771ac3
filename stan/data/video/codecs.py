"""Which encoder, pixel format and settings write a video that shares the properties of its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import av.codec

from stan.data.video.colour import BT709_LIMITED, FULL, LIMITED, UNSPECIFIED, Colour
from stan.data.video.pixels import PixelFormat, describe
from stan.data.video.properties import Properties
from stan.errors import VideoError, nearest


@dataclass(frozen=True)
class Codec:
    """What we know of a codec that FFmpeg's own tables do not say.

    ``quality``: (best, default, worst) of its constant-quality scale, None if it has none. ``delivery``:
    meant for players, so that RGB and grey become 4:2:0. ``even``: cannot halve chroma of odd sizes.
    ``least``: shortest side in pixels.
    """

    encoder: str
    suffixes: tuple[str, ...]
    quality: tuple[int, int, int] | None
    options: Mapping[str, str] = field(default_factory=dict)
    lossless: Mapping[str, str] | None = None
    delivery: bool = True
    even: bool = False
    least: int = 1


_SLICES = {"level": "3", "g": "1", "slicecrc": "1"}
_LEAST_SLICED, _NO_SLICES = 4, {"level": "1", "g": "1"}  # narrower frames FFV1 cannot cut into slices
_ISO_OR_MKV = (".mp4", ".m4v", ".mov", ".mkv")
CODECS = {
    "h264": Codec("libx264", _ISO_OR_MKV, (0, 16, 51), lossless={"qp": "0"}, even=True),
    "h265": Codec(
        "libx265",
        _ISO_OR_MKV,
        (0, 18, 51),
        options={"x265-params": "log-level=none"},
        lossless={"x265-params": "log-level=none:lossless=1"},
        even=True,
        least=64,  # frames smaller than a coding tree unit corrupt x265's memory (seen in PyAV 18.1)
    ),
    "vp9": Codec(
        "libvpx-vp9",
        (".webm", ".mkv", ".mp4"),
        (0, 24, 63),
        options={"b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"},
        lossless={"lossless": "1"},
    ),
    "av1": Codec("libsvtav1", (".mp4", ".mkv", ".webm"), (1, 24, 63), options={"preset": "8"}, least=64),
    "ffv1": Codec("ffv1", (".mkv",), None, _SLICES, lossless={}, delivery=False),
    "prores": Codec("prores_ks", (".mov", ".mkv"), None, options={"vendor": "apl0"}, delivery=False),
}
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Endings of the videos that can be written, and FFmpeg's names of their formats."""


@dataclass(frozen=True)
class OutputSettings:
    """How a result is stored; what is None or empty is chosen to be most like the source.

    ``codec``: of a video ``h264 h265 vp9 av1 ffv1 prores``, of pictures ``png jpeg tiff``. ``quality``: on
    the codec's own scale. ``pixel_format`` and ``options``: FFmpeg's names, for the encoder. ``compare``:
    noisy and denoised side by side. ``overwrite``: what is there may be replaced: a file, or a folder that
    holds nothing but pictures.
    """

    codec: str | None = None
    quality: int | None = None
    lossless: bool = False
    pixel_format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    compare: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Encoding:
    """A decision; ``losses`` says in words what of the source it cannot keep."""

    encoder: str
    pixel_format: str
    options: dict[str, str]
    colour: Colour
    codec_tag: str = ""
    losses: tuple[str, ...] = ()


def choose_encoding(output: Path, source: Properties, settings: OutputSettings) -> Encoding:
    """Decide how to write ``output`` so that it is most like ``source``.

    Args:
        output: its ending decides the container.
        source: what to be like; its size is that of the pictures to be written.
        settings: without a codec it is H.264, or H.265 for more than 8 bits, VP9 in WebM, FFV1 if lossless in
            Matroska; the pixel format overrules the choice, and the options ours.

    Raises:
        VideoError: an ending, codec, quality or pixel format that does not exist or does not go with
            the others.
    """
    lossless, pixel_format = settings.lossless, settings.pixel_format
    suffix = output.suffix.lower()
    if suffix not in CONTAINERS:
        raise VideoError(
            f"cannot write {output.name!r}: a video ends in {', '.join(CONTAINERS)}; "
            "a folder of pictures has no ending"
        )
    want = describe(pixel_format or source.pixel_format)
    name = settings.codec or _default_codec(suffix, want, lossless, min(source.height, source.width))
    if name not in CODECS:
        raise VideoError(f"codec {name!r} is not known; {nearest(name, CODECS)}")
    known = CODECS[name]
    if suffix not in known.suffixes:
        raise VideoError(
            f"{name} does not go into {suffix}: use {', '.join(known.suffixes)}, or another --codec"
        )
    if lossless and known.lossless is None:
        raise VideoError(f"{name} has no lossless mode: use ffv1 in .mkv, or h264, h265, vp9")
    if min(source.height, source.width) < known.least:
        raise VideoError(
            f"{name} cannot encode {source.width}x{source.height}: its least side is {known.least} pixels; "
            "use --lossless with .mkv, or a folder of pictures"
        )
    as_rgb = name == "h264" and lossless and want.family == "rgb"  # an encoder of another name
    encoder = "libx264rgb" if as_rgb else known.encoder
    if encoder not in av.codec.codecs_available:
        raise VideoError(f"this build of FFmpeg has no encoder {encoder} for {name}: choose another --codec")
    usual = _NO_SLICES if name == "ffv1" and source.width < _LEAST_SLICED else known.options
    options = {**usual, **((known.lossless or {}) if lossless else _quality(name, known, settings.quality))}
    if lossless and settings.quality is not None:
        raise VideoError(f"quality {settings.quality} has no meaning with lossless: give one of them")
    chosen = pixel_format or _nearest_format(encoder, known, want, source, lossless, suffix)
    if pixel_format and pixel_format not in (taken := _formats(encoder, suffix)):
        raise VideoError(f"{encoder} does not take pixel format {pixel_format}: {', '.join(taken)}")
    held = describe(chosen)
    if name == "prores":
        options["profile"] = "4" if held.subsampling == "444" else "3"
    options.update(settings.options)
    return Encoding(
        encoder=encoder,
        pixel_format=chosen,
        options=options,
        colour=_colour(held, describe(source.pixel_format), source.colour, name),
        codec_tag="hvc1" if name == "h265" and suffix != ".mkv" else "",
        losses=_losses(held, source, name, suffix),
    )


def _default_codec(suffix: str, want: PixelFormat, lossless: bool, shorter_side: int) -> str:
    if suffix == ".webm":
        return "vp9"
    if suffix == ".mkv" and lossless:
        return "ffv1"
    return "h265" if want.bits > 8 and shorter_side >= CODECS["h265"].least else "h264"


def _quality(name: str, known: Codec, quality: int | None) -> dict[str, str]:
    if known.quality is None:
        if quality is not None:
            raise VideoError(f"{name} has no quality scale: leave --quality out")
        return {}
    best, default, worst = known.quality
    value = default if quality is None else quality
    if not best <= value <= worst:
        raise VideoError(f"quality {value} is outside {best} (best) to {worst} (worst) of {name}")
    return {"crf": str(value)}


def _formats(encoder: str, suffix: str) -> list[str]:
    """What an encoder takes; alpha only if it is kept: x265 names and refuses it, .mp4 drops that of VP9."""
    names = [f.name for f in av.codec.Codec(encoder, "w").video_formats or ()]
    drops = encoder == "libx265" or (encoder == "libvpx-vp9" and suffix == ".mp4")
    return [n for n in names if not (drops and n.startswith(("yuva", "gbrap")))]


def _nearest_format(
    encoder: str, known: Codec, want: PixelFormat, source: Properties, lossless: bool, suffix: str
) -> str:
    """The encoder's format that loses least of ``want``, and among those the smallest."""
    if known.delivery and not lossless and want.family != "yuv":
        want = replace(want, family="yuv", subsampling="420")
    odd = source.height % 2 == 1 or source.width % 2 == 1

    def cost(name: str) -> tuple[int, ...]:
        held = describe(name)
        coarser = _detail(held) - _detail(want)
        return (
            held.family != want.family and not (held.family == "rgb" and want.family == "grey"),
            known.even and odd and held.subsampling not in ("444", ""),
            max(0, want.bits - held.bits),
            max(0, -coarser),
            want.alpha and not held.alpha,
            held.family != want.family,
            max(0, coarser),
            held.subsampling != want.subsampling,
            held.alpha and not want.alpha,
            held.bits - want.bits,
            name != held.planar,
        )

    usable = [n for n in _formats(encoder, suffix) if not n.startswith(("yuvj", "nv")) and _is_supported(n)]
    best = min(usable, key=cost)
    if lossless and any(cost(best)[:8]):
        raise VideoError(
            f"{encoder} cannot hold {source.pixel_format} without loss: use ffv1 in .mkv, or a folder"
        )
    return best


def _is_supported(name: str) -> bool:
    try:
        describe(name)
    except VideoError:
        return False
    layout = av.VideoFormat(name, 2, 2)
    return not layout.has_palette and layout.bits_per_pixel > 1


def _detail(held: PixelFormat) -> int:
    """Chroma samples per 16 luma samples."""
    return {"444": 16, "422": 8, "440": 8, "420": 4, "411": 4, "410": 1}.get(held.subsampling, 16)


def _colour(held: PixelFormat, of_source: PixelFormat, tags: Colour, codec: str) -> Colour:
    """Tags of the output: the source's own wherever its code values are of the same family."""
    if held.family == of_source.family:
        colour = replace(tags, centred=False)
    elif held.family == "yuv":
        colour = BT709_LIMITED
    else:
        colour = Colour(0 if held.family == "rgb" else UNSPECIFIED, FULL, tags.primaries, tags.transfer)
    return replace(colour, range=LIMITED) if codec == "prores" else colour


def _losses(held: PixelFormat, source: Properties, codec: str, suffix: str) -> tuple[str, ...]:
    """In words, what the output cannot keep."""
    of_source = describe(source.pixel_format)
    losses = []
    if of_source.alpha and not held.alpha:
        where = f"{codec} in {suffix}" if codec == "vp9" else codec
        keep = "ffv1, vp9 in .webm and .mkv, and a folder of PNG keep it"
        losses.append(f"{where} keeps no alpha: it is left out ({keep})")
    if held.bits < of_source.bits:
        losses.append(f"{codec} keeps {held.bits} of {of_source.bits} bits")
    if source.pixel_aspect != 1 and suffix in (".webm", ".mkv") and codec not in ("h264", "h265"):
        # PyAV cannot set the container's pixel shape, and these codecs hold none themselves.
        shape = f"{source.pixel_aspect.numerator}:{source.pixel_aspect.denominator}"
        losses.append(f"{codec} in {suffix} loses the pixel shape {shape} (h264 and .mp4 keep it)")
    return tuple(losses)
