"""``stan denoise``: a trained network on a video file, a folder of pictures, or a stream."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from stan.errors import ConfigError, StanError

if TYPE_CHECKING:
    import torch

    from stan.data.video import OutputSettings
    from stan.inference import TilePlan
    from stan.inference.denoise import Progress
    from stan.inference.files import FileResult
    from stan.models import VideoDenoiser

HELP = "denoise a video file, a folder of pictures, or a stream"

EPILOG = """\
examples:
  stan denoise in.mp4 out.mp4 --checkpoint model.ckpt             # noise level found by itself
  stan denoise in.mp4 out.mkv --checkpoint model.ckpt --sigma 25 --lossless
  stan denoise frames/ clean/ --checkpoint model.ckpt             # a folder of pictures; 'shot/*.png' too
  stan denoise in.mp4 out.mp4 --checkpoint model.ckpt --preview 4 # look at four frames first
  ffmpeg -i in.mp4 -f yuv4mpegpipe - | stan denoise - - --stream --checkpoint model.ckpt | ffplay -

Frame times, colour, turn, pixel shape, bit depth, sound and subtitles are kept. Ctrl-C leaves what was done
as OUTPUT's name with .partial before the ending. docs/denoise.md shows every option at work.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "input", metavar="INPUT", help="video file, folder of pictures, glob pattern; - with --stream"
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="video (.mp4 .mov .mkv .webm), folder, or one picture; - with --stream",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", required=True, help="trained network (.ckpt or .safetensors)"
    )

    noise = parser.add_argument_group("noise")
    level = noise.add_mutually_exclusive_group()
    level.add_argument(
        "--sigma",
        type=_sigma,
        metavar="S",
        help="noise level in 8-bit units, or auto (the default unless blind)",
    )
    level.add_argument("--blind", action="store_true", help="insist on a network that takes no noise level")
    noise.add_argument("--strength", type=float, default=1.0, metavar="X", help="factor on sigma (default 1)")

    result = parser.add_argument_group("result")
    result.add_argument(
        "--codec",
        metavar="NAME",
        help="h264 h265 vp9 av1 ffv1 prores; for folders png jpeg tiff (default: by ending)",
    )
    result.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help="the codec's own scale: CRF, lower is better; JPEG 1 to 100, higher is",
    )
    result.add_argument(
        "--lossless", action="store_true", help="no loss by the codec: FFV1 in .mkv, or h264 h265 vp9"
    )
    result.add_argument(
        "--pixel-format", metavar="F", help="FFmpeg's name, e.g. yuv444p10le (default: as the input)"
    )
    result.add_argument(
        "--encoder-option",
        action="append",
        default=[],
        metavar="K=V",
        help="for the encoder, e.g. preset=slow; again for more",
    )
    result.add_argument("--fps", type=float, metavar="R", help="frames a second of pictures (default 25)")
    result.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    result.add_argument("--compare", action="store_true", help="write noisy and denoised side by side")
    result.add_argument(
        "--preview",
        type=int,
        metavar="N",
        help="only N frames, as side-by-side pictures in the folder OUTPUT.preview",
    )
    result.add_argument("--salvage", action="store_true", help="take what can be decoded of a damaged video")

    work = parser.add_argument_group("computing")
    work.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 (default: a GPU if there is one)"
    )
    work.add_argument(
        "--precision", choices=("32", "bf16", "16"), default="32", help="arithmetic (default 32 bits)"
    )
    work.add_argument(
        "--memory", metavar="SIZE", help="memory to use at most, e.g. 4GiB (default: part of what is free)"
    )
    work.add_argument("--tile", type=_tile, metavar="N|HxW", help="tile size in pixels, instead of --memory")
    work.add_argument("--overlap", type=int, metavar="N", help="pixels that tiles share (default 64)")
    work.add_argument("--chunk", type=int, metavar="T", help="frames computed together, instead of --memory")
    work.add_argument(
        "--no-scene-cuts", action="store_true", help="do not look for cuts: take INPUT as one scene"
    )

    stream = parser.add_argument_group("streaming")
    stream.add_argument(
        "--stream", action="store_true", help="frame by frame, with a fixed small delay; Y4M or raw"
    )
    stream.add_argument("--size", type=_size, metavar="WxH", help="raw input: picture size")
    stream.add_argument("--raw", metavar="F", help="raw input: FFmpeg's pixel format, e.g. rgb24 or yuv420p")
    stream.add_argument(
        "--window", type=int, metavar="T", help="frames seen at once (default: twice the network's reach)"
    )


def run(args: argparse.Namespace) -> int:
    """Denoise."""
    with _plain_warnings(), _terminable():
        if args.stream:
            return _stream(args)
        if "-" in (args.input, args.output):
            raise StanError("- (standard input or output) needs --stream")
        return _file(args)


