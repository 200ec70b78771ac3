"""Processor time of the operator's calls in a two-pass network on a CPU: the search and the three gathers of its merge.

    python scripts/bench_merge.py [--size 854x480] [--threads 1] [--repeat 7]

Frames as `stan denoise` takes them, with smooth motion of some ten pixels. Milliseconds for a frame, medians.
To compare two versions, build each in a folder of its own and run the script in turn with PYTHONPATH set to either.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import stan.models
from stan import ops
from stan.cli.common import picture_size
from stan.models.cells import BLOCK, CELL, CELL_BLOCKS
from stan.models.two_pass import TOGETHER, TwoPass


def main() -> None:
    """Measure, and print a line for each call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=picture_size, default=(854, 480), help="default: 854x480")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = stan.models.build("stan_tiny")
    assert isinstance(model, TwoPass)
    width, height = (side + -side % model.multiple for side in args.size)
    total = 0.0
    for name, call in calls(model, height, width).items():
        call()
        times = []
        for _ in range(args.repeat):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        milliseconds = statistics.median(times) / TOGETHER * 1e3
        total += milliseconds
        print(f"{name:16} {milliseconds:7.1f} ms", flush=True)
    print(f"{'together':16} {total:7.1f} ms")


def calls(model: TwoPass, height: int, width: int) -> dict[str, Callable[[], object]]:
    """The calls by name, for frames of `height` x `width` pixels, multiples of the network's."""
    reach, group = model.merge.temporal_window, TOGETHER
    drawn = torch.Generator().manual_seed(0)
    clip, others = group + 2 * reach, 2 * reach
    rows, columns = height // CELL, width // CELL
    coarse = 4 * torch.randn(group * others * 2, 1, 8, 8, generator=drawn)
    motion = F.interpolate(coarse, size=(rows, columns), mode="bicubic")
    motion = motion.view(1, group, others, 2, rows, columns)
    picture = F.interpolate(
        torch.rand(1, 1, rows, columns, generator=drawn), size=(height, width), mode="bicubic"
    )
    grey = picture[None] + 0.05 * torch.randn(1, clip, 1, height, width, generator=drawn)
    offsets = motion.movedim((2, 3), (4, 5))[:, None].contiguous()  # (B, 1, T, h', w', K, 2)
    weights = torch.rand(offsets.shape[:-1], generator=drawn)
    steps = torch.tensor([d for d in range(-reach, reach + 1) if d])
    frames = (torch.arange(group)[:, None, None, None] + reach + steps).expand(1, 1, group, rows, columns, -1)
    frames = frames.int().contiguous()

    def video(channels: int, scale: int) -> Tensor:
        return torch.rand(1, clip, channels, height // scale, width // scale, generator=drawn)

    both, small, features = video(6, 1), video(6, BLOCK), video(model.features, BLOCK)
    halved = offsets / BLOCK
    return {
        "search": lambda: model.merge.search(grey[:, reach : reach + group], grey, motion, start=reach),
        "gather frames": lambda: ops.gather(both, weights, offsets, frames, block=CELL),
        "gather features": lambda: ops.gather(features, weights, halved, frames, block=CELL_BLOCKS),
        "gather_stack": lambda: ops.gather_stack(small, weights, halved, frames, block=CELL_BLOCKS),
    }


if __name__ == "__main__":
    main()
