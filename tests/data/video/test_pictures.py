"""Pictures as video: depth, grey and alpha survive; order is natural; damage is named."""

from __future__ import annotations

import shlex
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stan.data.video import OutputSettings, PictureWriter, open_output, open_source
from stan.data.video.pictures import find_pictures, read_picture, write_picture
from stan.errors import VideoError

from .clips import random_frame, write_video


def random_pictures(
    folder: Path, count: int, suffix: str, channels: int, dtype: str, seed: int = 0
) -> list[np.ndarray]:
    """Random pictures 0 to count - 1 in ``folder``; (H, W) for one channel."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    shape = (13, 19) if channels == 1 else (13, 19, channels)
    pictures = []
    for k in range(count):
        values = rng.random(shape, dtype=np.float32)
        if dtype != "float32":
            values = np.round(values * np.iinfo(dtype).max)
        pictures.append(values.astype(dtype))
        write_picture(folder / f"f{k}{suffix}", pictures[-1])
    return pictures


def copy(source: str | Path, output: str | Path, **settings: object) -> list[str]:
    clip = open_source(source)
    writer = open_output(output, clip, OutputSettings(**settings))  # type: ignore[arg-type]
    assert isinstance(writer, PictureWriter)
    for frame in clip.frames():
        writer.write(frame)
    writer.finish()
    return writer.notes


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype", "codec"),
    [
        (".png", 3, "uint8", "png"),
        (".png", 1, "uint8", "png"),
        (".png", 4, "uint8", "png"),
        (".png", 3, "uint16", "png"),
        (".png", 1, "uint16", "png"),
        (".png", 4, "uint16", "png"),
        (".tif", 3, "uint16", "tiff"),
        (".tif", 3, "float32", "tiff"),
        (".tif", 1, "uint8", "tiff"),
        (".bmp", 3, "uint8", None),
        (".ppm", 3, "uint16", None),
        (".tiff", 3, "uint8", "png"),
    ],
)
def test_copies_keep_every_sample(
    tmp_path: Path, suffix: str, channels: int, dtype: str, codec: str | None
) -> None:
    pictures = random_pictures(tmp_path / "in", 3, suffix, channels, dtype)
    notes = copy(tmp_path / "in", tmp_path / "out", codec=codec)
    assert notes == []
    ending = {"tiff": ".tif", "png": ".png", None: ".png"}[codec]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"f{k}{ending}" for k in range(3)]
    for k, picture in enumerate(pictures):
        back = read_picture(tmp_path / "out" / f"f{k}{ending}")
        assert back.dtype == picture.dtype
        np.testing.assert_array_equal(back, picture)


def test_order_is_natural_and_glob_selects(tmp_path: Path) -> None:
    random_pictures(tmp_path / "in", 12, ".png", 3, "uint8")
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    (tmp_path / "in" / ".hidden.png").write_text("nor this")
    assert [p.stem for p in find_pictures(tmp_path / "in")] == [f"f{k}" for k in range(12)]
    assert [p.stem for p in find_pictures(str(tmp_path / "in" / "f1*.png"))] == ["f1", "f10", "f11"]
    assert len(open_source(str(tmp_path / "in" / "f?.png"))) == 10
    assert len(open_source(tmp_path / "in" / "f3.png")) == 1


def test_folder_with_brackets_is_a_folder(tmp_path: Path) -> None:
    random_pictures(tmp_path / "take[1]", 2, ".png", 3, "uint8")
    assert len(open_source(tmp_path / "take[1]")) == 2


def test_clip_reads_eight_bits(tmp_path: Path) -> None:
    (picture,) = random_pictures(tmp_path / "in", 1, ".png", 3, "uint16")
    clip = open_source(tmp_path / "in", fps=24)
    read = clip.read()
    np.testing.assert_array_equal(
        read[0].permute(1, 2, 0).numpy(), np.round(picture / 257.0).astype(np.uint8)
    )
    assert (clip.fps, clip.size, clip.name) == (24.0, (13, 19), "in")


def test_jpeg_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    """EXIF orientation 6: the picture is shown turned clockwise by 90 degrees."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :8] = (255, 0, 0)
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert done
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    raw = data.tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(raw[:2] + segment + raw[2:])
    turned = read_picture(path)
    assert turned.shape == (32, 16, 3)
    assert turned[2, 8, 0] > 200
    assert turned[20, 8, 0] < 60


