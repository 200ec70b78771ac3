"""The whole way of a file: a network that changes nothing returns the same frames."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from stan.data.video import OutputSettings, open_source
from stan.data.video.pictures import read_picture, write_picture
from stan.errors import StanError
from stan.inference import Options, SigmaRangeWarning
from stan.inference.files import denoise_file, preview_file
from stan.inference.tiling import TilePlan
from stan.models import Trained
from tests.conftest import moving_picture
from tests.data.video.clips import (
    decode_by_ffmpeg,
    probe,
    probe_times,
    random_frame,
    smooth_frames,
    write_video,
)

from .networks import StandIn, identity

TILES = Options(tiles=TilePlan(frames=5, frame_overlap=2))
LOSSLESS = OutputSettings(lossless=True)


def not_blind(seen: list[float] | None = None) -> StandIn:
    """An identity that takes a noise map and notes its mean, in 8-bit units."""

    def core(noisy: Tensor, noise_map: Tensor | None, _: object) -> Tensor:
        assert noise_map is not None
        if seen is not None:
            seen.extend((noise_map.mean((0, 2, 3, 4)) * 255).tolist())
        return noisy

    return StandIn(core, blind=False)


def smoother() -> StandIn:
    """A network that takes the mean over time."""
    return StandIn(lambda noisy, _, __: noisy.mean(1, keepdim=True).expand_as(noisy))


@pytest.mark.parametrize(
    ("pixel_format", "output"),
    [
        ("yuv420p", "out.mkv"),
        ("yuv420p", "out.mp4"),
        ("yuv422p10le", "out.mkv"),
        ("nv12", "out.mkv"),
        ("bgr0", "out.mkv"),
        ("gbrp12le", "out.mkv"),
        ("gray", "out.mkv"),
        ("bgra", "out.mkv"),
    ],
)
def test_identity_returns_every_code(tmp_path: Path, pixel_format: str, output: str) -> None:
    """RGB and YUV, 8 to 12 bits, with alpha: reader, network, writer and lossless codec change no bit."""
    stored = "yuv420p" if pixel_format == "nv12" else pixel_format
    frames = [random_frame(34, 18, stored, seed) for seed in range(11)]
    source = write_video(
        tmp_path / "in.mkv", frames, codec="ffv1", tags=(1, 1, 1, 1) if "yuv" in stored else (2, 0, 2, 2)
    )
    result = denoise_file(identity(), source, tmp_path / output, TILES, LOSSLESS)
    assert (result.frames, result.total, result.interrupted, result.sigma) == (11, 11, False, None)
    assert result.output == tmp_path / output
    assert decode_by_ffmpeg(tmp_path / output, stored) == decode_by_ffmpeg(source, stored)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_identity_returns_every_picture(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, np.iinfo(dtype).max, (17, 31, 4), dtype=dtype, endpoint=True) for _ in range(7)
    ]
    for k, picture in enumerate(pictures):
        write_picture(tmp_path / "in" / f"{k}.png", picture)
    denoise_file(identity(), tmp_path / "in", tmp_path / "out", TILES)
    for k, picture in enumerate(pictures):
        np.testing.assert_array_equal(read_picture(tmp_path / "out" / f"{k}.png"), picture)


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (8000, 20)])
def test_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    source = write_video(
        tmp_path / "in.mkv", [random_frame(*size, "yuv444p", s) for s in range(3)], codec="ffv1"
    )
    denoise_file(identity(multiple=8), source, tmp_path / "out.mkv", TILES, LOSSLESS)
    assert decode_by_ffmpeg(tmp_path / "out.mkv", "yuv444p") == decode_by_ffmpeg(source, "yuv444p")


def test_the_content_decides_and_not_the_ending(tmp_path: Path) -> None:
    """A Matroska file named .avi; grey; read and written as what it is."""
    source = write_video(
        tmp_path / "in.mkv", [random_frame(20, 10, "gray", s) for s in range(3)], codec="ffv1"
    )
    renamed = source.rename(tmp_path / "in.avi")
    denoise_file(identity(), renamed, tmp_path / "out.mkv", TILES, LOSSLESS)
    assert decode_by_ffmpeg(tmp_path / "out.mkv", "gray") == decode_by_ffmpeg(renamed, "gray")


def test_video_to_pictures_and_back(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "in.mkv", [random_frame(16, 12, "bgr0", s) for s in range(3)], codec="ffv1"
    )
    denoise_file(identity(), source, tmp_path / "frames", TILES)
    pictures = open_source(tmp_path / "frames", fps=24)
    denoise_file(identity(), pictures, tmp_path / "out.mkv", TILES, LOSSLESS)
    assert torch.equal(open_source(tmp_path / "out.mkv").read(), open_source(source).read())
    assert probe(tmp_path / "out.mkv")["streams"][0]["avg_frame_rate"] == "24/1"


def test_it_denoises(tmp_path: Path) -> None:
    still = np.repeat(moving_picture(0, 1, 48, 64), 9, 0)
    rng = np.random.default_rng(0)
    noisy = (still + rng.normal(0, 20, still.shape)).round().clip(0, 255).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for k, frame in enumerate(noisy):
        write_picture(tmp_path / "in" / f"{k}.png", frame)
    denoise_file(
        smoother(), tmp_path / "in", tmp_path / "out", Options(tiles=TilePlan(frames=9, frame_overlap=0))
    )
    out = open_source(tmp_path / "out").read().permute(0, 2, 3, 1).numpy()

    def error(video: np.ndarray) -> float:
        return float(np.sqrt(np.mean((video.astype(float) - still) ** 2)))

    assert error(out) < error(noisy) / 2.5  # a mean over nine frames


def test_given_sigma_and_strength(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", smooth_frames(6, 32, 32, "yuv420p"), codec="ffv1")
    seen: list[float] = []
    result = denoise_file(
        not_blind(seen), source, tmp_path / "out.mkv", replace(TILES, sigma=20.0, strength=1.5)
    )
    np.testing.assert_allclose(seen, 30.0, rtol=1e-5)
    assert result.sigma == (30.0, 30.0, 30.0)


@pytest.mark.parametrize("kind", ["rgb", "420", "grey", "pictures of 420"])
@pytest.mark.parametrize("sigma", [10.0, 30.0])
def test_estimated_sigma(tmp_path: Path, kind: str, sigma: float) -> None:
    """White noise in RGB is found within 15 %, also where chroma is subsampled or only luma is left."""
    clean = moving_picture(1, 6, 96, 128).astype(np.float32) * 0.5 + 64
    noisy = clean + np.random.default_rng(0).normal(0, sigma, clean.shape).astype(np.float32)
    frames = [av_frame(f) for f in noisy.round().clip(0, 255).astype(np.uint8)]
    stored = {"rgb": "bgr0", "grey": "gray"}.get(kind, "yuv420p")
    source: Path = write_video(
        tmp_path / "in.mkv",
        [f.reformat(format=stored, dst_colorspace="itu709") for f in frames],
        codec="ffv1",
        tags=(1, 1, 1, 1) if stored == "yuv420p" else (2, 0, 2, 2),
    )
    if kind == "pictures of 420":
        denoise_file(identity(), source, tmp_path / "frames", TILES)
        source = tmp_path / "frames"
    lines: list[str] = []
    seen: list[float] = []
    result = denoise_file(not_blind(seen), source, tmp_path / "out.mkv", replace(TILES, tell=lines.append))
    assert result.sigma is not None
    low, mean, high = result.sigma
    assert low <= mean <= high
    assert mean == pytest.approx(sigma, rel=0.15)
    assert any("noise level is estimated" in line for line in lines)


def av_frame(rgb: np.ndarray) -> Any:
    import av

    return av.VideoFrame.from_ndarray(rgb, "rgb24")


def test_changing_noise_is_followed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = moving_picture(1, 24, 64, 64).astype(np.float32) * 0.5 + 64
    levels = np.where(np.arange(24) < 12, 8.0, 32.0)
    noisy = clean + rng.normal(0, 1, clean.shape) * levels[:, None, None, None]
    (tmp_path / "in").mkdir()
    for k, frame in enumerate(noisy.round().clip(0, 255).astype(np.uint8)):
        cv2.imwrite(str(tmp_path / "in" / f"{k}.png"), frame[..., ::-1])
    seen: list[float] = []
    whole = TilePlan(frames=24, frame_overlap=0)
    denoise_file(not_blind(seen), tmp_path / "in", tmp_path / "out", Options(sigma="auto", tiles=whole))
    assert seen[6] == pytest.approx(8, rel=0.2)
    assert seen[-1] == pytest.approx(32, rel=0.2)


def cut_between_levels(first: float, second: float, each: int = 8) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of two scenes that have nothing in common, with noise of two levels."""
    rng = np.random.default_rng(0)
    scenes = [
        moving_picture(seed, each, 72, 96).astype(np.float32) * 0.3 + offset
        for seed, offset in ((1, 50), (2, 130))
    ]
    levels = np.repeat([first, second], each)[:, None, None, None]
    noisy = np.concatenate(scenes) + rng.normal(0, 1, (2 * each, 72, 96, 3)) * levels
    return noisy.round().clip(0, 255).astype(np.uint8)


