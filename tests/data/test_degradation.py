"""Degradations against independent software, their random numbers, and what they refuse."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchvision.transforms.functional import InterpolationMode, resize

from stan.data import degradation, noise
from stan.data.degradation import Degradation
from stan.data.degradation.blur import blurred, gaussian_taps
from stan.data.degradation.compression import h264, jpeg
from stan.data.degradation.size import enlarge
from stan.data.noise import NumpyRandom, PerClip, TorchRandom
from stan.errors import ConfigError
from stan.registry import tasks
from tests.conftest import moving_picture

OURS = ("denoise", "deblur", "super_resolution", "compression")


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """`(T, 3, H, W)` uint8 of odd sides, textured and moving."""
    return torch.from_numpy(moving_picture(3, 5, 45, 63)).permute(0, 3, 1, 2).contiguous()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def luma(video: torch.Tensor) -> torch.Tensor:
    return (video.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3)


def largest(a: torch.Tensor, b: np.ndarray) -> int:
    return int((a.int() - torch.from_numpy(np.asarray(b, np.int32))).abs().max())


@pytest.mark.parametrize("blur", [0.3, 1.0, 2.4, 10.0])
def test_blur_is_that_of_scipy(clip: torch.Tensor, blur: float) -> None:
    got = blurred(clip, blur)
    exact = ndimage.gaussian_filter(
        clip.numpy().astype(np.float64), (0, 0, blur, blur), mode="mirror", truncate=4
    )
    difference = np.abs(got.numpy() - exact)
    assert difference.max() < 0.52 + 0.3  # rounding, and a tap more or less at 4 standard deviations
    assert difference.mean() < 0.27  # rounding alone has 0.25


def test_blur_is_that_of_opencv(clip: torch.Tensor) -> None:
    frames = clip.permute(0, 2, 3, 1).numpy()
    expected = np.stack(
        [cv2.GaussianBlur(f, (17, 17), 2.0, borderType=cv2.BORDER_REFLECT_101) for f in frames]
    )
    assert largest(blurred(clip, 2.0).permute(0, 2, 3, 1), expected) <= 1
    assert sum(gaussian_taps(2.0)) == pytest.approx(1, abs=1e-11)
    assert len(gaussian_taps(2.0)) == 17


def test_a_blur_wider_than_the_frame_is_mirrored_again() -> None:
    flat = torch.full((1, 3, 2, 3), 77, dtype=torch.uint8)
    assert torch.equal(blurred(flat, 10), flat)


@pytest.mark.parametrize("factor", [2, 4])
def test_low_resolution_is_that_of_torchvision_and_pillow(factor: int) -> None:
    clip = torch.from_numpy(moving_picture(1, 2, 48, 64)).permute(0, 3, 1, 2).contiguous()
    small = degradation.build("super_resolution", factor=factor)(clip[None], NumpyRandom(0))[0]
    size = [48 // factor, 64 // factor]
    expected = resize(clip.float(), size, InterpolationMode.BICUBIC, antialias=True).round().clamp(0, 255)
    assert largest(small, expected.numpy()) == 0
    picture = Image.fromarray(clip[0].permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    assert largest(small[0].permute(1, 2, 0), np.asarray(picture)) <= 1
    area = cv2.resize(clip[0].permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_AREA)
    assert psnr(small[0].permute(1, 2, 0), torch.from_numpy(area)) > 30  # another filter, at the same places

    large = (enlarge(small[0].float(), factor) + 0.5).floor().clamp(0, 255)  # (3, H, W)
    picture = Image.fromarray(small[0].permute(1, 2, 0).numpy()).resize((64, 48), Image.Resampling.BICUBIC)
    assert largest(large.permute(1, 2, 0), np.asarray(picture)) <= 1


def test_any_size_is_made_smaller_and_comes_back(clip: torch.Tensor) -> None:
    task = degradation.build("super_resolution", factor=4)
    small = task(clip[None], NumpyRandom(0))
    assert small.shape == (1, 5, 3, 12, 16)  # of 45x63
    seen = task.worsened(clip[None], noise.build("gaussian"), 0, NumpyRandom(0))
    assert seen.shape == (1, *clip.shape)
    assert psnr(seen[0] * 255, clip) > 20
    whole = np.pad(clip.numpy(), ((0, 0), (0, 0), (0, 3), (0, 1)), mode="edge")
    expected = resize(torch.from_numpy(whole).float(), [12, 16], InterpolationMode.BICUBIC, antialias=True)
    assert largest(small[0], expected.round().clamp(0, 255).numpy()) == 0


@pytest.mark.parametrize("quality", [5, 30, 95])
def test_jpeg_is_that_of_pillow(clip: torch.Tensor, quality: int) -> None:
    """Encoded by another program of the same library, decoded by OpenCV."""
    got = jpeg(clip, quality)
    for frame, ours in zip(clip.permute(0, 2, 3, 1).numpy(), got.permute(0, 2, 3, 1)):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        code = np.frombuffer(file.getvalue(), np.uint8)
        expected = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert expected is not None
        assert largest(ours, expected[..., ::-1]) <= 2


def test_h264_is_that_of_a_file(tmp_path: Path) -> None:
    """The same frames through a file that FFmpeg writes and reads, colours by swscale."""
    clip = torch.from_numpy(moving_picture(3, 5, 98, 126)).permute(0, 3, 1, 2).contiguous()
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, width=126, height=98, options={"crf": "30", "threads": "1"}
        )
        stream.pix_fmt = "yuv420p"
        for frame in clip.permute(0, 2, 3, 1).numpy():
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    expected = torch.stack(frames).permute(0, 3, 1, 2)
    got = h264(clip, 30)
    assert got.shape == clip.shape
    ours, theirs, source = (luma(video) for video in (got, expected, clip))  # chroma is filtered otherwise
    assert psnr(ours, theirs) > psnr(theirs, source) + 3
    assert abs(psnr(ours, source) - psnr(theirs, source)) < 0.6
    assert psnr(got, clip) > psnr(expected, clip)


def test_h264_gives_the_same_bits_wherever_memory_lies(clip: torch.Tensor) -> None:
    """Without cpu-independent=1 a third of these differ: x264 then weighs blocks by code that depends on addresses."""
    upside = clip.flip(-2)
    expected = h264(upside, 24)
    for size in range(20):
        blocks = [torch.empty(5000 * k + 1000 * size) for k in range(1, 8)]
        assert torch.equal(h264(upside, 24), expected), len(blocks)


def test_compression_gets_worse_with_its_strength(clip: torch.Tensor) -> None:
    assert psnr(h264(clip, 18), clip) > psnr(h264(clip, 28), clip) > psnr(h264(clip, 40), clip)
    assert psnr(jpeg(clip, 90), clip) > psnr(jpeg(clip, 50), clip) > psnr(jpeg(clip, 10), clip)
    one = torch.full((1, 3, 1, 1), 90, dtype=torch.uint8)
    assert h264(one, 30).shape == jpeg(one, 30).shape == one.shape


@pytest.mark.parametrize("task", OURS)
def test_a_clip_depends_on_its_own_key_alone(clip: torch.Tensor, task: str) -> None:
    made = degradation.build(task)
    clips = torch.stack([clip, clip.flip(-1), clip.flip(-2)])

    def random(*numbers: int) -> PerClip:
        return PerClip([TorchRandom("cpu", 7, number) for number in numbers])

    together = made(clips, random(0, 1, 2))
    assert torch.equal(together, made(clips, random(0, 1, 2)))
    assert torch.equal(together[1:2], made(clips[1:2], random(1)))
    if task in ("deblur", "compression"):
        assert not torch.equal(together[1:2], made(clips[1:2], random(5)))


@pytest.mark.parametrize("task", OURS)
def test_the_noise_draws_the_same_numbers_whatever_the_task(clip: torch.Tensor, task: str) -> None:
    made, gaussian = degradation.build(task), noise.build("gaussian")
    random = NumpyRandom(3, "clip")
    made.worsened(clip[None], gaussian, 20.0, random)
    beside = NumpyRandom(3, "clip")
    gaussian(made(clip[None], NumpyRandom(0)).float() / 255, 20.0, beside)
    assert torch.equal(random.normal((4,)), beside.normal((4,)))


def test_denoising_is_what_it_was_to_the_last_bit(clip: torch.Tensor) -> None:
    made, kind = degradation.build("denoise"), noise.build("footage")
    seen = made.worsened(clip[None], kind, torch.tensor([25.0]), PerClip([TorchRandom("cpu", 1, 2)]))
    before = kind(clip[None].float() / 255, torch.tensor([25.0]), PerClip([TorchRandom("cpu", 1, 2)]))
    assert torch.equal(seen, before)
    assert torch.equal(
        made.worsened(clip[None], noise.build("gaussian"), 0.0, NumpyRandom(0)) * 255, clip[None].float()
    )


@pytest.mark.parametrize(
    ("value", "low", "high"), [(1.5, 1.5, 1.5), ("1..2", 1, 2), ([1, 2, 3], 1, 3), ("1.5", 1.5, 1.5)]
)
def test_strengths_are_written_as_noise_levels_are(value: object, low: float, high: float) -> None:
    levels = degradation.build("deblur", blur=value).levels
    assert (levels.low, levels.high) == (low, high)
    drawn = levels.draw(NumpyRandom(0), 200)
    assert low <= drawn.min() <= drawn.max() <= high


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("deblur", {"blur": 0}, "from 0.1 to 10"),
        ("deblur", {"blur": "3..1"}, "'3..1'"),
        ("deblur", {"blur": []}, "blur"),
        ("deblur", {"blurr": 1}, "did you mean 'blur'"),
        ("super_resolution", {"factor": 1}, "from 2 to 8"),
        ("compression", {"codec": "h265"}, "did you mean 'h264'"),
        ("compression", {"quality": "0..50"}, "from 1 to 100"),
        ("deblurr", {}, "did you mean 'deblur'"),
    ],
)
def test_wrong_settings_are_one_line(task: str, settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as error:
        degradation.build(task, **settings)
    assert "\n" not in str(error.value)


def test_what_is_no_clip_is_refused(clip: torch.Tensor) -> None:
    task = degradation.build("deblur")
    with pytest.raises(TypeError, match="float32"):
        task(clip[None].float(), NumpyRandom(0))
    with pytest.raises(ValueError, match="shape"):
        task(clip, NumpyRandom(0))


def test_one_of_ones_own(clip: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass elsewhere: settings checked, and its result."""
    monkeypatch.setattr(tasks, "_components", dict(tasks._loaded()))

    @tasks.register("dim")
    class Dim(Degradation):
        """Darker.

        Args:
            by: factor.
        """

        def __init__(self, *, by: int = 2) -> None:
            super().__init__(by=by)
            self.by = by

        def _degrade(self, clean: torch.Tensor, random: noise.Random) -> torch.Tensor:
            return clean // self.by if self.by > 0 else clean.float()

    made = degradation.build("dim", by=3)
    assert (made.task, made.word, made.scale, made.settings) == ("dim", "degraded", 1, {"by": 3})
    assert torch.equal(made(clip[None], NumpyRandom(0))[0], clip // 3)
    with pytest.raises(ValueError, match=r"'dim' gave torch\.float32"):
        degradation.build("dim", by=0)(clip[None], NumpyRandom(0))
