"""Graphs: what a fresh process without this package's networks computes is what the network computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stan.flow
import stan.models
from stan.errors import CheckpointError, ConfigError
from stan.flow import FlowPair, OffsetSource
from stan.models import VideoDenoiser
from stan.models.graph import write_graph
from stan.ops.library import LIBRARY, WHY_NOT
from tests.inference.networks import Convolutions

SIZE = (33, 50)  # no multiple of anything: the graph pads and crops
SMALL = {"channels": [8, 8], "depths": [1, 1], "features": 4}

FRESH = """
import json, sys
import torch
torch.ops.load_library(sys.argv[1])
about = {"stan.json": ""}
program = torch.export.load(sys.argv[2], extra_files=about)
inputs = torch.load(sys.argv[3])
with torch.no_grad():
    torch.save(program.module()(*inputs), sys.argv[4])
assert not any(name.split(".")[0] in ("stan", "cv2", "pytorch_lightning") for name in sys.modules)
print(about["stan.json"])
"""

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no native operator: {WHY_NOT}")


def run_fresh(graph: Path, *inputs: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """What a process that knows torch and the operator's library alone makes of a graph."""
    torch.save(inputs, graph.with_suffix(".in"))
    files = (str(graph), str(graph.with_suffix(".in")), str(graph.with_suffix(".out")))
    words = [sys.executable, "-c", FRESH, str(LIBRARY), *files]
    done = subprocess.run(words, capture_output=True, text=True, cwd=graph.parent, timeout=240)
    assert done.returncode == 0, done.stderr
    return torch.load(files[2]), json.loads(done.stdout)


def clip(frames: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(1, frames, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def two_pass() -> VideoDenoiser:
    torch.manual_seed(0)
    return stan.models.build("stan_tiny", temporal_window=1, **SMALL).eval()


def test_two_passes_with_a_source_of_torch(tmp_path: Path, two_pass: VideoDenoiser) -> None:
    graph = write_graph(two_pass, tmp_path / "g.pt2", size=SIZE)
    assert (graph.inputs, graph.flow) == (("noisy", "sigma"), "pyramid")
    assert two_pass.source.name == "dis"  # as it was
    noisy, sigma = clip(3), torch.tensor(40.0)
    clean, record = run_fresh(graph.path, noisy, sigma)
    two_pass.source = stan.flow.build("pyramid")
    longer = torch.cat([clip(1, 5), noisy, clip(1, 6)], 1)
    with torch.no_grad():
        assert (clean - two_pass(noisy, 40.0)).abs().max() < 1e-5
        assert (
            clean[:, 1] - two_pass(longer, 40.0)[:, 2]
        ).abs().max() < 1e-5  # the middle sees all that it uses
    assert record["flow"] == "pyramid"
    assert [(i["name"], i["shape"]) for i in record["inputs"]] == [("noisy", [1, 3, 3, *SIZE]), ("sigma", [])]
    assert record["model"] == {"name": "stan_tiny", "settings": two_pass.settings}
    assert sorted(p.name for p in tmp_path.glob("*.pt2*")) == ["g.pt2"]


def flow_of_two_frames() -> FlowPair:
    return FlowPair(
        *(torch.randn(1, 2, 2, *SIZE, generator=torch.Generator().manual_seed(n)) for n in (2, 3))
    )


def test_the_papers_network_blind_with_flow_as_an_input(tmp_path: Path) -> None:
    model = stan.models.build("unet_tiny", blind=True, temporal_window=1).eval()
    graph = write_graph(model, tmp_path / "g.pt2", size=SIZE, frames=2, flow="input")
    assert (graph.inputs, graph.flow) == (("noisy", "forward", "backward"), "input")
    flow = flow_of_two_frames()
    clean, _ = run_fresh(graph.path, clip(2), *flow)
    with torch.no_grad():
        assert (clean - model(clip(2), None, flow)).abs().max() < 1e-5


def test_two_passes_in_bfloat16_with_flow_as_an_input(tmp_path: Path, two_pass: VideoDenoiser) -> None:
    graph = write_graph(two_pass, tmp_path / "g.pt2", size=SIZE, frames=2, flow="input", dtype=torch.bfloat16)
    assert graph.inputs == ("noisy", "sigma", "forward", "backward")
    flow = flow_of_two_frames()
    clean, record = run_fresh(graph.path, clip(2), torch.tensor(25.0), *flow)
    assert (clean.dtype, record["precision"]) == (torch.float32, "bfloat16")
    with torch.no_grad():
        exact = two_pass(clip(2), 25.0, flow)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = two_pass(clip(2), 25.0, flow)
    assert 0 < (clean - exact).abs().mean() < 3 * (rounded - exact).abs().mean()


@pytest.mark.cuda
def test_a_graph_for_a_gpu(tmp_path: Path, two_pass: VideoDenoiser) -> None:
    graph = write_graph(two_pass.cuda(), tmp_path / "g.pt2", size=SIZE, frames=2)
    clean, record = run_fresh(graph.path, clip(2).cuda(), torch.tensor(25.0, device="cuda"))
    assert (clean.device.type, record["device"]) == ("cuda", "cuda:0")
    two_pass.source = stan.flow.build("pyramid")
    with torch.no_grad():
        assert (clean - two_pass(clip(2).cuda(), 25.0)).abs().mean() < 1e-3


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"flow": "dis"}, "flow=dis is not made of torch operations"),
        ({"flow": "learned"}, "flow=learned learns along with a network"),
        ({"flow": "nonsense"}, "'nonsense' is not known"),
        ({"frames": 0}, "frames=0: it must be at least 1"),
        ({"size": (0, 8)}, "height=0"),
        ({"path": "g.onnx"}, "must end in .pt2"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, two_pass: VideoDenoiser, wrong: dict, told: str) -> None:
    asked = {"path": "g.pt2", "size": SIZE, **wrong}
    with pytest.raises(ConfigError, match=told):
        write_graph(two_pass, tmp_path / asked.pop("path"), **asked)
    assert not list(tmp_path.iterdir())
    assert two_pass.source.name == "dis"


def test_a_network_that_looks_at_numbers(tmp_path: Path, two_pass: VideoDenoiser) -> None:
    """As one of a user's own may: what it does cannot be a graph, and one line says so."""

    class Numbers(OffsetSource):
        def estimate(self, video: torch.Tensor) -> FlowPair:
            still = torch.zeros(*video.shape[:2], 2, *video.shape[3:])
            return FlowPair(still, still + float(video.mean()))

    two_pass.source = Numbers()
    with pytest.raises(CheckpointError, match=r"network 'stan_tiny' cannot be written as a graph: [^\n]+$"):
        write_graph(two_pass, tmp_path / "g.pt2", size=SIZE, frames=2)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_departs_is_not_written(tmp_path: Path) -> None:
    """A network that does something else each time it is called."""

    class Restless(Convolutions):
        calls = 0

        def _run(self, noisy: torch.Tensor, noise_map: torch.Tensor | None, flow: FlowPair) -> torch.Tensor:
            self.calls += 1
            return super()._run(noisy, noise_map, flow) + 0.1 * self.calls

    with pytest.raises(CheckpointError, match="does not compute what the network does"):
        write_graph(Restless().eval(), tmp_path / "g.pt2", size=SIZE, frames=3)
    assert not list(tmp_path.iterdir())
