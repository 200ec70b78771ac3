"""Training samples: pure functions of (seed, n), true crops of their clip, drawn with the stated chances."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stan.data import StepSampler, TrainingClips, cached, camera, open_clips
from stan.data.clips import Clip, TensorClip
from stan.data.sampling import MixedClips, PannedStills
from stan.errors import ConfigError, DataError
from stan.reflection import reflect
from tests.data.conftest import MakeDavis, marked_clip

numbers = st.integers(0, 2**62)


def marked_clips() -> list[Clip]:
    return [
        marked_clip("long", 12, 40, 60, mark=0),
        marked_clip("short", 3, 33, 34, mark=80),
        marked_clip("single", 1, 50, 32, mark=160),
    ]


def dataset(seed: int = 0, frames: int = 5, crop: int = 16, **options: bool) -> TrainingClips:
    return TrainingClips(marked_clips(), frames=frames, crop=crop, seed=seed, **options)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(numbers, numbers)
def test_a_sample_depends_on_seed_and_number_alone(seed: int, n: int) -> None:
    data = dataset(seed)
    first = data[n]
    data[n + 1]
    torch.rand(3)
    assert torch.equal(data[n], first)
    assert torch.equal(dataset(seed)[n], first)
    assert first.dtype == torch.uint8
    assert first.shape == (5, 3, 16, 16)
    assert first.is_contiguous()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(n=numbers, frames=st.integers(1, 20), crop=st.integers(1, 32))
def test_a_sample_is_a_crop_of_its_clip(n: int, frames: int, crop: int) -> None:
    """Values tell their place: undo flips and turns by them, and compare with the clip itself."""
    clips = marked_clips()
    sample = TrainingClips(clips, frames=frames, crop=crop, seed=7)[n]
    clip = clips[int(sample[0, 0, 0, 0]) // 80]
    mark = 80 * clips.index(clip)
    t, y, x = sample.long().unbind(dim=1)  # (T, crop, crop)
    times = t[:, 0, 0] - mark
    assert torch.equal(t, (times + mark)[:, None, None].expand_as(t))
    assert all(0 <= time < len(clip) for time in times)
    top, left = y.min(), x.min()
    place = torch.stack([y - top, x - left], dim=1)
    expected = clip.read()[times][:, :, top : top + crop, left : left + crop]
    straight = torch.empty_like(sample)
    for i in range(frames):
        straight[i, :, place[i, 0], place[i, 1]] = sample[i]
    assert torch.equal(straight, expected)
    steps = times.diff()
    if len(clip) >= frames:
        assert set(steps.tolist()) <= {1} or set(steps.tolist()) <= {-1}
    elif len(clip) > 1:  # back and forth: every step is one frame, and it turns at the ends only
        assert set(steps.abs().tolist()) <= {1}
        turns = torch.nonzero(steps[1:] != steps[:-1]).flatten() + 1
        assert all(int(times[i]) in (0, len(clip) - 1) for i in turns)


def test_all_sixteen_views_occur_evenly() -> None:
    clip = marked_clip("square", 2, 8, 8)
    data = TrainingClips([clip], frames=2, crop=8, seed=1)
    frames = clip.read()
    views: dict[bytes, int] = {}
    for backward in (False, True):
        for mirrored in (False, True):
            for turns in range(4):
                view = frames.flip(0) if backward else frames
                view = view.flip(-1) if mirrored else view
                views[view.rot90(turns, (-2, -1)).contiguous().numpy().tobytes()] = 0
    assert len(views) == 16
    for n in range(1600):
        views[data[n].numpy().tobytes()] += 1
    assert max(abs(count - 100) for count in views.values()) < 5 * np.sqrt(100)


def test_options_switch_one_thing_off_and_leave_the_rest() -> None:
    plain = dataset(flip=False, turn=False, reverse=False)
    for n in range(50):
        straight = plain[n]
        assert (straight[0, 1, 1:, 0] > straight[0, 1, :-1, 0]).all()
        assert (straight[0, 2, 0, 1:] > straight[0, 2, 0, :-1]).all()
        reversed_only = dataset(flip=False, turn=False)[n]
        assert torch.equal(reversed_only, straight) or torch.equal(reversed_only, straight.flip(0))


def test_sequences_come_in_proportion_to_their_frames_and_all_places_occur() -> None:
    data = dataset(frames=3, crop=30)
    marks, places, starts = [], set(), set()
    for n in range(3200):
        sample = data[n]
        mark = int(sample[0, 0].min()) // 80
        marks.append(mark)
        if mark == 0:
            places.add((int(sample[:, 1].min()), int(sample[:, 2].min())))
            starts.add(int(sample[:, 0].min()))
    counts = np.bincount(marks, minlength=3)
    assert np.all(np.abs(counts - 3200 * np.array([12, 3, 1]) / 16) < 5 * np.sqrt(200))
    assert starts == set(range(10))
    assert {top for top, _ in places} == set(range(11))
    assert {left for _, left in places} == set(range(31))


@pytest.mark.parametrize(
    ("length", "expected"), [(1, [0, 0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0, 1]), (3, [0, 1, 2, 1, 0, 1])]
)
def test_reflection_in_time(length: int, expected: list[int]) -> None:
    assert reflect(range(6), length) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_change_the_batches(make_davis: MakeDavis) -> None:
    """The same batches from no, one and four workers, over mapped clips as in training."""
    root = make_davis({"a": 6, "b": 3})
    data = TrainingClips(cached(open_clips("davis", root)), frames=4, crop=32, seed=3)
    runs = [
        list(DataLoader(data, batch_sampler=StepSampler(3, steps=7), num_workers=workers))
        for workers in (0, 1, 4)
    ]
    assert [batch.shape for batch in runs[0]] == [(3, 4, 3, 32, 32)] * 7
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run))


@settings(deadline=None, derandomize=True)
@given(batch=st.integers(1, 5), world=st.integers(1, 4), steps=st.integers(0, 9), data=st.data())
def test_step_sampler_covers_every_number_once(
    batch: int, world: int, steps: int, data: st.DataObject
) -> None:
    samplers = [StepSampler(batch, steps=steps, rank=rank, world_size=world) for rank in range(world)]
    assert [len(sampler) for sampler in samplers] == [steps] * world
    together = [n for batches in zip(*samplers) for numbers in batches for n in numbers]
    assert together == list(range(steps * world * batch))
    start = data.draw(st.integers(0, steps))
    rank = data.draw(st.integers(0, world - 1))
    resumed = StepSampler(batch, steps=steps, rank=rank, world_size=world, start_step=start)
    assert list(resumed) == list(samplers[rank])[start:]
    assert len(resumed) == steps - start


def test_crop_larger_than_a_frame_names_the_sequences() -> None:
    with pytest.raises(DataError, match=r"data\.crop=36 .* short \(34x33\), single \(32x50\): .* at most 32"):
        dataset(crop=36)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"crop": 0}])
def test_nothing_to_cut(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        dataset(**wrong)


def test_no_clips_and_negative_numbers() -> None:
    with pytest.raises(DataError, match="no clips"):
        TrainingClips([], frames=1, crop=1, seed=0)
    with pytest.raises(IndexError, match="from 0"):
        dataset()[-1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0, "steps": 3},
        {"batch_size": 1, "steps": 3, "rank": 2, "world_size": 2},
        {"batch_size": 1, "steps": 3, "start_step": 4},
        {"batch_size": 1, "steps": 3, "start_step": -1},
    ],
)
def test_bad_steps(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        StepSampler(**wrong)


def test_real_sequences_of_several_sizes(shared_data: Path) -> None:
    """bike-packing is 910x480, the others 854x480; judo has 16 frames, fewer than asked."""
    clips = [c for c in open_clips("davis", shared_data / "DAVIS") if c.name in ("bike-packing", "judo")]
    data = TrainingClips(clips, frames=18, crop=480, seed=0)
    for n in range(2):
        assert data[n].shape == (18, 3, 480, 480)


def test_a_panned_still_is_one_frame_under_a_slow_camera() -> None:
    """Its motion is found again by phase correlation, slow and steady; the same number gives the same sample."""
    rng = np.random.default_rng(3)
    picture = cv2.GaussianBlur(rng.uniform(0, 255, (200, 240, 3)).astype(np.float32), (0, 0), 2)
    picture = (picture - picture.min()) / np.ptp(picture) * 255
    clip = TensorClip(
        "still", torch.from_numpy(picture.astype(np.uint8)).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
    )
    data = PannedStills([clip], frames=5, crop=96, seed=1, flip=False, turn=False, reverse=False)
    assert torch.equal(data[4], data[4])
    window = cv2.createHanningWindow((96, 96), cv2.CV_32F)
    fast = 0
    for n in range(12):
        grey = data[n].float().mean(1).numpy()  # (T, crop, crop)
        moves = [cv2.phaseCorrelate(a, b, window)[0] for a, b in pairwise(grey)]
        assert all(np.hypot(*move) < camera.FASTEST + 1.5 for move in moves)
        fast += np.hypot(*np.mean(moves, axis=0)) > 0.2
    assert fast >= 4  # and it does move


def test_a_mixture_draws_its_parts_by_share() -> None:
    def part(mark: int) -> TrainingClips:
        return TrainingClips([marked_clip("one", 8, 32, 32, mark=mark)], frames=2, crop=8, seed=5)

    mixed = MixedClips([(part(0), 3.0), (part(100), 1.0)], seed=9)
    marks = [int(mixed[n][:, 0].min()) >= 100 for n in range(400)]
    assert 0.18 < np.mean(marks) < 0.32
    n = marks.index(True)
    assert torch.equal(mixed[n], part(100)[n])


@pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf")])
def test_a_share_must_be_a_number_above_zero(share: float) -> None:
    part = TrainingClips(marked_clips(), frames=2, crop=8, seed=5)
    with pytest.raises(ConfigError, match="share"):
        MixedClips([(part, share)], seed=0)
