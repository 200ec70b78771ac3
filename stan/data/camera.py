"""A slow camera over a still picture: video with known, small motion that is as sharp as the picture."""

from __future__ import annotations

import cv2
import numpy as np

FASTEST = 3.0
"""Pixels a frame that the picture moves at most; slow motion is more frequent than fast."""

TURN, ZOOM = 0.004, 0.004
"""Standard deviation of the turn (radians a frame) and of the zoom (part a frame)."""

SHAKE, SHAKY_PART = 0.3, 0.3
"""Standard deviation of a hand's shake in pixels, and the part of the samples that have it."""

SCALES = (1.0, 1.0, 0.7, 0.5)
"""Sizes at which the picture is shown; smaller ones hide the traces of its compression."""


def pan(
    picture: np.ndarray, frames: int, crop: int, top: int, left: int, random: np.random.Generator
) -> np.ndarray:
    """Film a still picture with a camera that drifts, turns, zooms and sometimes shakes a little.

    Every frame is drawn from the picture itself at twice its size (bicubic) and averaged down, so that no frame is
    blurred more than another. Where the camera leaves the picture it sees its reflection.

    Args:
        picture: `(H, W, 3)` uint8.
        frames: T.
        crop: side of the frames, pixels.
        top, left: the square of the picture that the middle of the clip shows at full size.
        random: the source of the camera's motion.

    Returns:
        `(T, crop, crop, 3)` uint8.
    """
    height, width = picture.shape[:2]
    scale = max(float(random.choice(SCALES)), 1.25 * crop / min(height, width))
    angle = random.uniform(0, 2 * np.pi)
    speed = FASTEST * random.random() ** 1.5
    velocity = speed * np.array([np.cos(angle), np.sin(angle)]) / scale  # (x, y), pixels of the picture
    turn, zoom = random.normal(0, TURN), random.normal(0, ZOOM)
    shake = random.normal(0, SHAKE / scale, (frames, 2)) * (random.random() < SHAKY_PART)
    centre = np.array([left, top]) + crop / 2 - 0.5

    video = np.empty((frames, crop, crop, 3), np.uint8)
    for t in range(frames):
        step = t - (frames - 1) / 2
        zoomed, turned = 2 * scale * np.exp(zoom * step), turn * step
        c, s = zoomed * np.cos(turned), zoomed * np.sin(turned)
        linear = np.array([[c, -s], [s, c]])
        seen = centre + velocity * step + shake[t]
        affine = np.column_stack([linear, crop - 0.5 - linear @ seen])  # from picture to doubled frame
        doubled = cv2.warpAffine(
            picture, affine, (2 * crop, 2 * crop), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        video[t] = cv2.resize(doubled, (crop, crop), interpolation=cv2.INTER_AREA)
    return video
