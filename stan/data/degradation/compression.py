"""Compression by real codecs, in memory and by one thread: the same clip and numbers give the same bits."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stan.data.degradation.base import Degradation, levels_within
from stan.data.noise import Random, parse_levels
from stan.data.video.colour import Colour
from stan.data.video.pixels import PictureDecoder, PictureEncoder
from stan.data.video.properties import to_uint8
from stan.registry import tasks


@tasks.register("compression")
class Compression(Degradation):
    """What a codec leaves of a clip: JPEG, frame by frame, or H.264, which also predicts frames from each other.

    Both store chroma at half the resolution. H.264 is x264 at its own defaults, read back as `stan` reads a file.

    Args:
        codec: of all clips; either draws one of the two for each clip.
        quality: of JPEG, 1 to 100, higher is better.
        crf: of H.264, 0 to 51, lower is better.
    """

    word = "compressed"

    def __init__(
        self,
        *,
        codec: Literal["jpeg", "h264", "either"] = "either",
        quality: Annotated[Any, levels_within(1, 100)] = "10..60",
        crf: Annotated[Any, levels_within(0, 51)] = "24..38",
    ) -> None:
        super().__init__(codec=codec, quality=quality, crf=crf)
        self.codec = codec
        self.qualities = parse_levels(quality, "quality", 1, 100)
        self.crfs = parse_levels(crf, "crf", 0, 51)

    def _degrade(self, clean: Tensor, random: Random) -> Tensor:
        # All numbers are drawn, in this order, whatever the codec: fixing it leaves the strengths as they are.
        drawn = (random.uniform((len(clean),)) < 0.5).tolist()
        qualities = self.qualities.draw(random, len(clean)).round().int().tolist()
        crfs = self.crfs.draw(random, len(clean)).round().int().tolist()
        out = []
        for clip, first, quality, crf in zip(clean.cpu(), drawn, qualities, crfs):
            as_jpeg = first if self.codec == "either" else self.codec == "jpeg"
            out.append(jpeg(clip, quality) if as_jpeg else h264(clip, crf))
        return torch.stack(out)


def jpeg(frames: Tensor, quality: int) -> Tensor:
    """Frames `(T, 3, H, W)` uint8 after JPEG of `quality`, 4:2:0, by OpenCV's libjpeg."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    out = torch.empty_like(frames)
    for t, frame in enumerate(frames):
        picture = np.ascontiguousarray(frame.permute(1, 2, 0).numpy()[..., ::-1])  # (H, W, 3) BGR
        _, code = cv2.imencode(".jpg", picture, options)
        back = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert back is not None
        out[t] = torch.from_numpy(back[..., ::-1].copy()).permute(2, 0, 1)
    return out


def h264(frames: Tensor, crf: int) -> Tensor:
    """Frames `(T, 3, H, W)` uint8 after H.264 4:2:0 of constant rate factor `crf`, by x264.

    Untagged colour, as players take it: BT.709 from 720p up and BT.601 below. Odd sides are repeated to even ones.
    """
    height, width = frames.shape[-2:]
    video = F.pad(frames.float() / 255, (0, width % 2, 0, height % 2), mode="replicate")
    colour = Colour()
    encode, decode = PictureEncoder("yuv420p", colour), PictureDecoder()
    writer = av.VideoCodecContext.create("libx264", "w")
    writer.height, writer.width = video.shape[-2:]
    writer.pix_fmt, writer.time_base, writer.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
    writer.thread_count = 1
    # else x264 weighs blocks by code that differs in the last bit from one processor, even one address, to the next
    writer.options = {"crf": str(crf), "threads": "1", "x264-params": "cpu-independent=1"}
    reader = av.VideoCodecContext.create("h264", "r")
    reader.thread_count = 1
    packets = []
    for t, rgb in enumerate(video):
        picture = encode(rgb)
        picture.pts = t
        packets += writer.encode(picture)
    packets += writer.encode(None)
    pictures = [picture for packet in packets for picture in reader.decode(packet)] + reader.decode(None)
    assert len(pictures) == len(frames)
    return torch.stack([to_uint8(decode(picture, colour)[0][:, :height, :width]) for picture in pictures])
