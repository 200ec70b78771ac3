"""Every pixel format to float RGB and back, code for code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stan.data.video.colour import Colour
from stan.data.video.pixels import PictureDecoder, PictureEncoder, describe
from stan.errors import VideoError

from .clips import codes, random_frame, repacked

FORMATS = [
    "yuv420p",
    "yuv422p",
    "yuv444p",
    "yuv440p",
    "yuv411p",
    "yuv410p",
    "nv12",
    "nv21",
    "p010le",
    "yuyv422",
    "uyvy422",
    "yuv420p10le",
    "yuv422p10le",
    "yuv420p10be",
    "yuv444p12le",
    "yuv420p16le",
    "yuva420p",
    "yuva444p10le",
    "gbrp",
    "gbrp10le",
    "gbrp12le",
    "gbrap",
    "gbrap16le",
    "rgb24",
    "bgr24",
    "bgr0",
    "rgba",
    "bgra",
    "rgb48le",
    "rgba64be",
    "gray",
    "gray10le",
    "gray12le",
    "gray16le",
    "ya8",
    "ya16le",
]
PAIRED = ("yuyv422", "uyvy422", "p010le")  # formats that swscale only packs for even widths


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "colour", [Colour(), Colour(1, 2), Colour(9, 1), Colour(8, 1, centred=True)], ids=str
)
def test_random_codes_survive(name: str, colour: Colour) -> None:
    width = 18 if name in PAIRED else 17
    frame = random_frame(width, 11, name)
    planar = describe(name).planar
    before = [c.copy() for c in codes(frame if name == planar else repacked(frame, planar))]
    rgb, alpha = PictureDecoder()(frame, colour)
    assert rgb.shape == (3, 11, width)
    assert rgb.dtype == torch.float32
    assert (alpha is not None) == describe(name).alpha
    back = PictureEncoder(name, colour)(rgb, alpha)
    assert back.format.name == name
    back.colorspace, back.color_range = 2, 0
    after = codes(back if name == planar else repacked(back, planar))
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("name", ["yuv420p", "yuv410p", "nv12", "gbrp", "gray", "yuva420p"])
def test_tiny_frames_survive(name: str, width: int, height: int) -> None:
    frame = random_frame(width, height, name)
    before = [c.copy() for c in codes(frame)] if name != "nv12" else None
    rgb, alpha = PictureDecoder()(frame, Colour())
    back = PictureEncoder(name, Colour())(rgb, alpha)
    if before is not None:
        for a, b in zip(before, codes(back)):
            np.testing.assert_array_equal(a, b)
    assert (back.width, back.height) == (width, height)


def test_codes_beyond_the_rgb_cube_are_carried_through() -> None:
    """Blacker than black and colours outside the cube are not cut on the way to the network."""
    frame = random_frame(16, 16, "yuv444p", seed=1)
    rgb, _ = PictureDecoder()(frame, Colour(1, 1))
    assert rgb.min() < -0.2
    assert rgb.max() > 1.2


def test_values_outside_the_codes_are_cut() -> None:
    frame = PictureEncoder("gbrp", Colour(0, 2))(torch.tensor([-0.5, 0.5, 1.5]).reshape(3, 1, 1))
    assert [int(c[0, 0]) for c in codes(frame)] == [128, 255, 0]  # green, blue, red


def test_palette_becomes_rgb() -> None:
    grey = random_frame(8, 8, "gray")
    palette = grey.reformat(format="rgb8")
    rgb, _ = PictureDecoder()(palette, Colour())
    assert rgb.shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["vaapi", "bayer_rggb8", "gbrpf32le", "no_such_format"])
def test_what_is_no_picture_is_named(name: str) -> None:
    with pytest.raises(VideoError, match=name):
        describe(name)
