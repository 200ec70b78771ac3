"""`stan export`: weights to hand on, graphs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import stan
import stan.models
from stan.cli import main
from stan.models import Trained
from stan.ops.library import WHY_NOT

SMALL = {"channels": [4, 4], "depths": [1, 1], "features": 2, "temporal_window": 1}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As a training leaves it: with an optimiser, and with paths of the machine."""
    model = stan.models.build("stan_tiny", **SMALL)
    model.trained = Trained("gaussian", (0.0, 50.0), 300)
    config = {
        "data": {"root": "/home/me/DAVIS", "cache": "C:\\me\\cache"},
        "output": "runs/a",
        "imports": ["/x/y.py"],
    }
    path = stan.models.save(model, tmp_path / "last.ckpt", config)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "optimizer_states": [torch.zeros(100_000)]}, path)
    return path


def test_weights_are_the_same_network_without_the_rest(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "mine.safetensors"
    assert main(["export", str(checkpoint), str(out)]) == 0
    before, after = stan.load(checkpoint), stan.load(out)
    assert (after.name, after.settings, after.trained) == (before.name, before.settings, before.trained)
    for key, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[key])
    assert out.stat().st_size < checkpoint.stat().st_size - 300_000
    with safe_open(out, framework="np") as file:  # the configuration, for readers without torch too
        assert "/home/me" not in file.metadata()["stan"]
    config = stan.models.read(out)[1]["config"]
    assert config == {"data": {"root": "DAVIS", "cache": "cache"}, "output": "runs/a", "imports": ["y.py"]}
    assert f"{out}: stan_tiny" in capsys.readouterr().out


def test_weights_that_merge_more_frames_from_now_on(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "calm.safetensors"
    assert main(["export", str(checkpoint), str(out), "--temporal-window", "4"]) == 0
    before, after = stan.load(checkpoint), stan.load(out)
    assert after.settings == {**before.settings, "temporal_window": 4}
    assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())


@pytest.mark.skipif(bool(WHY_NOT), reason=f"no native operator: {WHY_NOT}")
def test_a_graph_by_the_ending(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "mine.pt2"
    assert main(["export", str(checkpoint), str(out), "--size", "48x32", "--frames", "1"]) == 0
    told = capsys.readouterr().out
    assert "a function of (noisy, sigma), flow pyramid in place of dis" in told
    graph = torch.export.load(out).module()
    assert graph(torch.rand(1, 1, 3, 32, 48), torch.tensor(25.0)).shape == (1, 1, 3, 32, 48)
    assert main(["export", str(out), str(tmp_path / "back.ckpt")]) == 2
    assert "is a graph, which torch.export.load runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["m.onnx"], "the search is no operator of ONNX"),
        (["m.ckpt", "--temporal-window", "0"], "temporal_window=0 should be a whole number from 1 to 64"),
        (["m.pth"], "must end in .safetensors or .ckpt (weights) or .pt2 (graph)"),
        (["m.pt2"], "a graph is for one picture size: --size WxH"),
        (["m.safetensors", "--flow", "zero"], "--flow is for a graph"),
        (["last.ckpt"], "last.ckpt exists: --overwrite replaces it"),
        (["nowhere/m.pt2", "--size", "8x8", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    words: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    kept = checkpoint.read_bytes()
    assert main(["export", "last.ckpt", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert checkpoint.read_bytes() == kept