def test_losses_are_told(tmp_path: Path) -> None:
    random_pictures(tmp_path / "rgba", 2, ".png", 4, "uint8")
    assert any("no alpha" in n for n in copy(tmp_path / "rgba", tmp_path / "a", codec="jpeg"))
    random_pictures(tmp_path / "deep", 2, ".png", 3, "uint16")
    assert any(
        "keeps 8 of 16 bits" in n for n in copy(tmp_path / "deep", tmp_path / "b", codec="jpeg", quality=90)
    )
    assert read_picture(tmp_path / "b" / "f0.jpg").dtype == np.uint8


def test_same_names_from_two_folders_do_not_collide(tmp_path: Path) -> None:
    for name in ("a", "b"):
        random_pictures(tmp_path / name, 2, ".png", 3, "uint8", seed=ord(name))
    copy(str(tmp_path / "?" / "f*.png"), tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_one_picture(tmp_path: Path) -> None:
    (picture,) = random_pictures(tmp_path / "in", 1, ".png", 3, "uint8")
    copy(tmp_path / "in" / "f0.png", tmp_path / "out.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "out.tif"), picture)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.tif"]


def test_video_frames_become_numbered_pictures(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", [random_frame(16, 8, "bgr0", s) for s in range(3)], codec="ffv1")
    copy(video, tmp_path / "out")
    expected = open_source(video).read()
    for k in range(3):
        got = read_picture(tmp_path / "out" / f"{k:05d}.png")
        np.testing.assert_array_equal(got, expected[k].permute(1, 2, 0).numpy())


def test_ten_bit_video_becomes_sixteen_bit_pictures(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", [random_frame(16, 8, "gbrp10le")], codec="ffv1")
    copy(video, tmp_path / "out")
    got = read_picture(tmp_path / "out" / "00000.png")
    assert got.dtype == np.uint16
    rgb = next(open_source(video).frames()).rgb.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got, np.round(rgb * 65535).astype(np.uint16))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("part", [0.4, 0.9])
def test_pictures_cut_short_are_named(tmp_path: Path, suffix: str, part: float) -> None:
    random_pictures(tmp_path / "in", 4, suffix, 3, "uint8")
    path = tmp_path / "in" / f"f2{suffix}"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    clip = open_source(tmp_path / "in")
    with pytest.raises(VideoError, match=rf"f2\{suffix}"):
        clip.read()


def pages(path: Path, count: int, **settings: object) -> None:
    first, *others = (Image.new("RGB", (19, 13), (80 * k, 10, 20)) for k in range(count))
    first.save(path, save_all=True, append_images=others, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "command"),
    [
        ("a.tif", {}, "tiffsplit {} page_"),
        ("a.tif", {"big_tiff": True}, "tiffsplit {} page_"),
        ("a.webp", {"lossless": True}, "convert {} -coalesce page%05d.png"),
        ("a b.png", {}, "ffmpeg -i {} page%05d.png"),
    ],
)
def test_several_pictures_in_a_file_are_refused(
    tmp_path: Path, name: str, settings: dict[str, object], command: str
) -> None:
    path = tmp_path / name
    pages(path, 3, **settings)
    with pytest.raises(VideoError) as refused:
        open_source(path)
    line = (
        f"{path} holds 3 pictures instead of one: split it first ({command.format(shlex.quote(str(path)))})"
    )
    assert str(refused.value) == line
    pages(path, 1, **settings)
    assert read_picture(path).shape == (13, 19, 3)


def test_a_thumbnail_is_no_page(tmp_path: Path) -> None:
    thumbnail = Image.new("RGB", (5, 4))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    path = tmp_path / "a.tif"
    Image.new("RGB", (19, 13), "red").save(path, save_all=True, append_images=[thumbnail])
    with Image.open(path) as both:
        assert both.n_frames == 2  # type: ignore[attr-defined]
    assert read_picture(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("peak", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_ppm_counts_to_its_own_peak(tmp_path: Path, magic: str, peak: int) -> None:
    values = np.array([0, peak // 2, peak] * 6)
    if magic in ("P2", "P3"):
        body = " ".join(map(str, values)).encode() + b"\n"
    else:
        body = values.astype(np.uint8 if peak < 256 else ">u2").tobytes()
    width = 6 if magic in ("P3", "P6") else 18
    (tmp_path / "a.ppm").write_bytes(f"{magic} # a remark of 9 words\n{width}\n1 {peak}\n".encode() + body)
    (frame,) = open_source(tmp_path / "a.ppm").frames()
    expected = np.broadcast_to((values / peak).reshape(width, -1), (width, 3)).T[:, None]
    np.testing.assert_allclose(frame.rgb.numpy(), expected, atol=1 / 255)


def test_unlike_pictures_are_named(tmp_path: Path) -> None:
    random_pictures(tmp_path / "in", 3, ".png", 3, "uint8")
    write_picture(tmp_path / "in" / "f1.png", np.zeros((13, 20, 3), np.uint8))
    with pytest.raises(VideoError, match=r"f1.png is 20x13 RGB uint8 and f0.png is 19x13 RGB uint8"):
        open_source(tmp_path / "in").read()
    write_picture(tmp_path / "in" / "f1.png", np.zeros((13, 19), np.uint8))
    with pytest.raises(VideoError, match=r"f1.png is 19x13 grey uint8"):
        open_source(tmp_path / "in").read()


def test_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(VideoError, match="holds no pictures"):
        open_source(tmp_path / "in")
    with pytest.raises(VideoError, match="no picture matches"):
        open_source(str(tmp_path / "*.png"))
    text = tmp_path / "in" / "a.png"
    text.write_text("text")
    with pytest.raises(VideoError, match=r"a\.png is not a picture"):
        open_source(tmp_path / "in")
    text.write_bytes(b"")
    with pytest.raises(VideoError, match=r"a\.png is empty"):
        open_source(text)
    with pytest.raises(VideoError, match="no such file"):
        open_source(tmp_path / "b.png")
    random_pictures(tmp_path / "in", 1, ".png", 3, "uint8")
    assert open_source(tmp_path / "in" / "f0.png", fps="30000/1001").properties.fps == Fraction(30000, 1001)
    assert open_source(tmp_path / "in" / "f0.png", fps=23.976).properties.fps == Fraction("23.976")
    for wrong in ("nan", "1e308", "1/0", "x", float("inf"), 1001, -3):
        with pytest.raises(VideoError, match=f"frame rate {wrong} is not positive and at most 1000"):
            open_source(tmp_path / "in" / "f0.png", fps=wrong)
    with pytest.raises(VideoError, match="frame rate 0 is not positive"):
        open_source(tmp_path / "in" / "f0.png", fps=0)


def test_a_folder_is_replaced_only_if_it_holds_nothing_else(tmp_path: Path) -> None:
    random_pictures(tmp_path / "in", 2, ".png", 3, "uint8")
    random_pictures(tmp_path / "out", 5, ".png", 3, "uint8")
    clip = open_source(tmp_path / "in")
    with pytest.raises(VideoError, match="is not empty"):
        open_output(tmp_path / "out", clip, OutputSettings())
    (tmp_path / "out" / "diary.txt").write_text("dear diary")
    with pytest.raises(VideoError, match="holds more than pictures"):
        open_output(tmp_path / "out", clip, OutputSettings(overwrite=True))
    (tmp_path / "out" / "diary.txt").unlink()
    with pytest.raises(VideoError, match="is the input itself"):
        open_output(tmp_path / "in", clip, OutputSettings(overwrite=True))
    writer = open_output(tmp_path / "out", clip, OutputSettings(overwrite=True))
    for frame in clip.frames():
        writer.write(frame)
    assert len(list((tmp_path / "out").iterdir())) == 5
    writer.finish()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["f0.png", "f1.png"]
