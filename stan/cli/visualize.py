"""``stan visualize``: where a trained network's attention looks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stan.cli.common import temporal_window
from stan.errors import StanError

if TYPE_CHECKING:
    from stan.experiments.look import Picture

HELP = "draw where a network's attention looks: matches, searched windows, flow and its correction"

EPILOG = """\
Writes attention.png (frame --frame) and attention.mp4 (every frame) into --output. In each searched frame discs are
a point's matches, larger for more weight; the cross is where the flow points, the square the window searched there.
Below are the flow and its correction by the best match: hue is direction, strength is length (see the wheel).

  stan visualize stan_tiny in.mp4 --temporal-window 3 --point 120,80 --point 200,140
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a shipped network by name")
    add("video", metavar="VIDEO", help="a video, a folder of pictures, or a pattern of pictures")
    add("--output", default="runs/attention", metavar="DIR", help="folder of the pictures (runs/attention)")
    add("--point", action="append", metavar="X,Y", help="a query point, in pixels; repeatable (three)")
    add("--start", type=int, default=0, metavar="N", help="first frame (0)")
    add("--frames", type=int, metavar="N", help="frames taken (7, or as many as the network sees at once)")
    add("--temporal-window", type=int, metavar="N", help="frames seen each side (the network's own number)")
    add("--frame", type=int, metavar="N", help="the frame of the PNG, from --start on (the middle one)")
    add("--sigma", type=float, help="noise level, 8-bit units (estimated)")
    add("--add-noise", type=float, metavar="SIGMA", help="add white noise first: the video is clean")
    add("--block", help="attention block by name (the first)")


def run(args: argparse.Namespace) -> int:
    """Look, draw, and say where the pictures are."""
    from PIL import Image

    import stan.models
    from stan.data.noise import NumpyRandom
    from stan.data.noise import build as build_noise
    from stan.data.video import open_source
    from stan.experiments.look import default_points, frames_needed, look, picture
    from stan.files import replacing
    from stan.inference import estimate_sigma
    from stan.models.shipped import find

    model = stan.models.load(find(args.checkpoint), **temporal_window(args))
    source = open_source(args.video)
    frames = max(7, frames_needed(model)) if args.frames is None else args.frames
    count = min(frames, len(source) - args.start)
    if args.start < 0 or count < 1:
        raise StanError(f"--start {args.start} --frames {frames}: {args.video} has {len(source)} frames")
    video = source.read(args.start, args.start + count).float() / 255
    sigma = args.sigma
    if args.add_noise is not None:
        video = build_noise("gaussian")(video, args.add_noise, NumpyRandom(0, "visualize", args.add_noise))
        sigma = args.add_noise if sigma is None else sigma
    if sigma is None and not model.blind:
        sigma = estimate_sigma(video)
    looked = look(model, video, sigma, args.block)
    size = (looked.clean.shape[-2], looked.clean.shape[-1])
    points = [_point(text, size) for text in args.point] if args.point else default_points(size)
    frame = len(video) // 2 if args.frame is None else args.frame
    if not 0 <= frame < len(video):
        raise StanError(f"--frame {frame}: the frames taken are 0 to {len(video) - 1}")

    output = Path(args.output)
    pictures = [picture(video, looked, t, points) for t in range(len(video))]
    with replacing(output / "attention.png") as file:
        Image.fromarray(pictures[frame]).save(file, format="png")
    _write_video(output / "attention.mp4", pictures)
    print(f"{output}/attention.png: frame {frame}, block {looked.seen.block}, points {points}")
    print(f"{output}/attention.mp4: {len(pictures)} frames")
    return 0


def _point(text: str, size: tuple[int, int]) -> tuple[int, int]:
    x, _, y = text.partition(",")
    h, w = size
    if not (x.strip().isdigit() and y.strip().isdigit() and int(x) < w and int(y) < h):
        raise StanError(
            f"--point {text}: expected X,Y in pixels, X below {w} and Y below {h}, as {w // 2},{h // 2}"
        )
    return int(x), int(y)


def _write_video(path: Path, pictures: list[Picture]) -> None:
    """Write pictures as a video of four frames a second; all are padded to the largest."""
    import av
    import numpy as np

    from stan.files import replacing

    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    with replacing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4, width=width, height=height)
        stream.pix_fmt = "yuv420p"
        for shown in pictures:
            pad = ((0, height - shown.shape[0]), (0, width - shown.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(shown, pad, constant_values=250), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
