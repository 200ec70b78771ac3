"""Matrices against published codes and against swscale; chroma filters against their own algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st

from stan.data.video.colour import (
    Colour,
    chroma_from_luma_grid,
    chroma_to_luma_grid,
    decimate,
    interpolate,
    rgb_from_yuv,
    yuv_from_rgb,
)
from stan.data.video.pixels import PictureDecoder, PictureEncoder

from .clips import ACCURATE_RND, BILINEAR, FULL_CHROMA_IN, FULL_CHROMA_OUT, codes, smooth_frames


@given(n=st.integers(1, 9), odd=st.booleans(), centred=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_decimation_undoes_interpolation(n: int, odd: bool, centred: bool, seed: int) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fine = interpolate(x, 0, 2 * n - odd, centred)
    assert fine.shape == (2 * n - odd, 3)
    torch.testing.assert_close(decimate(fine, 0, centred), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_chroma_filters_keep_constants_and_straight_lines(centred: bool) -> None:
    assert (decimate(torch.full((14,), 3.0), 0, centred) == 3.0).all()
    places = torch.arange(8.0) * 2 + (0.5 if centred else 0.0)  # where 8 chroma samples lie among 16 of luma
    fine = interpolate(places, 0, 16, centred)
    torch.testing.assert_close(fine[2:14], torch.arange(2.0, 14.0))


@pytest.mark.parametrize(
    ("height", "width", "h", "w"), [(31, 17, 16, 9), (8, 33, 8, 9), (9, 10, 3, 3), (1, 1, 1, 1)]
)
def test_chroma_returns_from_the_luma_grid(height: int, width: int, h: int, w: int) -> None:
    c = torch.randn(h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for centred in (False, True):
        fine = chroma_to_luma_grid(c, height, width, centred)
        assert fine.shape == (height, width)
        torch.testing.assert_close(chroma_from_luma_grid(fine, h, w, centred), c, rtol=0, atol=1e-12)


# 8-bit codes of full red, green and blue in limited range: ITU-R BT.601 and BT.709
PUBLISHED = {
    6: {"red": (81, 90, 240), "green": (145, 54, 34), "blue": (41, 240, 110)},
    1: {"red": (63, 102, 240), "green": (173, 42, 26), "blue": (32, 240, 118)},
}


@pytest.mark.parametrize("matrix", [1, 6])
def test_codes_of_primaries(matrix: int) -> None:
    for k, name in enumerate(("red", "green", "blue")):
        rgb = torch.zeros(3, 4, 4)
        rgb[k] = 1.0
        frame = PictureEncoder("yuv444p", Colour(matrix, 1))(rgb)
        assert tuple(int(c[0, 0]) for c in codes(frame)) == PUBLISHED[matrix][name]


@pytest.mark.parametrize("matrix", [1, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("full", [False, True])
def test_rgb_agrees_with_swscale(matrix: int, full: bool) -> None:
    (frame,) = smooth_frames(1, 32, 24, "yuv444p")
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    rgb, alpha = PictureDecoder()(frame, Colour(matrix, 2 if full else 1))
    other = frame.reformat(
        format="gbrp",
        src_color_range="JPEG" if full else "MPEG",
        dst_color_range="JPEG",
        interpolation=ACCURATE_RND,
    )
    green, blue, red = codes(other)
    expected = np.stack((red, green, blue)).astype(np.float32)
    assert alpha is None
    assert np.abs((rgb * 255).clamp(0, 255).numpy() - expected).max() < 1.6


def test_untagged_matrix_goes_by_size_and_unknown_ones_are_invertible() -> None:
    assert Colour().luma_weights(480, 720) == (0.299, 0.114)
    assert Colour().luma_weights(720, 1280) == (0.2126, 0.0722)
    rgb = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    for matrix in range(18):
        weights = Colour(matrix).luma_weights(5, 6)
        torch.testing.assert_close(rgb_from_yuv(*yuv_from_rgb(rgb, weights), weights), rgb)


def test_subsampled_rgb_is_close_to_swscale_s() -> None:
    """On smooth chroma, our interpolation and swscale's differ by little."""
    (frame,) = smooth_frames(1, 64, 48, "yuv420p")
    rgb, _ = PictureDecoder()(frame, Colour(6, 1))
    flags: Any = BILINEAR | FULL_CHROMA_IN | FULL_CHROMA_OUT | ACCURATE_RND
    other = VideoReformatter().reformat(
        frame,
        format="gbrp",
        src_colorspace="itu601",
        src_color_range="MPEG",
        dst_color_range="JPEG",
        interpolation=flags,
    )
    green, blue, red = codes(other)
    difference = np.abs((rgb * 255).clamp(0, 255).numpy() - np.stack((red, green, blue)))
    assert difference.mean() < 2
