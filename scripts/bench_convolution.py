"""The 3x3 convolutions of a two-pass network on a CPU: our kernel beside torch's, in turn, with their errors.

    python scripts/bench_convolution.py [--model stan_tiny] [--size 854x480] [--pictures 1] [--threads 1] [--repeat 9]

Each layer of the network once, with ReLU, in float32: without a gradient, and with all gradients. Milliseconds,
medians. Errors are the largest ones against float64, in times of the largest output.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stan.models
from stan.cli.common import picture_size
from stan.models.cells import BLOCK
from stan.models.two_pass import TwoPass
from stan.ops.convolution import convolve


def main() -> None:
    """Measure, and print a line for each layer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="stan_tiny", help="default: stan_tiny")
    parser.add_argument("--size", type=picture_size, default=(854, 480), help="default: 854x480")
    parser.add_argument("--pictures", type=int, default=1, help="at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = stan.models.build(args.model)
    if not isinstance(model, TwoPass):
        parser.error(f"--model: expected a two-pass network, got {args.model!r}")
    width, height = (side + -side % model.multiple for side in args.size)
    print(f"{'layer':22} {'times':>5}   {'forward':^24}   {'and backward':^24}   {'errors':^17}")
    print(
        f"{'':22} {'':5}   {'torch':>8} {'ours':>8} {'':6}   {'torch':>8} {'ours':>8} {'':6}   {'torch':>8} {'ours':>8}"
    )
    total = [0.0] * 4
    for name, layer, times, (rows, columns) in layers(model, height // BLOCK, width // BLOCK):
        x = torch.randn(args.pictures, layer.in_channels, rows, columns)
        x = x.contiguous(memory_format=torch.channels_last)
        forward, backward = compared(layer, x, args.repeat)
        total = [sum(pair) for pair in zip(total, (times * ms for ms in (*forward, *backward)))]
        print(
            f"{name:22} {times:5}   {in_turn(*forward)}   {in_turn(*backward)}   {errors(layer, x)}",
            flush=True,
        )
    print(f"{'together':22} {'':5}   {in_turn(*total[:2])}   {in_turn(*total[2:])}")


def layers(model: TwoPass, height: int, width: int) -> Iterator[tuple[str, nn.Conv2d, int, tuple[int, int]]]:
    """Name, a layer, how often its like is computed for a picture, and the size of its input."""
    net, depths = model.clean, model.settings["depths"]
    convolutions = [2 * depth * (2 if level < len(depths) - 1 else 1) for level, depth in enumerate(depths)]
    sizes = [(height >> level, width >> level) for level in range(len(depths))]
    yield "first", net.enter, 1, sizes[0]
    for level, (units, times, size) in enumerate(zip(net.encoders, convolutions, sizes)):
        if times:
            layer = next(m for m in units.modules() if isinstance(m, nn.Conv2d))
            yield f"level {level}, {layer.in_channels} channels", layer, times, size
    yield "last", net.leave, 1, sizes[0]


def compared(layer: nn.Conv2d, x: Tensor, repeat: int) -> tuple[list[float], list[float]]:
    """Milliseconds of torch's and our own, without a gradient and with all of them."""
    slope = torch.randn_like(F.conv2d(x, layer.weight, padding=1))
    leaf = x.clone().requires_grad_()

    def plain() -> None:  # as stan.models.convolutions would have it: the quickest way that torch has
        pads = strides = dilations = [1, 1]
        with torch.no_grad():
            torch.ops.mkldnn._convolution_pointwise(
                x, layer.weight, layer.bias, pads, strides, dilations, 1, "relu", [], ""
            )

    def ours() -> None:
        with torch.no_grad():
            convolve(x, layer.weight, layer.bias, relu=True)

    def plain_gradient() -> None:
        F.relu(layer(leaf), inplace=True).backward(slope)

    def our_gradient() -> None:
        convolve(leaf, layer.weight, layer.bias, relu=True).backward(slope)

    return timed([plain, ours], repeat), timed([plain_gradient, our_gradient], repeat)


def timed(calls: list[Callable[[], None]], repeat: int) -> list[float]:
    """Milliseconds of each call, medians of calls in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeat):
        for call, into in zip(calls, taken):
            start = time.perf_counter()
            call()
            into.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def in_turn(before: float, now: float) -> str:
    """Two times and their ratio."""
    return f"{before:8.1f} {now:8.1f} {before / now:5.2f}x"


@torch.no_grad()
def errors(layer: nn.Conv2d, x: Tensor) -> str:
    """The largest error of torch's and our own."""
    assert layer.bias is not None
    truth = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    found = layer(x), convolve(x, layer.weight, layer.bias)
    return " ".join(f"{((y - truth).abs().max() / truth.abs().max()).item():8.1e}" for y in found)


if __name__ == "__main__":
    main()
