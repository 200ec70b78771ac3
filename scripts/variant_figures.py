"""The figures by which docs/results.md compares networks: PSNR on short clips, and what they gain from time.

    python scripts/variant_figures.py CHECKPOINT... [--davis data/DAVIS] [--sigmas 10 30 50]
    python scripts/variant_figures.py CHECKPOINT... --frames 16 --middle 4 --with temporal_window=3 temporal_window=8

The clips: the middle 288x480 of the first 8 frames (`--frames`) of dog, drift-chicane and judo (DAVIS val), and two
photographs of scikit-image at 192x128 under a camera that drifts sideways by 0.7 (chelsea) and 0.9 pixels a frame
(coffee), and a third of that down. Gaussian noise, the level told. "Gain" is the PSNR of a clip minus that of its
frames one at a time by the same network with the same noise. Takes a few minutes a network on two cores; `stan
evaluate` measures whole sequences. `--with` changes settings that no weight depends on, a row for each word
(`flow_settings.preset=fast`; several at once: `window=1,patch=5`).
"""

from __future__ import annotations

import argparse
import statistics
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from omegaconf import OmegaConf
from torch import Tensor

import stan
from stan.data import open_clips
from stan.data.noise import NumpyRandom, build
from stan.metrics.quality import psnr
from stan.models import VideoDenoiser

SEQUENCES = ("dog", "drift-chicane", "judo")
PHOTOS = {"chelsea": (0.7, 60, 130), "coffee": (0.9, 120, 200)}
"""Speed in pixels a frame, and the corner (top, left) of the middle frame in the photograph."""


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoints", nargs="+", help="of stan_tiny's kind, a file or a name of `stan models`"
    )
    parser.add_argument("--davis", type=Path, default=Path("data/DAVIS"), help="default: %(default)s")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[10.0, 30.0, 50.0])
    parser.add_argument("--frames", type=int, default=8, help="of a clip (%(default)s)")
    parser.add_argument("--middle", type=int, help="measure so many frames in the middle of a clip (all)")
    parser.add_argument(
        "--with",
        dest="changes",
        nargs="+",
        default=[""],
        metavar="KEY=VALUE",
        help="settings in place of the networks' own",
    )
    args = parser.parse_args()

    val = {name: middle(args.davis, name, args.frames) for name in SEQUENCES}
    photos = {name: panned(name, args.frames, *about) for name, about in PHOTOS.items()}
    cut = (args.frames - (args.middle or args.frames)) // 2
    inner = slice(cut, args.frames - cut)
    levels = "  ".join(f"{sigma:5g}" for sigma in args.sigmas)
    print(f"{'network':30}  {levels}   mean   gain" + "".join(f"  {name:>14}" for name in photos), flush=True)
    for checkpoint, change in product(args.checkpoints, args.changes):
        settings = OmegaConf.to_container(OmegaConf.from_dotlist(change.split(",") if change else []))
        model = stan.load(checkpoint, **settings)
        rows = [
            [measured(model, clip, name, sigma, inner) for name, clip in val.items()] for sigma in args.sigmas
        ]
        means = [statistics.mean(clip for clip, _ in row) for row in rows]
        gain = statistics.mean(clip - alone for row in rows for clip, alone in row)
        line = "  ".join(f"{mean:.2f}" for mean in means)
        line += f"  {statistics.mean(means):.3f}  {gain:4.2f}"
        for name, clip in photos.items():
            together, alone = measured(model, clip, name, 30.0, inner)
            line += f"  {together:.2f} ({together - alone:+.2f})"
        label = f"{checkpoint} {change}".strip()
        print(f"{label:30}  {line}", flush=True)


def middle(davis: Path, name: str, frames: int) -> Tensor:
    """The middle of the first frames of a sequence: `(T, 3, 288, 480)` in [0, 1]."""
    (clip,) = [clip for clip in open_clips("davis", davis, "val") if clip.name == name]
    height, width = clip.size
    return clip.crop(0, frames, (height - 288) // 2, (width - 480) // 2, 288, 480).float() / 255


def panned(name: str, count: int, speed: float, top: int, left: int) -> Tensor:
    """A photograph under a drifting camera, sampled bicubically: `(T, 3, 128, 192)` in [0, 1]."""
    picture = getattr(skimage.data, name)()
    frames = []
    for t in range(count):
        moved = speed * (t - (count - 1) / 2)
        shift = np.array([[1.0, 0.0, -left - moved], [0.0, 1.0, -top - moved / 3]])
        frames.append(cv2.warpAffine(picture, shift, (192, 128), flags=cv2.INTER_CUBIC))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)


def measured(
    model: VideoDenoiser, clean: Tensor, name: str, sigma: float, inner: slice
) -> tuple[float, float]:
    """Mean PSNR over the `inner` frames of a clip: all frames cleaned together, and each alone."""
    noisy = build("gaussian")(clean, sigma, NumpyRandom(0, name, sigma))
    together = stan.denoise(model, noisy, sigma=sigma)
    alone = torch.cat([stan.denoise(model, frame[None], sigma=sigma) for frame in noisy[inner]])
    return float(psnr(clean, together)[inner].mean()), float(psnr(clean[inner], alone).mean())


if __name__ == "__main__":
    main()
