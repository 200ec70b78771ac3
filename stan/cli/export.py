"""``stan export``: a trained network as weights to hand on, or as a graph for programs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stan.cli.common import picture_size, temporal_window
from stan.errors import ConfigError

if TYPE_CHECKING:
    from stan.models.graph import Graph

HELP = "write a checkpoint as weights to hand on (.safetensors) or as a graph of torch.export (.pt2)"

EPILOG = """\
examples:
  stan export runs/davis_tiny/best.ckpt mine.safetensors               # weights and configuration, no optimiser
  stan export stan_tiny calm.safetensors --temporal-window 8           # the same weights, to merge more frames
  stan export stan_tiny stan_tiny.pt2 --size 854x480                   # a function of (noisy, sigma)
  stan export stan_tiny stan_tiny.pt2 --size 854x480 --flow input      # of (noisy, sigma, forward, backward)

docs/export.md shows a program that runs such a graph.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="trained network: a file, or a name of `stan models`")
    add("output", metavar="OUTPUT", help="its ending says what: .safetensors, .ckpt, .pt2")
    add("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    reach = "frames that the network merges each side from now on (default: as many as before)"
    add("--temporal-window", metavar="N", type=int, help=reach)
    graph = parser.add_argument_group("graph (.pt2)").add_argument
    graph("--size", metavar="WxH", type=picture_size, help="picture size, which is fixed")
    graph("--frames", metavar="T", type=int, help="frames of a clip (default: a frame and all that it uses)")
    source = "auto (the network's own, or pyramid where that is OpenCV's), input, or an offset source's name"
    graph("--flow", metavar="NAME", default=None, help=source)
    graph("--precision", choices=("32", "bf16"), default=None, help="of its convolutions (default 32)")
    graph("--device", metavar="D", default=None, help="that the graph is for: cpu, cuda (default cpu)")


def run(args: argparse.Namespace) -> int:
    """Export."""
    output = Path(args.output)
    if output.suffix == ".onnx":
        raise ConfigError(
            f"{output}: the search is no operator of ONNX, and as a sequence of those it is too large to load "
            "(docs/export.md); .pt2 writes a graph of torch"
        )
    if output.suffix not in (".safetensors", ".ckpt", ".pt2"):
        raise ConfigError(f"{output} must end in .safetensors or .ckpt (weights) or .pt2 (graph)")
    if output.exists() and not args.overwrite:
        raise ConfigError(f"{output} exists: --overwrite replaces it")
    if output.suffix == ".pt2":
        return _graph(args, output)
    for name in ("size", "frames", "flow", "precision", "device"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"--{name} is for a graph, and {output} holds weights: take .pt2, or leave it out"
            )
    from stan.models.release import release

    model = release(args.checkpoint, output, **temporal_window(args))
    parameters = sum(p.numel() for p in model.parameters())
    trained = f", trained for sigma {model.trained.levels}" if model.trained else ""
    print(f"{output}: {model.name}, {parameters:,} parameters{trained}, {_megabytes(output)}")
    return 0


def _graph(args: argparse.Namespace, output: Path) -> int:
    if args.size is None:
        raise ConfigError(f"{output}: a graph is for one picture size: --size WxH")
    import torch

    from stan.device import choose
    from stan.models import load
    from stan.models.graph import write_graph

    model = load(args.checkpoint, choose(args.device or "cpu"), **temporal_window(args))
    width, height = args.size
    dtype = torch.bfloat16 if args.precision == "bf16" else None
    flow = args.flow or "auto"
    graph = write_graph(model, output, size=(height, width), frames=args.frames, flow=flow, dtype=dtype)
    print(_told(graph, model.source.name))
    return 0


def _told(graph: Graph, own: str) -> str:
    inside = f"flow {graph.flow}" + (f" in place of {own}" if graph.flow not in (own, "input") else "")
    return (
        f"{graph.path}: a function of ({', '.join(graph.inputs)}), {inside}, {graph.nodes:,} nodes, "
        f"{_megabytes(graph.path)}; loaded again, pixels differ from the network's by {graph.mean:.1g} in the mean, "
        f"{graph.largest:.1g} at most"
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
