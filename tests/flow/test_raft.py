"""RAFT as an offset source, against torchvision's own call, with random weights."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

import stan.cli
import stan.flow
import stan.models
from stan.errors import CheckpointError, ConfigError
from stan.flow import CachedFlow
from stan.models.two_pass import TwoPass, TwoPassSettings


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would download fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


def noise(frames: int, height: int, width: int) -> Tensor:
    """`(1, T, 3, H, W)`."""
    return torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def torchvisions(raft_file: Path, first: Tensor, second: Tensor, updates: int) -> Tensor:
    """What torchvision computes for frames `(3, H, W)` in [0, 1]."""
    network = raft_small(weights=None)
    network.load_state_dict(torch.load(raft_file, weights_only=True))
    with torch.no_grad():
        flow: Tensor = network.eval()(2 * first[None] - 1, 2 * second[None] - 1, num_flow_updates=updates)[-1]
    return flow[0]


def test_it_is_torchvisions_flow(raft_file: Path) -> None:
    video = noise(3, 128, 144)
    flow = stan.flow.build("raft", weights=str(raft_file), updates=3)(video)
    for t in range(2):
        there = torchvisions(raft_file, video[0, t], video[0, t + 1], 3)
        back = torchvisions(raft_file, video[0, t + 1], video[0, t], 3)
        assert torch.allclose(flow.forward[0, t], there, atol=1e-3)
        assert torch.allclose(flow.backward[0, t + 1], back, atol=1e-3)


@pytest.mark.parametrize("size", [(97, 141), (30, 150)])
def test_other_sizes_are_those_with_their_border_repeated(raft_file: Path, size: tuple[int, int]) -> None:
    video = noise(2, *size)
    sides = [max(128, -(-side // 8) * 8) for side in size]
    width = [(0, 0), *((0, large - side) for large, side in zip(sides, size))]
    first, second = (torch.from_numpy(np.pad(f.numpy(), width, mode="edge")) for f in video[0])
    expected = torchvisions(raft_file, first, second, 2)[:, : size[0], : size[1]]
    flow = stan.flow.build("raft", weights=str(raft_file), updates=2)(video)
    assert torch.allclose(flow.forward[0, 0], expected, atol=1e-3)


def test_reduced_size_batches_autocast_and_wild_values(raft_file: Path) -> None:
    source = stan.flow.build("raft", weights=str(raft_file), updates=2)
    video = torch.cat([noise(3, 130, 130), noise(3, 130, 130).flip(1)])
    flow = source(video)
    assert torch.allclose(flow.forward[1], flow.backward[0].flip(0), atol=1e-3)  # a reversed clip
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(one, two) for one, two in zip(flow, source(video)))
    video[0, 0, :, :9] = float("nan")
    video[0, 1, :, :9] = float("inf")
    assert all(f.isfinite().all() for f in source(video))
    half = stan.flow.build("raft", weights=str(raft_file), updates=2, downscale=2)(noise(2, 75, 301))
    assert half.forward.shape == (1, 2, 2, 75, 301)
    assert not source(torch.rand(2, 1, 3, 32, 32)).forward.any()
    assert source(torch.rand(0, 3, 3, 32, 32)).forward.shape == (0, 3, 2, 32, 32)


def test_the_large_network_is_known_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    torch.save(raft_large(weights=None).state_dict(), path)
    source = stan.flow.build("raft", weights=str(path), updates=1)
    assert source(noise(2, 16, 16)).forward.isfinite().all()
    # its 5 million parameters do not count against the size of the checkpoint of a small network
    model = stan.models.build(
        "unet_tiny", channels=[8], depths=[1], heads=[1], flow="raft", flow_settings={"weights": str(path)}
    )
    stan.models.load(stan.models.save(model, tmp_path / "small.ckpt"))


def test_unfit_files_are_told_in_one_line(raft_file: Path, tmp_path: Path) -> None:
    good = torch.load(raft_file, weights_only=True)
    key = next(reversed(good))
    files: dict[str, object] = {
        "other.pth": {"a": torch.zeros(1)},
        "list.pth": [1, 2],
        "lacks.pth": {k: v for k, v in good.items() if k != key},
        "more.pth": good | {"head.weight": torch.zeros(2)},
        "shape.pth": good | {key: torch.zeros(1, 2, 3)},
        "nan.pth": good | {key: torch.full_like(good[key], float("nan"))},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.pth").write_bytes(raft_file.read_bytes()[:5000])
    os.mkfifo(tmp_path / "fifo.pth")
    for name in (*files, "text.pth", "cut.pth", "fifo.pth", "missing.pth", "."):
        with pytest.raises(ConfigError) as caught:
            stan.flow.build("raft", weights=str(tmp_path / name))
        message = str(caught.value)
        assert str(tmp_path / name) in message
        assert "raft_small_C_T_V2-01064c6d.pth (torchvision.models.optical_flow.Raft_Small_Weights" in message
        assert "\n" not in message
    with pytest.raises(ConfigError, match=r"needs a setting weights.*Raft_Small_Weights"):
        stan.flow.build("raft")


def test_checkpoints_hold_path_and_checksum_and_miss_the_file(raft_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "raft.pth"
    path.write_bytes(raft_file.read_bytes())
    network = TwoPass("stan_tiny", TwoPassSettings(flow="raft", flow_settings={"weights": str(path)}))
    assert {k for k in network.state_dict() if k.startswith("source.")} == {"source.fingerprint"}
    assert not list(network.source.parameters())
    assert copy.deepcopy(network.source).fingerprint.equal(network.source.fingerprint)
    for name in ("model.ckpt", "model.safetensors"):
        saved = stan.models.save(network, tmp_path / name)
        video = noise(2, 32, 32)
        loaded = stan.models.load(saved)
        assert torch.equal(loaded.source(video).forward, network.source(video).forward)
        path.rename(tmp_path / "away.pth")
        with pytest.raises(CheckpointError, match=r"raft.pth does not exist; download https"):
            stan.models.load(saved)
        torch.save(raft_small(weights=None).state_dict(), path)
        with pytest.raises(CheckpointError, match="is not the file that the checkpoint was made with"):
            stan.models.load(saved)
        (tmp_path / "away.pth").rename(path)


def test_a_network_trains_with_it_and_its_flow_is_kept_by_what_the_file_holds(
    raft_file: Path, tmp_path: Path
) -> None:
    settings = {"weights": str(raft_file), "updates": 1}
    network = stan.models.build(
        "unet_tiny", channels=[8], depths=[1], heads=[1], flow="raft", flow_settings=settings
    )
    output = network(noise(3, 32, 32), 20.0)
    assert isinstance(output, Tensor)
    output.square().mean().backward()
    cache = CachedFlow(network.source, tmp_path / "flow")
    video = noise(2, 32, 32)
    assert torch.equal(cache(video).forward, cache(video).forward)
    path = tmp_path / "other.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    other = CachedFlow(stan.flow.build("raft", weights=str(path), updates=1), tmp_path / "flow")
    other.source.settings = cache.source.settings  # as if the file had changed
    assert other.key(video[0]) != cache.key(video[0])


def test_the_command_says_what_is_missing(
    davis_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", "train/davis_tiny.yaml", f"data.root={davis_root}", f"output={tmp_path / 'run'}",
        "model.name=unet_tiny", "model.flow=raft",
    ]  # fmt: skip
    assert stan.cli.main([*words, "model.settings.flow_settings.weights=/nowhere.pth"]) == 2
    missing = capsys.readouterr().err
    assert "/nowhere.pth does not exist; download https://download.pytorch.org/models/raft_small" in missing
    assert len(missing.strip().splitlines()) == 1


def test_it_takes_the_place_of_another_source_and_gives_it_back(raft_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.pth"
    file.write_bytes(raft_file.read_bytes())
    small = {"channels": [4, 4], "depths": [1, 1], "features": 2}
    path = stan.models.save(stan.models.build("stan_tiny", **small), tmp_path / "dis.ckpt")
    with_raft = stan.models.load(path, flow="raft", flow_settings={"weights": str(file)})
    path = stan.models.save(with_raft, tmp_path / "raft.ckpt")
    moved = file.rename(tmp_path / "moved.pth")
    assert stan.models.load(path, flow="dis").settings["flow"] == "dis"
    assert stan.models.load(path, flow_settings={"weights": str(moved)}).settings["flow"] == "raft"
