"""``stan denoise``: a trained network on a video file, a folder of pictures, or a stream."""

from __future__ import annotations

import argparse
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stan.cli.common import picture_size, temporal_window
from stan.cli.progress import progress_bar
from stan.cli.streams import tell
from stan.errors import ConfigError, StanError

if TYPE_CHECKING:
    import torch

    from stan.data.video import OutputSettings
    from stan.inference import Options, Progress, TilePlan
    from stan.inference.files import Result
    from stan.models import VideoDenoiser

HELP = "denoise a video file, a folder of pictures, or a stream"

EPILOG = """\
examples:
  stan denoise in.mp4 out.mp4                                     # noise level found by itself
  stan denoise in.mp4 out.mkv --sigma 25 --lossless
  stan denoise frames/ clean/                                     # a folder of pictures; 'shot/*.png' too
  stan denoise in.mp4 out.mp4 --preview 4                         # look at four frames first
  stan denoise in.mp4 out.mp4 --checkpoint runs/mine/best.ckpt    # a network of your own
  ffmpeg -i in.mp4 -f yuv4mpegpipe - | stan denoise - - --stream | ffplay -

Frame times, colour, turn, pixel shape, bit depth, sound and subtitles are kept. Ctrl-C leaves what was done
as OUTPUT's name with .partial before the ending. docs/denoise.md shows every option at work.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("input", metavar="INPUT", help="video file, folder of pictures, glob pattern; - with --stream")
    places = "video (.mp4 .mov .mkv .webm), folder, or one picture; - with --stream"
    add("output", metavar="OUTPUT", help=places)
    help = "trained network: a file, or a name of `stan models` (default: the best of those for the device)"
    add("--checkpoint", metavar="FILE|NAME", help=help)

    noise = parser.add_argument_group("noise")
    level = noise.add_mutually_exclusive_group().add_argument
    units = "noise level in 8-bit units, or auto (the default unless blind)"
    level("--sigma", metavar="S", type=_sigma, help=units)
    level("--blind", action="store_true", help="insist on a network that takes no noise level")
    noise.add_argument("--strength", metavar="X", type=float, default=1.0, help="factor on sigma (default 1)")

    result = parser.add_argument_group("result").add_argument
    codecs = "h264 h265 vp9 av1 ffv1 prores; for folders png jpeg tiff (default: by ending)"
    result("--codec", metavar="NAME", help=codecs)
    scale = "the codec's own scale: CRF, lower is better; JPEG 1 to 100, higher is"
    result("--quality", metavar="Q", type=int, help=scale)
    result("--lossless", action="store_true", help="no loss by the codec: FFV1 in .mkv, or h264 h265 vp9")
    result("--pixel-format", metavar="F", help="FFmpeg's name, e.g. yuv444p10le (default: as the input)")
    options = "for the encoder, e.g. preset=slow; again for more"
    result("--encoder-option", metavar="K=V", action="append", default=[], help=options)
    result("--fps", metavar="R", help="frames a second of pictures, e.g. 30000/1001 (default 25)")
    result("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    result("--compare", action="store_true", help="write noisy and denoised side by side")
    pictures = "only N frames, as side-by-side pictures in the folder OUTPUT.preview"
    result("--preview", metavar="N", type=int, help=pictures)
    result("--salvage", action="store_true", help="take what can be decoded of a damaged video")

    work = parser.add_argument_group("computing").add_argument
    work("--device", metavar="D", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    arithmetic = "arithmetic: auto is bf16 where the device is made for it, else 32 (default auto)"
    work("--precision", choices=("auto", "32", "bf16", "16"), default="auto", help=arithmetic)
    work("--memory", metavar="SIZE", help="memory to use at most, e.g. 4GiB (default: part of what is free)")
    work("--tile", metavar="N|HxW", type=_tile, help="tile size in pixels, instead of --memory")
    work("--overlap", metavar="N", type=int, help="pixels that tiles share (default 64)")
    work("--chunk", metavar="T", type=int, help="frames computed together, instead of --memory")
    reach = (
        "frames merged each side (default: the network's own): with more, calm scenes come cleaner, and later"
    )
    work("--temporal-window", metavar="N", type=int, help=reach)
    work("--no-scene-cuts", action="store_true", help="do not look for cuts: take INPUT as one scene")

    stream = parser.add_argument_group("streaming").add_argument
    stream("--stream", action="store_true", help="frame by frame, with a fixed small delay; Y4M or raw")
    stream("--size", metavar="WxH", type=picture_size, help="raw input: picture size")
    stream("--raw", metavar="F", help="raw input: FFmpeg's pixel format, e.g. rgb24 or yuv420p")
    stream("--window", metavar="T", type=int, help="frames seen at once (default: twice the network's reach)")


def run(args: argparse.Namespace) -> int:
    """Denoise."""
    from stan.inference.memory import keep_heap

    keep_heap()
    with _plain_warnings(), _terminable():
        if args.stream:
            return _stream(args)
        if "-" in (args.input, args.output):
            raise StanError("- (standard input or output) needs --stream")
        return _file(args)


def _file(args: argparse.Namespace) -> int:
    from stan.inference.files import denoise_file, preview_file

    _refuse(args, "--size --raw --window", "goes with --stream only")
    if args.preview is not None and args.compare:
        raise ConfigError("--preview already shows noisy beside denoised: leave --compare out")
    settings = _settings(args)
    source = _source(args)
    model = _model(args)
    with progress_bar("denoising", _tell) as progress:
        options = _options(args, model, progress)
        if args.preview is not None:
            result = preview_file(model, source, args.output, args.preview, options, settings)
        else:
            result = denoise_file(model, source, args.output, options, settings)
    return _report(result, args.strength)


def _stream(args: argparse.Namespace) -> int:
    from stan.inference.stream import RawFormat, denoise_stream

    _refuse(args, _STORED, "does not go with --stream: ffmpeg on the far side of the pipe does that")
    whole = "does not go with --stream: whole frames are computed, as many at once as --window says"
    _refuse(args, _CUT, whole)
    raw = None
    if args.raw is not None or args.size is not None:
        if args.raw is None or args.size is None:
            raise ConfigError("raw input needs both --raw FORMAT and --size WxH")
        raw = RawFormat(args.size[1], args.size[0], args.raw)
    model = _model(args)
    with progress_bar("denoising", _tell) as progress:
        result = denoise_stream(model, args.input, args.output, _options(args, model, progress), raw)
    return _report(result, args.strength)


_STORED = "--codec --quality --lossless --pixel-format --encoder-option --compare --preview --salvage --overwrite --fps"
_CUT = "--chunk --memory --tile --overlap"


def _refuse(args: argparse.Namespace, names: str, why: str) -> None:
    """Refuse those of the arguments `names` that are given, be it as 0."""
    for name in names.split():
        value = getattr(args, name[2:].replace("-", "_"))
        if value is not None and value is not False and value != []:
            raise ConfigError(f"{name} {why}")


def _report(result: Result, strength: float) -> int:
    if result.sigma is not None:
        low, mean, high = (level / strength for level in result.sigma)
        spread = "" if high - low < 0.05 else f" ({low:.1f} to {high:.1f})"
        scaled = "" if strength == 1 else f", denoised as {result.sigma[1]:.1f} (strength {strength:g})"
        _tell(f"noise level {mean:.1f}{spread}{scaled}")
    speed = result.frames / max(result.seconds, 1e-9)
    counted = f"{result.frames} frames in {result.seconds:.1f} s ({speed:.2f} frames/s)"
    if not result.interrupted:
        _tell(counted)
        if result.output is not None:
            print(result.output)
        return 0
    if result.output is None:
        _tell("interrupted before the first frame was done: nothing is written")
    else:
        _tell(f"interrupted: the first {counted} of {result.total} are in {result.output}")
    return 130


def _precision(name: str, model: VideoDenoiser) -> torch.dtype | None:
    """The type that --precision names; one that was not asked for is told."""
    import torch

    from stan.inference.clip import device_of
    from stan.inference.precision import fast_type, is_emulated

    if name != "auto":
        asked = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[name]
        if is_emulated(asked, device_of(model)):
            _tell("bfloat16 is emulated on this device, which is slow (--precision auto takes what is fast)")
        return asked
    dtype = fast_type(device_of(model))
    if dtype is not None:
        _tell("computing in bfloat16, which is faster here (--precision 32 for float32)")
    return dtype


def _options(args: argparse.Namespace, model: VideoDenoiser, progress: Progress) -> Options:
    from stan.inference import Options

    return Options(
        sigma=args.sigma,
        strength=args.strength,
        scenes=not args.no_scene_cuts,
        tiles=_tiles(args),
        memory=args.memory,
        window=args.window,
        dtype=_precision(args.precision, model),
        progress=progress,
        tell=_tell,
    )


def _settings(args: argparse.Namespace) -> OutputSettings:
    from stan.data.video import OutputSettings

    options = {}
    for pair in args.encoder_option:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--encoder-option {pair!r} is not KEY=VALUE, e.g. preset=slow")
        options[key] = value
    return OutputSettings(
        args.codec, args.quality, args.lossless, args.pixel_format, options, args.compare, args.overwrite
    )


def _source(args: argparse.Namespace) -> Any:
    from stan.data.video import PicturesClip, open_source

    fps = 25 if args.fps is None else args.fps
    source = open_source(args.input, fps=fps, salvage=args.salvage)
    if args.fps is not None and not isinstance(source, PicturesClip):
        raise ConfigError("--fps is for pictures: a video keeps its own frame times")
    return source


def _model(args: argparse.Namespace) -> VideoDenoiser:
    from stan.device import choose
    from stan.models import load
    from stan.models.shipped import best_for

    device = choose(args.device)
    checkpoint = args.checkpoint or best_for(device.type).name
    model = load(checkpoint, device, **temporal_window(args))
    if args.blind and not model.blind:
        raise StanError(f"{checkpoint} is not blind: it takes a noise level; use --sigma S or --sigma auto")
    return model


def _tiles(args: argparse.Namespace) -> TilePlan | None:
    if args.tile is None and args.chunk is None and args.overlap is None:
        return None
    if args.memory is not None:
        raise ConfigError(
            "--memory chooses tiles and chunks by itself: leave --tile, --chunk and --overlap out"
        )
    from stan.inference import TilePlan

    plan = TilePlan()
    if args.chunk is not None:
        plan = TilePlan(frames=args.chunk, frame_overlap=max(0, min(plan.frame_overlap, args.chunk - 1)))
    overlap = plan.overlap if args.overlap is None else args.overlap
    if args.tile is None:
        return replace(plan, overlap=overlap)
    if args.overlap is None:
        overlap = max(0, min(overlap, min(args.tile) // 4))
    return replace(plan, height=args.tile[0], width=args.tile[1], overlap=overlap)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as single lines, one of each kind."""
    seen: set[object] = set()

    def show(message: Warning | str, *place: Any, **_: Any) -> None:
        if place[:3] not in seen:
            seen.add(place[:3])
            _tell(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """`kill` ends the work as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(line: str) -> None:
    """A line on standard error; the result does not depend on whether anybody reads it."""
    tell(f"stan: {line}")


def _sigma(text: str) -> Any:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def _tile(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    try:
        return int(height), int(width if cross else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HxW, e.g. 256 or 288x512") from None
