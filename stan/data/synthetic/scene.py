"""Scenes: a photograph behind, cut-outs of others in front, each moving smoothly under a moving camera.

Everything that moves is an affine map, so the motion of each pixel is known exactly. Coordinates are (x, y)
with pixel centres at whole numbers; world units are pixels of the video.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stan.data.synthetic.photos import TRAIN, VAL, photo
from stan.errors import ConfigError

_MAX_SCALE = 2.2  # photo pixels to a video pixel, at most: more would leave little detail
_MIN_SCALE = 1.3  # and at least: less would show the photo's own blur


@dataclass(frozen=True)
class Layer:
    """A photograph in the scene, or a cut-out of one.

    Attributes:
        image: `(H, W, 3)` uint8 RGB.
        to_photo: `(T, 3, 3)`, maps video pixels of each frame to photo pixels.
        outline: None for the background, else the cut-out's shape.
        to_outline: `(T, 3, 3)`, maps video pixels of each frame to the outline's own coordinates.
    """

    image: np.ndarray
    to_photo: np.ndarray
    to_outline: np.ndarray
    outline: Outline | None = None

    def motion(self, start: int, stop: int) -> np.ndarray:
        """Give the `(3, 3)` map from video pixels of frame `start` to the same points in frame `stop`."""
        return np.linalg.solve(self.to_outline[stop], self.to_outline[start])


@dataclass(frozen=True)
class Outline:
    """A smooth closed curve around the origin, r(angle) = radius * (1 + sum of waves).

    Attributes:
        radius: mean radius in video pixels.
        waves: `(n, 2)`: share of the radius and phase of the waves with 2, 3, ... periods a turn.
    """

    radius: float
    waves: np.ndarray

    def depth(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Give how far points lie inside the curve along their radius, in video pixels; below 0 outside.

        More than a pixel outside the curve's circle, the distance to the circle stands in for it.
        """
        distance = np.hypot(x, y)
        out = self.reach - distance
        near = out > -1
        towards = (x[near] + 1j * y[near]) / np.maximum(distance[near], 1e-9)  # exp(i angle)
        reach, turned = np.ones(towards.shape), towards
        for share, phase in self.waves:
            turned = turned * towards  # exp(i k angle)
            reach += share * (turned.real * np.cos(phase) - turned.imag * np.sin(phase))
        out[near] = self.radius * reach - distance[near]
        return out

    @property
    def reach(self) -> float:
        """Radius of a circle that holds the curve."""
        return self.radius * (1 + float(np.abs(self.waves[:, 0]).sum()))


@dataclass(frozen=True)
class Scene:
    """What a synthetic clip shows.

    Attributes:
        name: the background's name.
        layers: the background, then cut-outs, each in front of the ones before.
        frames: number of frames, T.
        size: height and width of the video.
    """

    name: str
    layers: list[Layer]
    frames: int
    size: tuple[int, int]


def make_scene(
    split: str, index: int, random: np.random.Generator, frames: int, size: tuple[int, int], speed: float
) -> Scene:
    """Make up a scene; all choices come from `random`, and the background from `index`: scenes go round those of the
    split. The rest is as for `synthetic_clips`."""
    photos = {"train": TRAIN, "val": VAL}.get(split)
    if photos is None:
        raise ConfigError(f"synthetic split {split!r} is unknown: train or val")
    names = list(photos)
    name = names[index % len(names)]
    camera, to_photo = _background(photo(name), random, frames, size, speed)
    layers = [Layer(_tinted(photo(name), random), to_photo, camera)]
    others = [other for other in names if other != name]
    for _ in range(int(random.integers(1, 4))):
        image = _tinted(photo(others[int(random.integers(len(others)))]), random)
        layers.append(_cutout(image, camera, random, size, speed))
    return Scene(name, layers, frames, size)


