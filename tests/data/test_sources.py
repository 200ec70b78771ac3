"""Data sets in their layouts, and what is said when they are laid out differently."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import io

from stan.data import FrameClip, open_clips
from stan.data.frames import read_frame
from stan.data.sources import SET8, read_list
from stan.errors import ConfigError, DataError, VideoError
from tests.data.conftest import MakeDavis, marked_clip, picture, save


def names(clips: list) -> list[str]:
    return [clip.name for clip in clips]


def folder(root: Path, frames: int = 2, seed: int = 0, suffix: str = ".png") -> Path:
    for i in range(frames):
        save(root / f"{i:05d}{suffix}", picture(seed + i))
    return root


def test_davis_splits(make_davis: MakeDavis, tmp_path: Path) -> None:
    root = make_davis({"bear": 2, "cows": 3, "dog": 4}, {"train": ["dog", "bear"], "val": ["cows"]})
    assert names(open_clips("davis", root)) == ["bear", "cows", "dog"]
    assert names(open_clips("davis", str(root), "train")) == ["dog", "bear"]
    assert names(open_clips("davis", root, "trainval")) == ["dog", "bear", "cows"]
    (root / "ImageSets/2017/mine.txt").write_text("# my own\n\ncows\r\ndog\n")
    assert names(open_clips("davis", root, "mine")) == ["cows", "dog"]
    assert names(open_clips("davis", root, "mine.txt")) == ["cows", "dog"]
    (tmp_path / "elsewhere.txt").write_text("bear\n")
    assert names(open_clips("davis", root, str(tmp_path / "elsewhere.txt"))) == ["bear"]
    clip = open_clips("davis", root, "val")[0]
    assert (len(clip), clip.size, clip.fps) == (3, (48, 64), None)


def test_frames_are_rgb_as_another_library_reads_them(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 3})
    (clip,) = open_clips("davis", root)
    expected = np.stack([io.imread(root / f"JPEGImages/480p/dog/{i:05d}.jpg") for i in range(3)])
    frames = clip.read()
    assert frames.dtype == torch.uint8
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected)
    assert torch.equal(clip.read(1, 3), frames[1:])
    assert torch.equal(clip.read(2), frames[2:])
    assert clip.read(1, 1).shape == (0, 3, 48, 64)
    assert torch.equal(clip.crop(1, 3, 5, 7, 11, 13), frames[1:3, :, 5:16, 7:20])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (3, 2)])
def test_frames_outside_a_clip(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="'m' of 3 frames"):
        marked_clip("m", 3, 8, 9).read(start, stop)


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 6, 4, 4), (5, 0, 4, 4), (0, 0, 9, 1), (2, 2, -1, 3)])
def test_crops_outside_a_clip(box: tuple[int, int, int, int], make_davis: MakeDavis) -> None:
    with pytest.raises(IndexError, match="9x8"):
        marked_clip("m", 3, 8, 9).crop(0, 1, *box)


def test_real_davis(shared_data: Path) -> None:
    root = shared_data / "DAVIS"
    val = {clip.name: clip for clip in open_clips("davis", root, "val")}
    assert {name: len(clip) for name, clip in val.items()} == {"dog": 60, "drift-chicane": 52, "judo": 16}
    assert val["dog"].size == (480, 854)
    expected = io.imread(root / "JPEGImages/480p/dog/00017.jpg")
    assert np.array_equal(val["dog"].read(17, 18)[0].permute(1, 2, 0).numpy(), expected)
    assert len(open_clips("davis", root, "trainval")) == 25
    assert len(open_clips("davis", root, "train-recompressed")) == 16


def test_set8_by_the_names_of_the_protocol(tmp_path: Path) -> None:
    for i, name in enumerate(SET8):
        folder(
            tmp_path / {"touchdown": "touchdown_pass", "park_joy": "Park-Joy"}.get(name, name), seed=10 * i
        )
    clips = open_clips("set8", tmp_path)
    assert names(clips) == list(SET8)
    assert [len(clip) for clip in clips] == [2] * 8
    (tmp_path / "some.txt").write_text("rafting\ntractor\n")
    assert names(open_clips("set8", tmp_path, "some")) == ["rafting", "tractor"]


def test_folder_of_frames_of_folders_and_of_videos(tmp_path: Path) -> None:
    folder(tmp_path / "b", 3, suffix=".jpg")
    folder(tmp_path / "a", 2)
    (tmp_path / ".stan-cache").mkdir()
    (tmp_path / "notes").mkdir()
    assert [(c.name, len(c)) for c in open_clips("folder", tmp_path)] == [("a", 2), ("b", 3)]
    assert [(c.name, len(c)) for c in open_clips("folder", tmp_path / "b")] == [("b", 3)]
    (tmp_path / "val.txt").write_text("b\n")
    assert names(open_clips("folder", tmp_path, "val")) == ["b"]


def test_frames_sort_as_people_count(tmp_path: Path) -> None:
    for i in (10, 9, 1, 100):
        save(tmp_path / f"frame_{i}.png", np.full((4, 5, 3), i, np.uint8))
    (clip,) = open_clips("folder", tmp_path)
    assert clip.read()[:, 0, 0, 0].tolist() == [1, 9, 10, 100]


def test_videos(shared_data: Path) -> None:
    (clip,) = open_clips("video", shared_data / "videos/carphone.mp4")
    assert (clip.name, len(clip), clip.size) == ("carphone", 120, (144, 176))
    assert clip.fps == pytest.approx(30000 / 1001)
    assert torch.equal(clip.read(50, 53), clip.read()[50:53])
    for kind in ("video", "folder"):
        assert names(open_clips(kind, shared_data / "videos")) == ["bikes", "blocks_720p", "carphone"]


@pytest.mark.parametrize(
    ("dtype", "channels", "value", "expected"),
    [
        (np.uint8, 1, 77, 77),  # grey
        (np.uint8, 4, 200, 200),  # with alpha
        (np.uint16, 3, 65535, 255),
        (np.uint16, 3, 257 * 9 + 128, 9),
        (np.uint16, 3, 257 * 9 + 129, 10),
        (np.uint16, 1, 0, 0),
    ],
)
def test_other_sorts_of_png(tmp_path: Path, dtype: type, channels: int, value: int, expected: int) -> None:
    shape = (4, 5) if channels == 1 else (4, 5, channels)
    cv2.imwrite(str(tmp_path / "0.png"), np.full(shape, value, dtype))
    frame = read_frame(tmp_path / "0.png")
    assert frame.shape == (4, 5, 3)
    assert frame.dtype == np.uint8
    assert (frame == expected).all()


@pytest.mark.parametrize("peak", [1, 100, 255, 1023, 65535])
def test_the_highest_sample_of_a_ppm_is_white(peak: int, tmp_path: Path) -> None:
    samples = np.array([[[0, peak, peak // 2]]], ">u2" if peak > 255 else np.uint8)
    (tmp_path / "0.ppm").write_bytes(f"P6\n1 1\n{peak}\n".encode() + samples.tobytes())
    assert np.abs(read_frame(tmp_path / "0.ppm")[0, 0] - samples[0, 0] / peak * 255).max() <= 0.5


def test_a_frame_of_several_pictures_is_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(seed)) for seed in (0, 1)]
    pages[0].save(tmp_path / "0.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(
        DataError, match=r"^frame .*0\.tif holds 2 pictures instead of one: split it first \(tiff"
    ):
        read_frame(tmp_path / "0.tif")


LAYOUTS = {
    "jpegs": "inside a DAVIS folder: use its top",
    "480p": "inside a DAVIS folder: use its top",
    "sequence": "inside a DAVIS folder: use its top",
    "above": "above the DAVIS folder: use",
    "two above": "above the DAVIS folder: use",
    "full": "JPEGImages with Full-Resolution: the 480p version",
    "empty": "is empty",
    "other": "is not laid out as DAVIS .* it holds holiday/, readme.md",
    "missing": "does not exist: did you mean .*DAVIS",
    "file": "is a file",
    "no sequences": "holds no sequences",
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_wrong_davis_roots_get_a_hint(case: str, make_davis: MakeDavis, tmp_path: Path) -> None:
    root = make_davis({"dog": 1})
    other = tmp_path / "other"
    (other / "holiday").mkdir(parents=True)
    (other / "readme.md").touch()
    (tmp_path / "full/JPEGImages/Full-Resolution").mkdir(parents=True)
    (tmp_path / "none/JPEGImages/480p").mkdir(parents=True)
    (tmp_path / "blank").mkdir()
    place = {
        "jpegs": root / "JPEGImages",
        "480p": root / "JPEGImages/480p",
        "sequence": root / "JPEGImages/480p/dog",
        "above": tmp_path,
        "two above": tmp_path.parent,
        "full": tmp_path / "full",
        "empty": tmp_path / "blank",
        "other": other,
        "missing": tmp_path / "DAVIES",
        "file": other / "readme.md",
        "no sequences": tmp_path / "none",
    }[case]
    with pytest.raises(DataError, match=LAYOUTS[case]) as caught:
        open_clips("davis", place)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)


def test_sequences_that_are_missing_are_named(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 1, "bear": 1}, {"val": ["dog", "bears", "cow"]})
    with pytest.raises(
        DataError, match=r"2 of 3 sequences are missing .*: bears, cow \(did you mean 'bear'\?\)"
    ):
        open_clips("davis", root, "val")


def test_splits_that_are_missing(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 1}, {"val": ["dog"]})
    with pytest.raises(DataError, match=r"split 'vall' not found .*did you mean 'val'"):
        open_clips("davis", root, "vall")
    with pytest.raises(DataError, match="there are val"):
        open_clips("davis", root, "trainval")
    with pytest.raises(DataError, match="no lists"):
        open_clips("folder", root / "JPEGImages/480p", "val")


def test_a_gap_in_the_numbers_is_a_missing_frame(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 5})
    (root / "JPEGImages/480p/dog/00002.jpg").unlink()
    with pytest.raises(DataError, match=r"dog: expected frame 00002, found 00003\.jpg"):
        open_clips("davis", root)
    for path in (root / "JPEGImages/480p/dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="dog has no frames"):
        open_clips("davis", root)


def test_frames_of_another_size_are_named(make_davis: MakeDavis) -> None:
    root = make_davis({"dog": 3})
    save(root / "JPEGImages/480p/dog/00001.jpg", picture(1, 48, 66))
    (clip,) = open_clips("davis", root)
    assert clip.read(0, 1).shape == (1, 3, 48, 64)
    with pytest.raises(DataError, match=r"00001\.jpg is 66x48, but sequence 'dog' begins with 64x48"):
        clip.read()


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), ("a\nb\na\n", "'a' twice"), ("../a\n", "not a path"), ("a/b\n", "not a path")],
)
def test_bad_lists(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(DataError, match=says):
        read_list(tmp_path / "x.txt")


def test_other_layouts_that_are_wrong(tmp_path: Path, make_davis: MakeDavis) -> None:
    with pytest.raises(ConfigError, match="did you mean 'davis'"):
        open_clips("davs", tmp_path)
    with pytest.raises(DataError, match="neither frames, folders of frames nor videos: it is empty"):
        open_clips("folder", tmp_path)
    with pytest.raises(DataError, match="use kind 'davis'"):
        open_clips("folder", make_davis({"dog": 1}))
    with pytest.raises(DataError, match="480p holds such folders"):
        open_clips("folder", tmp_path / "DAVIS/JPEGImages")
    with pytest.raises(DataError, match="no video files"):
        open_clips("video", tmp_path)
    with pytest.raises(DataError, match=r"not laid out as Set8 .*tractor"):
        open_clips("set8", tmp_path)
    folder(tmp_path / "Set8/tractor")
    folder(tmp_path / "Set8/rafting")
    with pytest.raises(DataError, match="6 of 8 sequences are missing"):
        open_clips("set8", tmp_path / "Set8")
    with pytest.raises(DataError, match=r"use .*Set8"):
        open_clips("set8", tmp_path)
    save(tmp_path / "Set8/0.png", picture(0))
    with pytest.raises(DataError, match=r"holds frames \(0\.png\) beside sequences"):
        open_clips("folder", tmp_path / "Set8")
    (tmp_path / "Set8/not.mp4").write_bytes(b"nothing")
    with pytest.raises(VideoError):
        open_clips("video", tmp_path / "Set8/not.mp4")


DAMAGE = {
    "empty": (lambda data: b"", ": the file is empty"),
    "cut": (lambda data: data[: len(data) // 2], ": the [A-Z]+ file ends too early"),
    "text": (lambda data: b"not an image" * 20, " or not an image"),
    "header": (lambda data: data[:2] + bytes(40) + data[42:], ""),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_damaged_frame_is_named(case: str, suffix: str, tmp_path: Path) -> None:
    folder(tmp_path / "clip", 3, suffix=suffix)
    path = tmp_path / f"clip/00001{suffix}"
    spoil, says = DAMAGE[case]
    path.write_bytes(spoil(path.read_bytes()))
    (clip,) = open_clips("folder", tmp_path)
    with pytest.raises(DataError, match=f"00001{suffix} is damaged{says}"):
        clip.read()
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        clip.read()


def test_damage_inside_jpeg_data_is_found_by_the_strict_reading(tmp_path: Path) -> None:
    """What decoders paint over: part of the file overwritten by something else."""
    path = tmp_path / "0.jpg"
    save(path, picture(3, 256, 256), cv2.IMWRITE_JPEG_QUALITY, 97)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1024] = np.random.default_rng(0).bytes(1024)
    path.write_bytes(data)
    assert read_frame(path).shape == (256, 256, 3)
    with pytest.raises(DataError, match=r"0\.jpg is damaged: its JPEG picture data has errors"):
        read_frame(path, strict=True)
    with pytest.raises(DataError, match=r"0\.jpg is damaged"):
        list(FrameClip("x", [path]).decode())


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (61, 67)])
def test_good_jpegs_of_all_sorts_pass_the_strict_reading(
    quality: int, size: tuple[int, int], tmp_path: Path
) -> None:
    variants = {
        "plain": [],
        "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
        "optimised": [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
        "444": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
        "422": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422],
    }
    for name, options in variants.items():
        save(tmp_path / f"{name}.jpg", picture(1, *size), cv2.IMWRITE_JPEG_QUALITY, quality, *options)
        assert np.array_equal(
            read_frame(tmp_path / f"{name}.jpg", strict=True), read_frame(tmp_path / f"{name}.jpg")
        )
    cv2.imwrite(str(tmp_path / "grey.jpg"), picture(1, *size)[..., 0])
    assert read_frame(tmp_path / "grey.jpg", strict=True).shape == (*size, 3)
