"""The flow cache: what is read back is what would be computed, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stan.flow
from stan.errors import ConfigError, DataError
from stan.flow import CachedFlow, FlowPair, OffsetSource
from stan.flow.classical import DISFlow


class Counting(OffsetSource):
    """Flow that tells how often, and for how many clips, it was computed."""

    name = "counting"

    def __init__(self, *, gain: float = 1.0, threads: int = 1) -> None:
        super().__init__(gain=gain, threads=threads)
        self.gain = gain
        self.computed = 0
        self.release = "1"

    @property
    def version(self) -> str:
        return self.release

    def estimate(self, video: Tensor) -> FlowPair:
        self.computed += len(video)
        flow = video[:, :, :2].float() * self.gain
        return FlowPair(flow, -flow)


def clips(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 3, 6, 7, generator=torch.Generator().manual_seed(seed))


def test_second_time_is_read_and_equal(tmp_path: Path) -> None:
    source, video = Counting(), clips()
    first = CachedFlow(source, tmp_path)(video)
    second = CachedFlow(source, tmp_path)(video)
    assert source.computed == 2
    assert torch.equal(first.forward, second.forward)
    assert torch.equal(first.backward, second.backward)
    assert torch.equal(second.forward, source(video).forward)


def test_clips_are_kept_one_by_one(tmp_path: Path) -> None:
    """Only the clips of a batch that are missing are computed, whatever the batch's order."""
    source, video = Counting(), clips(3)
    cache = CachedFlow(source, tmp_path)
    cache(video[:1])
    flow = cache(video.flip(0))
    assert source.computed == 3
    assert torch.equal(flow.forward, video.flip(0)[:, :, :2])


@pytest.mark.parametrize("change", ["frames", "settings", "version", "name", "dtype", "size"])
def test_anything_else_is_another_entry(tmp_path: Path, change: str) -> None:
    source, video = Counting(), clips(1)
    CachedFlow(source, tmp_path)(video)
    if change == "frames":
        video = video.clone()
        video[0, 2, 2, 5, 6] += 2**-20
    elif change == "settings":
        source = Counting(gain=2.0)
    elif change == "version":
        source.release = "2"
    elif change == "name":
        source = type("Other", (Counting,), {"name": "other"})()
    elif change == "dtype":
        video = video.double()
    elif change == "size":
        video = video.reshape(1, 3, 3, 7, 6)
    before = source.computed
    cache = CachedFlow(source, tmp_path)
    flow = cache(video)
    assert source.computed == before + 1
    assert torch.equal(flow.forward, video[:, :, :2].float() * source.gain)
    assert cache.size().entries == 2


def test_threads_do_not_matter_to_the_entry(tmp_path: Path) -> None:
    CachedFlow(Counting(threads=1), tmp_path)(clips())
    other = Counting(threads=2)
    CachedFlow(other, tmp_path)(clips())
    assert other.computed == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "header", "longer"])
def test_damaged_entries_are_computed_again(tmp_path: Path, damage: str) -> None:
    source, video = Counting(), clips(1)
    cache = CachedFlow(source, tmp_path)
    cache(video)
    (path,) = tmp_path.rglob("*.flow")
    whole = path.read_bytes()
    broken = bytearray(whole)
    if damage == "bit":
        broken[-3] ^= 4
    if damage == "header":
        broken[0] ^= 1
    path.write_bytes({"cut": whole[:-8], "empty": b"", "longer": whole + b"0000"}.get(damage, bytes(broken)))
    assert torch.equal(cache(video).forward, video[:, :, :2])
    assert source.computed == 2
    assert path.read_bytes() == whole


def test_size_report_and_clear(tmp_path: Path) -> None:
    cache = CachedFlow(Counting(), tmp_path / "flow")
    assert cache.size() == (0, 0)
    cache(clips())
    size = cache.size()
    assert size.entries == 2
    assert size.bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert "2 clips" in cache.report()
    cache.clear()
    assert cache.size() == (0, 0)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        CachedFlow(Counting(), tmp_path)(clips(1))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_real_source_round_trip(tmp_path: Path) -> None:
    video = torch.rand(1, 3, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    source = stan.flow.build("dis")
    assert isinstance(source, DISFlow)
    cache = CachedFlow(source, tmp_path)
    truth = source(video)
    for _ in range(2):
        flow = cache(video)
        assert torch.equal(flow.forward, truth.forward)
        assert torch.equal(flow.backward, truth.backward)


def test_a_source_that_learns_is_refused(tmp_path: Path) -> None:
    learning = type("Learning", (Counting,), {"trainable": True})()
    with pytest.raises(ConfigError, match="learns"):
        CachedFlow(learning, tmp_path)