def test_a_cut_forgets_the_noise_before_it(tmp_path: Path) -> None:
    """Sigma 40, then a cut to sigma 5: the first frame behind the cut is already at 5."""
    (tmp_path / "in").mkdir()
    for k, frame in enumerate(cut_between_levels(40, 5)):
        write_picture(tmp_path / "in" / f"{k}.png", frame)
    seen: list[float] = []
    options = Options(sigma="auto", tiles=TilePlan(frames=8, frame_overlap=0))
    denoise_file(not_blind(seen), tmp_path / "in", tmp_path / "out", options)
    assert seen[7] == pytest.approx(40, rel=0.1)
    np.testing.assert_allclose(seen[8:], 5, rtol=0.25)
    seen.clear()
    denoise_file(not_blind(seen), tmp_path / "in", tmp_path / "one", replace(options, scenes=False))
    assert seen[8] > 30  # taken as one scene, the median is still that of the frames before


def test_sigma_that_does_not_go_with_the_model(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", smooth_frames(3, 32, 32, "yuv420p"), codec="ffv1")
    lines: list[str] = []
    denoise_file(identity(), source, tmp_path / "a.mkv", replace(TILES, sigma=20.0, tell=lines.append))
    assert any("blind: sigma 20.0 is not used" in line for line in lines)
    model = not_blind()
    model.trained = Trained("gaussian", (5.0, 25.0), 1)
    with pytest.warns(SigmaRangeWarning, match="outside .*5 to 25"):
        denoise_file(model, source, tmp_path / "b.mkv", replace(TILES, sigma=60.0))
    for arguments, said in (
        ({"sigma": -1.0}, "outside"),
        ({"sigma": 300.0}, "outside"),
        ({"sigma": float("nan")}, "outside"),
        ({"sigma": 9.0, "strength": 0.0}, "strength 0.0 must be above 0"),
    ):
        with pytest.raises(StanError, match=said):
            denoise_file(model, source, tmp_path / "c.mkv", replace(TILES, **arguments))  # type: ignore[arg-type]
    with pytest.raises(StanError, match="no meaning for a blind model"):
        denoise_file(identity(), source, tmp_path / "c.mkv", replace(TILES, strength=2.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "in.mkv"]


def test_compare_shows_both_in_one_video(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "in.mkv", [random_frame(18, 14, "bgr0", s) for s in range(4)], codec="ffv1"
    )
    darker = StandIn(lambda noisy, _, __: noisy * 0.5)
    denoise_file(darker, source, tmp_path / "out.mkv", TILES, replace(LOSSLESS, compare=True))
    before, both = open_source(source).read(), open_source(tmp_path / "out.mkv").read()
    assert both.shape == (4, 3, 14, 36)
    assert torch.equal(both[..., :18], before)
    assert (both[..., 18:].float() - before.float() / 2).abs().max() <= 0.5


@pytest.mark.parametrize(
    "matrix",
    [
        (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
        (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
        (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    ],
)
def test_compare_is_side_by_side_as_shown(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    """What ffmpeg shows of a turned video has the noisy half on the left."""
    source = write_video(
        tmp_path / "in.mp4", smooth_frames(2, 32, 16, "yuv444p"), options={"qp": "0"}, matrix=matrix
    )
    black = StandIn(lambda noisy, _, __: noisy * 0)
    denoise_file(black, source, tmp_path / "out.mp4", TILES, replace(LOSSLESS, compare=True))
    width, height = (32, 16) if matrix[0] else (16, 32)
    shown = np.frombuffer(decode_by_ffmpeg(tmp_path / "out.mp4", "gray"), np.uint8).reshape(
        2, height, 2 * width
    )
    assert shown[:, :, :width].mean() > 60
    assert shown[:, :, width:].mean() < 20


def test_preview(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "in.mkv", [random_frame(18, 14, "bgr0", s) for s in range(40)], codec="ffv1"
    )
    model = StandIn(lambda noisy, _, __: noisy * 0.5)
    steps: list[float] = []
    options = replace(TILES, progress=lambda done, total: steps.append(done))
    result = preview_file(model, source, tmp_path / "out.mp4", 3, options)
    assert result.output == tmp_path / "out.preview"
    assert sorted(p.name for p in (tmp_path / "out.preview").iterdir()) == [
        "00006.png",
        "00020.png",
        "00033.png",
    ]
    assert steps == [1, 2, 3]
    assert not (tmp_path / "out.mp4").exists()
    clip = open_source(source).read()
    for number in (6, 20, 33):
        picture = read_picture(tmp_path / "out.preview" / f"{number:05d}.png")
        np.testing.assert_array_equal(picture[:, :18], clip[number].permute(1, 2, 0).numpy())
        assert np.abs(picture[:, 18:] - picture[:, :18] / 2.0).max() <= 0.5
    result = preview_file(model, source, tmp_path / "two.mp4", 99, TILES)
    assert result.frames == 40
    with pytest.raises(StanError, match="at least 1"):
        preview_file(model, source, tmp_path / "three.mp4", 0)


def test_a_preview_has_the_noise_levels_of_the_whole(tmp_path: Path) -> None:
    """Places do not share a median: each has the level that it has when the whole file is denoised."""
    (tmp_path / "in").mkdir()
    for k, frame in enumerate(cut_between_levels(40, 5, each=16)):
        write_picture(tmp_path / "in" / f"{k:02d}.png", frame)

    def noise_map(noisy: Tensor, level: Tensor | None, _: object) -> Tensor:
        assert level is not None
        return level.expand_as(noisy)

    model = StandIn(noise_map, blind=False)
    options = Options(sigma="auto", tiles=TilePlan(frames=8, frame_overlap=0))
    denoise_file(model, tmp_path / "in", tmp_path / "out", options)
    preview_file(model, tmp_path / "in", tmp_path / "out.mp4", 8, options)
    names = sorted(p.name for p in (tmp_path / "out.preview").iterdir())
    assert len(names) == 8
    for name in names:
        whole = read_picture(tmp_path / "out" / f"{int(name[:5]):02d}.png")
        assert abs(int(read_picture(tmp_path / "out.preview" / name)[0, -1, 0]) - int(whole[0, 0, 0])) <= 1


def test_a_preview_takes_one_scene_where_it_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(3):
        write_picture(tmp_path / "in" / f"{k}.png", np.full((40, 64, 3), (0, 200, 200)[k], np.uint8))
    shown: list[int] = []
    for scenes, name in ((True, "a.mp4"), (False, "b.mp4")):
        preview_file(smoother(), tmp_path / "in", tmp_path / name, 1, replace(TILES, scenes=scenes))
        shown.append(int(read_picture(tmp_path / f"{name[0]}.preview" / "00001.png")[0, -1, 0]))
    assert shown == [200, 133]  # a mean over the scene, and over all frames


def test_a_preview_says_what_it_does_not_show(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", smooth_frames(6, 32, 32, "yuv420p"), codec="ffv1")
    lines: list[str] = []
    settings = OutputSettings(codec="h265", quality=0, pixel_format="yuv444p")
    preview_file(identity(), source, tmp_path / "o.mp4", 1, replace(TILES, tell=lines.append), settings)
    assert [line for line in lines if "does not show codec, quality, pixel format" in line]
    lines.clear()
    preview_file(identity(), source, tmp_path / "p.mp4", 1, replace(TILES, tell=lines.append))
    assert lines == []


def test_a_file_with_pixels_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(3):
        picture = np.full((8, 9, 3), 0.5, np.float32)
        picture[:k, 0, 1] = np.nan
        write_picture(tmp_path / "in" / f"{k}.tif", picture)
    with pytest.raises(StanError, match="frame 1 has 1 pixels that are NaN or infinite"):
        denoise_file(identity(), tmp_path / "in", tmp_path / "out", TILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("size", [(2, 8000), (1, 500), (3, 3000)])
@pytest.mark.parametrize("pixel_format", ["yuv444p", "gbrp12le"])
def test_narrow_frames_without_loss(tmp_path: Path, size: tuple[int, int], pixel_format: str) -> None:
    """FFV1 cannot cut such frames into slices, and needs not."""
    stored = random_frame(*size, pixel_format, 0)
    source = write_video(tmp_path / "in.mkv", [stored], codec="ffv1", options={"level": "1"})
    denoise_file(identity(), source, tmp_path / "out.mkv", TILES, LOSSLESS)
    before, after = (next(open_source(p).frames()).rgb for p in (source, tmp_path / "out.mkv"))
    assert torch.equal(before, after)


def test_progress_counts_frames(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", smooth_frames(12, 32, 32, "yuv420p"), codec="ffv1")
    steps: list[tuple[float, int | None]] = []
    options = replace(TILES, progress=lambda done, total: steps.append((done, total)))
    denoise_file(identity(), source, tmp_path / "o.mkv", options)
    assert steps[-1][0] == pytest.approx(12)
    assert all(later[0] >= earlier[0] for earlier, later in pairwise(steps))
    assert {total for _, total in steps} == {12}


def test_real_clip_through_the_whole_way(tmp_path: Path, shared_data: Path) -> None:
    """carphone.mp4, H.264 without tags and with oblong pixels: the same code values come out."""
    source = shared_data / "videos/carphone.mp4"
    denoise_file(identity(), source, tmp_path / "out.mp4", Options(tiles=TilePlan(frames=20)), LOSSLESS)
    assert decode_by_ffmpeg(tmp_path / "out.mp4", "yuv420p") == decode_by_ffmpeg(source, "yuv420p")
    assert probe_times(tmp_path / "out.mp4") == probe_times(source)
    before, after = (probe(p)["streams"][0] for p in (source, tmp_path / "out.mp4"))
    for key in ("sample_aspect_ratio", "r_frame_rate", "nb_frames", "duration", "pix_fmt"):
        assert after[key] == before[key]
