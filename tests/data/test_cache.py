"""The decoded cache: the same frames, never stale, never half-written, shared between processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stan.data import MappedClip, cached, open_clips
from stan.data.cache import Cache, cache_folders, shrink
from stan.data.clips import Clip, FrameClip
from stan.errors import ConfigError, DataError
from tests.data.conftest import MakeDavis, marked_clip, picture, save


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*{suffix}"))


def test_the_same_frames_from_one_mapped_file(make_davis: MakeDavis) -> None:
    root = make_davis({"bear": 5, "dog": 3})
    clips = open_clips("davis", root)
    mapped = cached(clips)
    for clip, copy in zip(clips, mapped):
        assert isinstance(copy, MappedClip)
        assert (copy.name, len(copy), copy.size, copy.fps) == (clip.name, len(clip), clip.size, clip.fps)
        assert torch.equal(copy.read(), clip.read())
        assert torch.equal(copy.read(1, 3), clip.read(1, 3))
        assert torch.equal(copy.crop(0, 2, 3, 4, 20, 30), clip.crop(0, 2, 3, 4, 20, 30))
        with pytest.raises(IndexError):
            copy.crop(0, 2, 40, 0, 20, 30)
    assert len(files(root / ".stan-cache", ".npy")) == 2


def test_what_is_read_may_be_changed_without_harm(make_davis: MakeDavis) -> None:
    (mapped,) = cached(open_clips("davis", make_davis({"dog": 2})))
    before = mapped.read().clone()
    mapped.read().fill_(0)
    mapped.crop(0, 1, 0, 0, 8, 8).fill_(0)
    assert torch.equal(mapped.read(), before)


def test_workers_map_instead_of_copying(make_davis: MakeDavis) -> None:
    from stan.data.cache import _map

    (mapped,) = cached(open_clips("davis", make_davis({"dog": 4})))
    assert isinstance(mapped, MappedClip)
    array = _map(mapped.path, mapped.path.stat().st_ino, mapped.shape)
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    assert len(pickle.dumps(mapped)) < 1000
    assert torch.equal(pickle.loads(pickle.dumps(mapped)).read(), mapped.read())


def test_the_second_time_nothing_is_decoded(make_davis: MakeDavis, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_davis({"dog": 2})
    cached(open_clips("davis", root))
    monkeypatch.setattr(FrameClip, "decode", lambda self: pytest.fail("decoded again"))
    cached(open_clips("davis", root))
    with pytest.raises(pytest.fail.Exception):
        cached(open_clips("davis", root), downscale=2)


@pytest.mark.parametrize("change", ["touch", "content", "added", "removed"])
def test_a_changed_source_is_noticed(change: str, make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 4})
    cached(open_clips("davis", root))
    frames = root / "JPEGImages/480p/dog"
    if change == "touch":
        os.utime(frames / "00001.jpg", ns=(1, 1))
    elif change == "content":
        save(frames / "00001.jpg", picture(999))
    elif change == "added":
        save(frames / "00004.jpg", picture(999))
    else:
        (frames / "00003.jpg").unlink()
    (clip,) = open_clips("davis", root)
    assert Cache(clip).find() is None
    (mapped,) = cached([clip])
    assert torch.equal(mapped.read(), clip.read())
    assert len(files(root / ".stan-cache", ".npy")) == 1, "the outdated file should be gone"


@pytest.mark.parametrize("harm", ["cut", "manifest", "gone"])
def test_a_harmed_cache_is_made_anew(harm: str, make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 3})
    (mapped,) = cached(open_clips("davis", root))
    expected = mapped.read()
    (payload,) = files(root / ".stan-cache", ".npy")
    if harm == "cut":
        payload.write_bytes(payload.read_bytes()[:-100])
    elif harm == "gone":
        payload.unlink()
    else:
        payload.with_suffix(".json").write_text("{")
    (again,) = cached(open_clips("davis", root))
    assert torch.equal(again.read(), expected)


def test_the_checksum_finds_a_changed_byte(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 3})
    clips = open_clips("davis", root)
    cached(clips)
    cache = Cache(clips[0])
    assert cache.find(verify=True) is not None
    (payload,) = files(root / ".stan-cache", ".npy")
    data = bytearray(payload.read_bytes())
    data[-7] ^= 1
    payload.write_bytes(data)
    assert cache.find() is not None
    assert cache.find(verify=True) is None


def test_manifest_says_what_the_file_was_made_from(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 3})
    (clip,) = open_clips("davis", root)
    cached([clip])
    (manifest,) = (json.loads(path.read_text()) for path in files(root / ".stan-cache", ".json"))
    frames = root / "JPEGImages/480p/dog"
    assert manifest["source"] == str(frames.resolve())
    assert manifest["shape"] == [3, 3, 48, 64]
    assert [row[0] for row in manifest["files"]] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert [row[1] for row in manifest["files"]] == [path.stat().st_size for path in sorted(frames.iterdir())]
    (payload,) = files(root / ".stan-cache", ".npy")
    assert np.array_equal(np.load(payload), clip.read().numpy()), "any numpy program can read it"


@pytest.mark.parametrize("factor", [2, 3])
def test_downscaling_averages_squares(factor: int, make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 2}, size=(49, 65))
    clips = open_clips("davis", root)
    (small,) = cached(clips, downscale=factor)
    height, width = 49 // factor, 65 // factor
    assert small.size == (height, width)
    squares = clips[0].read()[:, :, : height * factor, : width * factor].double()
    squares = squares.unfold(2, factor, factor).unfold(3, factor, factor).mean(dim=(-2, -1))
    assert (small.read() - squares).abs().max() <= 0.5
    with pytest.raises(ConfigError, match="downscale=0"):
        cached(clips, downscale=0)
    with pytest.raises(DataError, match="leaves nothing"):
        cached(clips, downscale=60)


def test_clips_in_memory_stay_there() -> None:
    clip = marked_clip("m", 3, 8, 10)
    assert cached([clip])[0] is clip
    (small,) = cached([clip], downscale=2)
    last = clip.read()[2].permute(1, 2, 0).numpy()
    assert np.array_equal(small.read()[2].permute(1, 2, 0).numpy(), shrink(last, 2))


def test_a_damaged_frame_stops_the_build_and_leaves_nothing(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 9})
    path = root / "JPEGImages/480p/dog/00007.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"00007\.jpg is damaged"):
        cached(open_clips("davis", root))
    assert {p.suffix for p in (root / ".stan-cache").iterdir()} <= {".lock"}


def _killed(root: Path) -> None:
    frame = FrameClip.frame

    def deadly(self: FrameClip, index: int, *, strict: bool = False) -> np.ndarray:
        if index == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return frame(self, index, strict=strict)

    FrameClip.frame = deadly  # type: ignore[method-assign]
    cached(open_clips("davis", root))


def test_a_killed_build_leaves_nothing_under_its_final_name(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 40})
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(root,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = {path.suffix for path in (root / ".stan-cache").iterdir()}
    assert left <= {".tmp", ".lock"}
    clips = open_clips("davis", root)
    assert Cache(clips[0]).find() is None
    assert torch.equal(cached(clips)[0].read(), clips[0].read())
    assert not files(root / ".stan-cache", ".tmp"), "the killed process's file should be gone"


def _build(root: Path, log: Path, barrier: multiprocessing.synchronize.Barrier) -> None:
    torch.set_num_threads(1)
    decode = FrameClip.decode

    def noted(self: FrameClip) -> object:
        with log.open("a") as file:
            file.write(f"{self.name}\n")
        return decode(self)

    FrameClip.decode = noted  # type: ignore[method-assign]
    barrier.wait()
    for clip in cached(open_clips("davis", root), progress=False):
        assert clip.read().float().std() > 1


def test_processes_share_the_work(make_davis: MakeDavis, tmp_path: Path) -> None:
    root = make_davis({"bear": 6, "cows": 6, "dog": 6})
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    log = tmp_path / "log"
    workers = [context.Process(target=_build, args=(root, log, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(log.read_text().split()) == ["bear", "cows", "dog"], "each sequence decoded by one process"


def test_a_full_disk_is_an_error_and_leaves_nothing(
    make_davis: MakeDavis, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_davis({"dog": 3})
    clips = open_clips("davis", root)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            cached(clips)
    assert {p.suffix for p in (root / ".stan-cache").iterdir()} <= {".lock"}
    usage = shutil.disk_usage(root)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(DataError, match=r"needs 0\.00 GB in .*data\.cache"):
            cached(clips)
    assert len(cached(clips)) == 1


def test_where_the_cache_lives(make_davis: MakeDavis, tmp_path: Path, own_cache_home: Path) -> None:
    root = make_davis({"dog": 2})
    assert cache_folders(root)[0] == root / ".stan-cache"
    assert cache_folders(root, tmp_path / "mine") == [tmp_path / "mine"]
    cached(open_clips("davis", root), tmp_path / "mine")
    assert files(tmp_path / "mine", ".npy")
    assert not (root / ".stan-cache").exists()
    root.chmod(0o555)
    try:
        user = cache_folders(root)[0]
        assert user.parent == own_cache_home / "stan"
        assert user.name.startswith("DAVIS-")
        (mapped,) = cached(open_clips("davis", root))
        assert isinstance(mapped, MappedClip)
        assert mapped.path.parent == user
        assert not (root / ".stan-cache").exists()
    finally:
        root.chmod(0o755)


def test_a_cache_beside_read_only_data_is_used(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 2})
    cached(open_clips("davis", root))
    (root / ".stan-cache").chmod(0o555)
    root.chmod(0o555)
    try:
        (mapped,) = cached(open_clips("davis", root))
        assert isinstance(mapped, MappedClip)
        assert mapped.path.parent == root / ".stan-cache"
    finally:
        root.chmod(0o755)
        (root / ".stan-cache").chmod(0o755)


def test_data_sets_with_equal_names_share_a_folder_in_peace(make_davis: MakeDavis, tmp_path: Path) -> None:
    """`tractor` is in DAVIS and in Set8."""
    one = open_clips("davis", make_davis({"tractor": 2}, name="one"))
    two = open_clips("davis", make_davis({"filler": 1, "tractor": 3}, name="two"))[1:]
    for _ in range(2):
        assert len(cached(one, tmp_path / "c")[0]) == 2
        assert len(cached(two, tmp_path / "c")[0]) == 3
    assert len(files(tmp_path / "c", ".npy")) == 2


def test_videos_are_cached_too(shared_data: Path, tmp_path: Path) -> None:
    clips = open_clips("video", shared_data / "videos/carphone.mp4")
    (mapped,) = cached(clips, tmp_path)
    assert isinstance(mapped, MappedClip)
    assert (mapped.fps, len(mapped)) == (clips[0].fps, 120)
    assert torch.equal(mapped.read(100, 104), clips[0].read(100, 104))


def test_real_sequences(shared_data: Path, tmp_path: Path) -> None:
    """All frames of a real sequence pass the check for damage, and come back as OpenCV reads them."""
    clips: list[Clip] = [c for c in open_clips("davis", shared_data / "DAVIS") if c.name in ("judo", "bear")]
    mapped = {clip.name: clip for clip in cached(clips, tmp_path)}
    path = shared_data / "DAVIS/JPEGImages/480p/judo/00009.jpg"
    expected = cv2.imread(str(path))[..., ::-1]
    assert np.array_equal(mapped["judo"].read(9, 10)[0].permute(1, 2, 0).numpy(), expected)
    assert len(mapped["bear"]) == 82
