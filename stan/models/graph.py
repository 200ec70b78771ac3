"""Networks as graphs of `torch.export`, for programs that have torch and the operator's library but not this package.

A graph is made for clips of one size. It calls the operator as ``torch.ops.stan``: a program that runs it loads the
library of `stan.ops` first (``torch.ops.load_library``, or ``import stan.ops``) and needs nothing else of this package.
"""

from __future__ import annotations

import copy
import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from stan.errors import CheckpointError, ConfigError
from stan.files import replacing
from stan.flow import FlowPair, build
from stan.models.base import VideoDenoiser
from stan.models.checkpoint import describe, first_line
from stan.ops import backend

RECORD = "stan.json"
"""What a graph says of itself, for ``torch.export.load(path, extra_files={"stan.json": ""})``: network, what it was
trained for, version, inputs (name, shape, unit), offset source, device."""

UNITS = {
    "noisy": "pixels in [0, 1]",
    "sigma": "standard deviation of the noise, 8-bit units",
    "forward": "pixels (x, y) from each frame to the next",
    "backward": "pixels (x, y) from each frame to the one before",
}

LARGEST_DIFFERENCE, LARGEST_ROUNDED = 1e-3, 1e-2
"""Mean absolute difference, pixels in [0, 1], above which a graph does not compute what its network does: what rounding
does to float32 and to shorter types stays below, single matches that it changes included."""


class Graph(NamedTuple):
    """A graph that was written.

    Attributes:
        path: of the file.
        nodes: of the graph.
        inputs: names of what it takes, in this order.
        flow: the offset source inside it; "input" where flow is handed to it.
        largest: largest difference of a pixel from the network's own output, pixels in [0, 1].
        mean: mean of these differences.
    """

    path: Path
    nodes: int
    inputs: tuple[str, ...]
    flow: str
    largest: float
    mean: float


