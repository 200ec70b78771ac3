from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import pytest
import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.errors import StanError
from stan.inference.scenes import find_scenes, mark_scenes, residual, thumbnail


def world(seed: int, size: int = 240) -> Tensor:
    """A smooth random picture, larger than a frame."""
    coarse = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0].clamp(0, 1)


def pan(seed: int, length: int, speed: float) -> Tensor:
    """A camera that moves over a world, `(T, 3, 72, 128)`."""
    picture = world(seed)
    return torch.stack(
        [picture[:, round(20 + speed * t / 3) :, round(5 + speed * t) :][:, :72, :128] for t in range(length)]
    )


def noisy(video: Tensor, sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return video + torch.randn(video.shape, generator=generator) * sigma / 255


@pytest.mark.parametrize("sigma", [0, 30, 60])
@pytest.mark.parametrize("speed", [0, 1, 8])
def test_cuts_between_moving_scenes(speed: float, sigma: float) -> None:
    video = noisy(torch.cat([pan(1, 9, speed), pan(2, 7, speed), pan(3, 10, speed)]), sigma)
    assert find_scenes(video) == [9, 16]


def test_values_may_be_bytes() -> None:
    video = torch.cat([pan(1, 5, 1), pan(2, 5, 1)])
    assert find_scenes((video * 255).byte()) == [5]


def test_a_flash_is_no_cut() -> None:
    video = pan(1, 12, 2)
    video[6] = 1 - (1 - video[6]) * 0.1
    assert find_scenes(video) == []


def test_repeated_frames_are_no_cuts() -> None:
    """Of 24 frames a second shown as 48, every other pair moves and every other does not."""
    assert find_scenes(pan(1, 12, 8).repeat_interleave(2, 0)) == []


def test_a_fade_is_no_cut() -> None:
    fade = torch.linspace(1, 0, 20)[:, None, None, None]
    assert find_scenes(pan(1, 20, 1) * fade + pan(2, 20, 1) * (1 - fade)) == []


def test_a_cut_at_either_end_and_in_two_frames() -> None:
    a, b = pan(1, 8, 1), pan(2, 8, 1)
    assert find_scenes(torch.cat([a[:1], b])) == [1]
    assert find_scenes(torch.cat([a, b[:1]])) == [8]
    assert find_scenes(torch.stack([a[0], b[0]])) == [1]
    assert find_scenes(a[:2]) == []
    assert find_scenes(a[:1]) == []
    assert find_scenes(a[:0]) == []


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (8, 2000), (37, 65)])
def test_any_size(size: tuple[int, int]) -> None:
    dark, bright = torch.full((4, 3, *size), 0.1), torch.full((4, 3, *size), 0.9)
    assert find_scenes(torch.cat([dark, bright])) == [4]


def test_one_frame_of_look_ahead() -> None:
    taken = []

    def frames() -> Iterator[Frame]:
        for t, rgb in enumerate(pan(1, 10, 1)):
            taken.append(t)
            yield Frame(rgb)

    for t, frame in enumerate(mark_scenes(frames())):
        assert frame.begins_scene == (t == 0)
        assert len(taken) <= t + 2


def test_known_scenes() -> None:
    video = [Frame(rgb) for rgb in pan(1, 6, 1)]
    marked = mark_scenes(video, [2, 4, 99])
    assert [frame.begins_scene for frame in marked] == [True, False, True, False, True, False]
    assert [frame.begins_scene for frame in mark_scenes(video, False)] == [True] + [False] * 5
    with pytest.raises(StanError, match="-3"):
        mark_scenes(video, [-3])


def test_residual_follows_motion() -> None:
    """Block matching leaves little of a shift of five thumbnail pixels, and much of another picture."""
    a, b = pan(1, 2, 10)
    assert (thumbnail(a) - thumbnail(b)).abs().mean() > 4 * residual(thumbnail(a), thumbnail(b))
    assert residual(thumbnail(a), thumbnail(pan(2, 1, 0)[0])) > 10
    assert residual(thumbnail(a), thumbnail(a)) == 0


@pytest.mark.parametrize("sigma", [0, 60])
def test_real_cuts_are_found(shared_data: Path, sigma: float) -> None:
    """`bikes.mp4` cuts after frames 29, 75, 136, 186 and 241."""
    with av.open(str(shared_data / "videos" / "bikes.mp4")) as file:
        video = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)])
    frames = video.permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(0)
    stream = (frame / 255 + torch.randn(frame.shape, generator=generator) * sigma / 255 for frame in frames)
    assert find_scenes(stream if sigma else frames) == [30, 76, 137, 187, 242]


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0, 30])
def test_no_false_alarm_on_davis(shared_data: Path, sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = {}
    for folder in sorted((shared_data / "DAVIS" / "JPEGImages" / "480p").iterdir()):
        paths = sorted(folder.iterdir())
        pictures = (torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1) / 255 for path in paths)
        stream = (p + torch.randn(p.shape, generator=generator) * sigma / 255 for p in pictures)
        alarms[folder.name] = find_scenes(stream)
    assert len(alarms) >= 25
    assert not any(alarms.values()), alarms