def _file(args: argparse.Namespace) -> int:
    from stan.inference.files import denoise_file, preview_file

    for name, value in (("--size", args.size), ("--raw", args.raw), ("--window", args.window)):
        if value is not None:
            raise ConfigError(f"{name} goes with --stream only")
    if args.preview is not None and args.compare:
        raise ConfigError("--preview already shows noisy beside denoised: leave --compare out")
    settings = _settings(args)
    source = _source(args)
    model = _model(args)
    common: dict[str, Any] = {
        "strength": args.strength,
        "overwrite": args.overwrite,
        "tiles": _tiles(args),
        "memory": args.memory,
        "dtype": _dtype(args.precision),
        "tell": _tell,
    }
    with _bar() as progress:
        if args.preview is not None:
            result = preview_file(
                model, source, args.output, args.preview, args.sigma, progress=progress, **common
            )
        else:
            result = denoise_file(
                model,
                source,
                args.output,
                args.sigma,
                settings=settings,
                compare=args.compare,
                scenes=not args.no_scene_cuts,
                progress=progress,
                **common,
            )
    return _report(result)


def _report(result: FileResult) -> int:
    if result.sigma is not None:
        low, mean, high = result.sigma
        spread = "" if high - low < 0.05 else f" ({low:.1f} to {high:.1f})"
        _tell(f"noise level {mean:.1f}{spread}")
    speed = result.frames / max(result.seconds, 1e-9)
    counted = f"{result.frames} frames in {result.seconds:.1f} s ({speed:.2f} frames/s)"
    if not result.interrupted:
        _tell(counted)
        print(result.output)
        return 0
    if result.output is None:
        _tell("interrupted before the first frame was done: nothing is written")
    else:
        _tell(f"interrupted: the first {counted} of {result.total} are in {result.output}")
    return 130


def _stream(args: argparse.Namespace) -> int:
    from stan.inference.stream import RawFormat, denoise_stream

    file_only = {
        "--codec": args.codec,
        "--quality": args.quality,
        "--lossless": args.lossless,
        "--pixel-format": args.pixel_format,
        "--encoder-option": args.encoder_option,
        "--compare": args.compare,
        "--preview": args.preview,
        "--salvage": args.salvage,
        "--overwrite": args.overwrite,
        "--fps": args.fps,
        "--chunk": args.chunk,
        "--no-scene-cuts": args.no_scene_cuts,
        "--memory": args.memory,
        "--tile": args.tile,
        "--overlap": args.overlap,
    }
    for name, value in file_only.items():
        if value:
            raise ConfigError(
                f"{name} does not go with --stream: ffmpeg on the far side of the pipe does that"
            )
    raw = None
    if args.raw is not None or args.size is not None:
        if args.raw is None or args.size is None:
            raise ConfigError("raw input needs both --raw FORMAT and --size WxH")
        raw = RawFormat(args.size[1], args.size[0], args.raw)
    model = _model(args)
    with _bar() as progress:
        frames = denoise_stream(
            model,
            args.input,
            args.output,
            args.sigma,
            raw=raw,
            strength=args.strength,
            window=args.window,
            dtype=_dtype(args.precision),
            progress=progress,
            tell=_tell,
        )
    _tell(f"{frames} frames")
    return 0


def _settings(args: argparse.Namespace) -> OutputSettings:
    from stan.data.video import OutputSettings

    options = {}
    for pair in args.encoder_option:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--encoder-option {pair!r} is not KEY=VALUE, e.g. preset=slow")
        options[key] = value
    return OutputSettings(args.codec, args.quality, args.lossless, args.pixel_format, options)


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

    model = load(args.checkpoint, choose(args.device))
    if args.blind and not model.blind:
        raise StanError(
            f"{args.checkpoint} is not blind: it takes a noise level; use --sigma S or --sigma auto"
        )
    return model


def _tiles(args: argparse.Namespace) -> TilePlan | None:
    if args.tile is None and args.chunk is None and args.overlap is None:
        return None
    if args.memory is not None:
        raise ConfigError(
            "--memory chooses tiles and chunks by itself: leave --tile, --chunk and --overlap out"
        )
    from dataclasses import replace

    from stan.inference import TilePlan

    plan = TilePlan()
    if args.chunk is not None:
        plan = TilePlan(frames=args.chunk, frame_overlap=max(0, min(plan.frame_overlap, args.chunk - 1)))
    if args.tile is not None:
        overlap = min(plan.overlap, min(args.tile) // 4) if args.overlap is None else args.overlap
        return replace(plan, height=args.tile[0], width=args.tile[1], overlap=overlap)
    return plan if args.overlap is None else replace(plan, overlap=args.overlap)


def _dtype(precision: str) -> torch.dtype | None:
    import torch

    return {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[precision]


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A progress bar with frames a second and time left, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("denoising"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.fields[count]} frames"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task("", total=None, count="?", speed="")

        def update(done: float, total: int | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task,
                completed=done,
                total=total,
                count="?" if total is None else total,
                speed="" if speed is None else f"{speed:.2f} frames/s",
            )

        yield update


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as single lines, one of each kind."""
    seen: set[object] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        kind = (category, filename, lineno)
        if kind not in seen:
            seen.add(kind)
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
    print(f"stan: {line}", file=sys.stderr, flush=True)


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


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    try:
        size = int(width), int(height)
    except ValueError:
        size = (0, 0)
    if min(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH, e.g. 1280x720")
    return size