class _Call(nn.Module):
    """A network as a function of tensors alone."""

    def __init__(self, model: VideoDenoiser, names: tuple[str, ...], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.dtype = dtype

    def forward(self, *given: Tensor) -> Tensor:
        inputs = dict(zip(self.names, given))
        flow = FlowPair(inputs["forward"], inputs["backward"]) if "forward" in inputs else None
        noisy = inputs["noisy"]
        with nullcontext() if self.dtype is None else torch.autocast(noisy.device.type, self.dtype):
            clean = self.model(noisy, inputs.get("sigma"), flow)
        assert isinstance(clean, Tensor)
        return clean


def write_graph(
    model: VideoDenoiser,
    path: str | Path,
    *,
    size: tuple[int, int],
    frames: int | None = None,
    flow: str = "auto",
    dtype: torch.dtype | None = None,
) -> Graph:
    """Write the graph of a network, after it was loaded again and compared with the network.

    It is a function of ``noisy`` `(1, T, 3, H, W)` float32, ``sigma`` `()` float32 in 8-bit units unless the network is
    blind, and, with ``flow="input"``, ``forward`` and ``backward`` `(1, T, 2, H, W)` float32 as in `FlowPair`; it
    returns the clean frames, `(1, T, 3, H, W)`, not clamped.

    Args:
        model: in eval mode, on the device that the graph is for.
        path: must end in ``.pt2``.
        size: H and W; any.
        frames: T; None is the frame itself and all that it uses, twice the network's reach and one.
        flow: "auto": the network's own offset source, or `pyramid` where that is of another library (OpenCV); "input":
            flow is an input of the graph; else the name of an offset source of torch operations.
        dtype: of the convolutions (autocast), part of the graph; None is float32.

    Raises:
        ConfigError: a size, number or offset source that cannot be.
        CheckpointError: a network that cannot be written as a graph, a graph that departs from it, or a file that
            cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ConfigError(f"graph {path} must end in .pt2")
    frames = 2 * model.temporal_reach + 1 if frames is None else frames
    for name, number in (("frames", frames), ("height", size[0]), ("width", size[1])):
        if number < 1:
            raise ConfigError(f"a graph for {name}={number}: it must be at least 1")
    device = next(model.parameters()).device
    reason = backend.why_not_native(torch.empty(0, device=device))
    if not reason and backend.in_use(device) != "native":
        reason = "STAN_BACKEND asks for another backend"
    if reason:
        raise CheckpointError(f"a graph calls the operator's native kernels, which are not in use: {reason}")
    model = copy.deepcopy(model).requires_grad_(False)  # the graph is for use, with or without torch.no_grad
    inside = _choose_source(model, flow)
    given = _example(model, frames, size, device, with_flow=inside == "input")
    return _write(model, path, given, inside, dtype)


def _choose_source(model: VideoDenoiser, flow: str) -> str:
    """Give the network the offset source that `flow` asks for; returns its name, or "input".

    Raises:
        ConfigError: one that is not of torch operations, or learns.
    """
    if flow == "input":
        return flow
    if flow == "auto":
        flow = "pyramid" if not model.source.torch_only else model.source.name
    if flow != model.source.name:
        source = build(flow)
        if source.trainable:
            raise ConfigError(
                f"flow={flow} learns along with a network, and this one has learned with {model.source.name}"
            )
        model.source = source
    if not model.source.torch_only:
        raise ConfigError(
            f"flow={flow} is not made of torch operations and cannot be part of a graph; take pyramid, zero or input"
        )
    return flow


def _example(
    model: VideoDenoiser, frames: int, size: tuple[int, int], device: torch.device, *, with_flow: bool
) -> dict[str, Tensor]:
    """Inputs by name: soft spots with noise, and, where flow is handed over, one that is the same everywhere."""
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=drawn)
    picture = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    noisy = picture[:, None] + 25 / 255 * torch.randn(1, frames, 3, *size, generator=drawn)
    given = {"noisy": noisy}
    if not model.blind:
        given["sigma"] = torch.tensor(25.0)
    if with_flow:
        given["forward"] = torch.full((1, frames, 2, *size), 0.3)
        given["backward"] = -given["forward"]
    return {name: tensor.to(device) for name, tensor in given.items()}


def _drop_empty_regions(module: GraphModule) -> None:
    """Drop the calls of what returns nothing: autocast regions between two others in which nothing is computed.

    torch 2.15 writes them, and does not read them again.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.meta.get("val") == () and not node.users:
            bodies = [n for n in node.all_input_nodes if n.op == "get_attr"]
            module.graph.erase_node(node)
            for body in bodies:
                if not body.users:
                    module.graph.erase_node(body)
    module.recompile()


@torch.no_grad()
def _write(
    model: VideoDenoiser, path: Path, given: dict[str, Tensor], flow: str, dtype: torch.dtype | None
) -> Graph:
    """Export, load again, compare, and only then give the file its name."""
    names, tensors = tuple(given), tuple(given.values())
    call = _Call(model, names, dtype)
    expected = call(*tensors)
    try:
        program = torch.export.export(call, tensors, strict=False)
    except Exception as error:  # whatever a network of one's own does that cannot be traced
        raise CheckpointError(
            f"network {model.name!r} cannot be written as a graph: {first_line(error)}"
        ) from error
    program.example_inputs = None  # they would be most of the file
    _drop_empty_regions(program.graph_module)
    record = {
        **{key: value for key, value in describe(model).items() if key not in ("format", "config")},
        "inputs": [{"name": name, "shape": list(given[name].shape), "unit": UNITS[name]} for name in names],
        "flow": flow,
        "device": str(expected.device),
        "precision": "float32" if dtype is None else str(dtype).removeprefix("torch."),
    }
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={RECORD: json.dumps(record, indent=2)})
    buffer.seek(0)
    apart = (torch.export.load(buffer).module()(*tensors) - expected).abs()
    if not apart.mean() <= (LARGEST_DIFFERENCE if dtype is None else LARGEST_ROUNDED):
        raise CheckpointError(
            f"the graph of network {model.name!r} does not compute what the network does: its pixels differ by "
            f"{apart.mean():.2g} in the mean"
        )
    try:
        with replacing(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(f"cannot write graph {path}: {first_line(error)}") from error
    nodes = sum(
        len(part.graph.nodes) for part in program.graph_module.modules() if isinstance(part, GraphModule)
    )
    return Graph(path, nodes, names, flow, float(apart.max()), float(apart.mean()))
