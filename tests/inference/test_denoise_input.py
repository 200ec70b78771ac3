"""What `denoise` is given: noise levels, videos, options; and one line for what cannot be used."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from stan.errors import ConfigError, StanError
from stan.flow import FlowPair
from stan.inference import Options, SigmaRangeWarning, TilePlan, denoise, denoise_chunks
from stan.models import Trained
from tests.inference.networks import StandIn, identity
from tests.inference.videos import SMALL, video


def test_all_kinds_of_video_are_taken() -> None:
    model = identity()
    levels = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    expected = levels.float() / 255
    assert torch.equal(denoise(model, levels), expected)
    assert torch.equal(denoise(model, levels.numpy()), expected)
    assert torch.equal(denoise(model, expected.double().numpy()), expected)
    assert denoise(model, expected.half()).dtype == torch.float32
    transposed = expected.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(denoise(model, transposed, tiles=SMALL, clamp=True), expected)
    assert denoise(model, levels[:0]).shape == (0, 3, 20, 24)
    assert denoise(model, expected.requires_grad_()).requires_grad is False


class Noted(StandIn):
    """Returns its noise map in every channel."""

    def __init__(self) -> None:
        super().__init__(self._run, blind=False, multiple=4)

    @staticmethod
    def _run(noisy: Tensor, noise_map: Tensor | None, flow: FlowPair) -> Tensor:
        assert noise_map is not None
        return noise_map.expand_as(noisy).contiguous()


@pytest.mark.parametrize("shape", [(), (1,), (11,), (11, 1, 1, 1), (40, 60), (1, 1, 40, 60), (11, 1, 40, 60)])
def test_sigma_reaches_every_pixel(shape: tuple[int, ...]) -> None:
    sigma = torch.rand(shape) * 50
    result = denoise(Noted(), video(11, 40, 60), sigma, tiles=SMALL)
    aligned = sigma[:, None, None, None] if sigma.shape == (11,) else sigma
    assert torch.allclose(result, aligned.expand(11, 3, 40, 60) / 255, atol=1e-6)


def test_sigma_as_number_list_and_stream() -> None:
    noisy = video(4, 8, 8)
    assert torch.allclose(denoise(Noted(), noisy, 51), torch.tensor(0.2))
    assert torch.allclose(
        denoise(Noted(), noisy, [0, 51, 102, 153])[:, 0, 0, 0], torch.tensor([0, 0.2, 0.4, 0.6])
    )
    mixed = iter([51.0, torch.full((8, 8), 102.0), torch.tensor(153), 204])
    frames = denoise_chunks(Noted(), iter(noisy), mixed)
    assert torch.allclose(torch.stack(list(frames))[:, 0, 5, 5], torch.tensor([0.2, 0.4, 0.6, 0.8]))


def test_sigma_auto_is_the_noise_of_the_video() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.linspace(0.2, 0.8, 128).expand(7, 3, 96, 128)
    noisy = clean + torch.randn(clean.shape, generator=generator) * 30 / 255
    result = denoise(Noted(), noisy, "auto") * 255
    assert (result - 30).abs().max() < 1.5


@pytest.mark.parametrize(
    ("sigma", "words"),
    [
        (None, "needs sigma"),
        (-1, "at least 0"),
        (math.nan, "finite"),
        (math.inf, "finite"),
        ("25", "'25'"),
        ([1, 2, 3], r"\(3,\)"),
        (torch.ones(8, 9), r"\(8, 9\)"),
        (torch.ones(4, 3, 8, 8), r"\(4, 3, 8, 8\)"),
    ],
)
def test_wrong_sigma_gets_one_clear_line(sigma: object, words: str) -> None:
    with pytest.raises(StanError, match=words) as caught:
        denoise(Noted(), video(4, 8, 8), sigma)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_stream_of_levels_that_ends_early() -> None:
    with pytest.raises(StanError, match="2 values"):
        list(denoise_chunks(Noted(), iter(video(4, 8, 8)), iter([1.0, 2.0])))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(4, 8, 8, 3), r"\(4, 8, 8, 3\)"),
        (torch.zeros(4, 3, 0, 8), r"\(4, 3, 0, 8\)"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int32), "int32"),
        (np.zeros((4, 3, 8, 8), np.complex64), "complex64"),
        (torch.full((4, 3, 8, 8), 200.0), "divide by 255"),
    ],
)
def test_wrong_videos_get_one_clear_line(wrong: Tensor, words: str) -> None:
    with pytest.raises(StanError, match=words) as caught:
        denoise(identity(), wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_pixels_that_are_no_numbers_are_refused(value: float, dtype: torch.dtype) -> None:
    noisy = torch.full((4, 3, 8, 8), 0.5, dtype=dtype)
    noisy[2, 1, 3, 3:5] = value
    with pytest.raises(StanError, match="frame 2 has 2 pixels that are NaN or infinite"):
        denoise(identity(), noisy)


def test_a_device_that_cannot_compute_gets_one_line() -> None:
    for name, words in (("meta", "computes nothing"), ("abacus", "no such device"), ("cpu:x", "no such")):
        with pytest.raises(ConfigError, match=words):
            denoise(identity(), video(2, 8, 8), device=name)


def test_options_are_one_record_or_its_fields() -> None:
    noisy = video(4, 8, 8)
    options = Options(sigma=51, strength=2.0, clamp=True)
    once = denoise(Noted(), noisy, options=options)
    assert torch.allclose(once, torch.tensor(0.4))
    assert torch.equal(once, denoise(Noted(), noisy, 51, strength=2.0, clamp=True))
    assert torch.allclose(denoise(Noted(), noisy, 25.5, options), torch.tensor(0.2))
    with pytest.raises(TypeError, match="tile"):
        denoise(Noted(), noisy, 51, tile=SMALL)


def test_frames_of_different_sizes_are_named() -> None:
    frames = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(StanError, match="frame 2"):
        list(denoise_chunks(identity(), frames))


def test_tiles_and_memory_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not both"):
        denoise(identity(), video(2, 8, 8), tiles=SMALL, memory="1GiB")


def test_a_level_the_model_was_not_trained_for_is_warned_of_once() -> None:
    model = Noted()
    model.trained = Trained("gaussian", (10, 50), 100)
    noisy = video(12, 8, 8)
    with pytest.warns(SigmaRangeWarning, match="sigma 60 .*10 to 50") as caught:
        denoise(model, noisy, 60, tiles=TilePlan(3, 1))
    assert len(caught) == 1
    with pytest.warns(SigmaRangeWarning, match="frame 1"):
        denoise(model, noisy, [20.0, 5.0] * 6)
    with pytest.warns(SigmaRangeWarning, match="20 to 70"):
        denoise(model, noisy, torch.tensor([20.0, 70.0]).repeat(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoise(model, noisy, [10.0, 50.0] * 6)
