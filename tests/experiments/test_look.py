"""`stan visualize`: what is drawn is where the network looked."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

import stan.cli
import stan.models
from stan.experiments.look import colours, look, picture, wheel
from stan.flow import FlowPair, OffsetSource
from stan.models import Trained
from tests.conftest import moving_picture


class Constant(OffsetSource):
    """Everything moves by (2, 4) a frame."""

    def estimate(self, video: torch.Tensor) -> FlowPair:
        b, t, _, h, w = video.shape
        flow = torch.tensor([2.0, 4.0]).view(1, 1, 2, 1, 1).expand(b, t, 2, h, w).contiguous()
        return FlowPair(flow, -flow)


@pytest.mark.parametrize(("name", "window"), [("unet_tiny", 6), ("stan_tiny", 3)])
def test_windows_lie_where_the_flow_points_and_hold_the_matches(name: str, window: float) -> None:
    torch.manual_seed(0)
    model = stan.models.build(name).eval()
    model.source = Constant()
    video = torch.rand(7, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    looked = look(model, video, 25)
    assert looked.window == window
    point = (32, 24)
    anchors = dict(looked.anchors(3, point))
    assert set(range(2, 5)) <= anchors.keys() <= set(range(7))
    for frame, anchor in anchors.items():
        assert anchor == pytest.approx((32 + 2 * (frame - 3), 24 + 4 * (frame - 3)), abs=1e-3)
    found = list(looked.matches(3, point))
    assert sum(weight for _, _, weight in found) == pytest.approx(1, abs=1e-4)
    for frame, place, _ in found:
        assert max(abs(a - b) for a, b in zip(place, anchors[frame])) <= window / 2
    flow, correction = looked.fields(3)
    assert torch.allclose(flow, torch.tensor([2.0, 4.0]).expand_as(flow), atol=1e-3)
    edge = 16 // looked.seen.scale
    inside = correction[edge:-edge, edge:-edge]
    assert inside.abs().max() <= window / 2 + 1e-3
    drawn = picture(video, looked, 3, [point])
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0


def test_colours_tell_direction_and_length() -> None:
    field = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [1.0, 0.0]]])
    none, right, left, half = colours(field, 2.0)[0].tolist()
    assert none == [255, 255, 255]
    assert right == [255, 0, 0]
    assert left == [0, 255, 255]
    assert half == [255, 128, 128]
    assert wheel(9)[4, 8].tolist() == [255, 0, 0]


def test_command_writes_a_picture_and_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = stan.models.build("unet_tiny", flow="zero")
    model.trained = Trained("gaussian", (30.0, 30.0), 1)
    stan.models.save(model, tmp_path / "model.ckpt")
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(moving_picture(0, 6, 34, 50)):
        assert cv2.imwrite(str(folder / f"{t:05d}.png"), frame)
    words = [
        "visualize",
        str(tmp_path / "model.ckpt"),
        str(folder),
        "--frames",
        "5",
        "--output",
        str(tmp_path / "out"),
    ]
    assert stan.cli.main([*words, "--point", "20,10", "--add-noise", "20"]) == 0
    drawn = cv2.imread(str(tmp_path / "out/attention.png"))
    assert drawn is not None
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100
    with av.open(str(tmp_path / "out/attention.mp4")) as video:
        assert len(list(video.decode(video=0))) == 5
    for more, part in (
        (["--point", "99,1"], "--point 99,1"),
        (["--frame", "7"], "--frame 7"),
        (["--block", "x"], "0.0"),
    ):
        assert stan.cli.main([*words, "--sigma", "20", *more]) == 2
        assert part in capsys.readouterr().err