def _background(
    image: np.ndarray, random: np.random.Generator, frames: int, size: tuple[int, int], speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move a camera over a photograph so that it never sees the border.

    Returns:
        Two `(T, 3, 3)` maps from video pixels of each frame: to the world, and to the photo.
    """
    height, width = size
    centre = shift((width - 1) / 2, (height - 1) / 2)
    path = _path(random, frames, pan=2.0, turn=0.006, zoom=0.006)
    low, high = np.zeros(2), np.zeros(2)
    for slower in (1.0, 0.7, 0.5, 0.3, 0.1, 0.0):
        camera = pose(path * (speed * slower)) @ np.linalg.inv(centre)  # video -> world, its centre at (0, 0)
        corners = np.array([[-1, -1, 1], [width, -1, 1], [-1, height, 1], [width, height, 1]], float).T
        seen = (camera @ corners)[:, :2]  # (T, 2, 4)
        low, high = seen.min(axis=(0, 2)), seen.max(axis=(0, 2))
        fit = float(min((np.array(image.shape[1::-1]) - 4) / (high - low)))
        if fit >= _MIN_SCALE:
            break
    scale = min(fit, random.uniform(_MIN_SCALE, _MAX_SCALE))
    slack = np.array(image.shape[1::-1]) - 4 - scale * (high - low)
    corner = 1.5 + slack * random.uniform(size=2)
    to_photo = shift(*(corner - scale * low)) @ np.diag([scale, scale, 1.0])  # world -> photo
    return camera, to_photo @ camera


def _cutout(
    image: np.ndarray, camera: np.ndarray, random: np.random.Generator, size: tuple[int, int], speed: float
) -> Layer:
    """Cut a smooth shape out of a photograph and let it cross the view, in the picture half way through."""
    (height, width), frames = size, len(camera)
    radius = random.uniform(0.12, 0.24) * height
    shares = random.uniform(-1, 1, 4) * np.array([0.25, 0.12, 0.08, 0.05])
    outline = Outline(radius, np.stack([shares, random.uniform(0, 2 * np.pi, 4)], axis=1))
    path = _path(random, frames, pan=4.0, turn=0.02, zoom=0.008) * speed
    path -= path[frames // 2]
    middle = camera[frames // 2] @ [*(random.uniform(0.15, 0.85, 2) * (width, height)), 1]
    to_world = shift(*middle[:2]) @ pose(path)  # the outline's coordinates -> world
    to_outline = np.linalg.solve(to_world, camera)
    room = np.array(image.shape[1::-1]) / 2 - 2
    scale = min(random.uniform(_MIN_SCALE, _MAX_SCALE), float(room.min()) / outline.reach)
    corner = room + (room - scale * outline.reach) * random.uniform(-1, 1, 2)
    to_photo = shift(*corner) @ np.diag([scale, scale, 1.0])
    return Layer(image, to_photo @ to_outline, to_outline, outline)


def _path(random: np.random.Generator, frames: int, *, pan: float, turn: float, zoom: float) -> np.ndarray:
    """Make up a smooth path `(T, 4)`: x and y (pixels), angle (radians) and logarithm of the zoom.

    A steady drift of up to `pan`, `turn` and `zoom` a frame, and a sway like that of a hand-held camera of up
    to half as much a frame. Starts at zero.
    """
    t = np.arange(frames)[:, None]
    limits = np.array([pan, pan, turn, zoom])
    drift = limits * random.uniform(-1, 1, 4)
    pace = random.uniform(0.3, 1.1, 4)  # radians a frame
    phase = random.uniform(0, 2 * np.pi, 4)
    sway = 0.5 * limits * random.uniform(0, 1, 4) / pace * np.sin(pace * t + phase)
    path = drift * t + sway
    return path - path[0]


def pose(path: np.ndarray) -> np.ndarray:
    """Turn a path `(T, 4)` into `(T, 3, 3)` maps: zoom and turn about the origin, then shift."""
    x, y, angle, zoom = path.T
    cos, sin = np.exp(zoom) * np.cos(angle), np.exp(zoom) * np.sin(angle)
    zero, one = np.zeros_like(x), np.ones_like(x)
    return np.array([[cos, -sin, x], [sin, cos, y], [zero, zero, one]]).transpose(2, 0, 1)


def shift(x: float, y: float) -> np.ndarray:
    """Give the `(3, 3)` map that adds (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _tinted(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Give a grey photograph a colour cast that changes with brightness; leave a colour one as it is."""
    gammas = np.exp(random.uniform(-0.15, 0.15, 3))
    if not np.array_equal(image[..., 0], image[..., 1]):
        return image
    levels = np.arange(256) / 255
    table = np.rint(255 * levels[:, None] ** gammas).astype(np.uint8)  # (256, 3)
    return table[image[..., 0]]
