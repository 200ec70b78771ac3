"""What is known of a source of frames, and what follows from it for its pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.data.video.colour import Colour


@dataclass(frozen=True)
class CopiedPacket:
    """A packet of the source's stream number ``stream``, to be copied as it is.

    (A packet knows its stream itself, but must not be asked once its file is closed.)
    """

    stream: int
    packet: av.Packet


@dataclass(frozen=True)
class Properties:
    """The properties of a video stream or a set of pictures that an output should share.

    ``height`` and ``width`` are those of the coded pictures; ``display_matrix`` (nine numbers in FFmpeg's
    fixed-point order) says how a player turns or mirrors them. ``fps`` is the average rate. ``pixel_format``
    is FFmpeg's name of what the stream decodes to. ``float_samples``: pictures hold float samples.
    """

    height: int
    width: int
    fps: Fraction
    time_base: Fraction
    pixel_format: str
    colour: Colour = field(default_factory=Colour)
    pixel_aspect: Fraction = Fraction(1)
    display_matrix: tuple[int, ...] | None = None
    interlaced: bool = False
    codec: str = ""
    float_samples: bool = False

    @property
    def interlacing(self) -> str:
        """What a person should know of denoising interlaced video; empty if it is none."""
        if not self.interlaced:
            return ""
        return (
            "the video is interlaced and is denoised as whole frames: deinterlace it first (ffmpeg -vf bwdif)"
        )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the coded pictures."""
        return self.height, self.width

    @property
    def orientation(self) -> tuple[bool, bool, bool]:
        """(transpose, mirror x, mirror y): what a player does to the pictures, in this order."""
        if self.display_matrix is None:
            return False, False, False
        a, b, _, c, d = self.display_matrix[:5]  # (x', y') = (a x + c y, b x + d y)
        if abs(a) >= abs(b):
            return False, a < 0, d < 0
        return True, c < 0, b < 0


def upright(pictures: Tensor, properties: Properties) -> Tensor:
    """Coded pictures (..., H, W) turned and mirrored as a player shows them."""
    transpose, mirror_x, mirror_y = properties.orientation
    if transpose:
        pictures = pictures.transpose(-2, -1)
    return pictures.flip([axis for axis, on in ((-1, mirror_x), (-2, mirror_y)) if on])


def doubled(properties: Properties) -> Properties:
    """Properties of two pictures side by side, as a player shows them."""
    if properties.orientation[0]:
        return replace(properties, height=2 * properties.height)
    return replace(properties, width=2 * properties.width)


def beside(frame: Frame, properties: Properties) -> Frame:
    """A denoised frame with its noisy pixels on the left, as a player shows them; ``properties`` of the source."""
    transposed, mirrored, _ = properties.orientation
    axis = -2 if transposed else -1

    def pair(left: Tensor, right: Tensor) -> Tensor:
        return torch.cat((right, left) if mirrored else (left, right), axis)

    assert frame.noisy is not None
    alpha = None if frame.alpha is None else pair(frame.alpha, frame.alpha)
    return replace(frame, rgb=pair(frame.noisy, frame.rgb), alpha=alpha, noisy=None)


def to_uint8(rgb: Tensor) -> Tensor:
    """Float pictures in [0, 1] of any shape, cut and rounded to uint8."""
    return rgb.mul(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)
