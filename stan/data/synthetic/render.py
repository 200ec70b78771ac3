"""Rendering of scenes: anti-aliased frames, and the true motion and occlusion of every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stan.data.clips import TensorClip
from stan.data.synthetic.scene import Layer, Scene

_SUB = 3  # samples a pixel and direction


@dataclass(frozen=True)
class SyntheticClip:
    """A rendered scene with its truth.

    The flow of a pixel is that of the layer in front at its centre; pixels on an edge show two layers.

    Attributes:
        name: the sequence's name.
        frames: `(T, 3, H, W)` uint8.
        forward: `(T, 2, H, W)` float32, (dx, dy) in pixels to where the point is in the next frame; zero in the last.
        backward: the same to the frame before; zero in the first.
        occluded_forward: `(T, H, W)` bool: the point is hidden or out of the picture in the next frame; true
            in the last.
        occluded_backward: the same for the frame before; true in the first.
    """

    name: str
    frames: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor
    occluded_forward: torch.Tensor
    occluded_backward: torch.Tensor

    @property
    def clip(self) -> TensorClip:
        """The frames as a `Clip`."""
        return TensorClip(self.name, self.frames)


def render(scene: Scene, name: str) -> SyntheticClip:
    """Render a scene.

    Each pixel is the mean of 3 x 3 samples, as a sensor collects light over its area; samples are
    interpolated bicubically. Brightness is constant along the motion but for that.
    """
    frames = torch.stack([_frame(scene, t) for t in range(scene.frames)])
    forward, hidden_forward = _truth(scene, +1)
    backward, hidden_backward = _truth(scene, -1)
    return SyntheticClip(name, frames, forward, backward, hidden_forward, hidden_backward)


def _frame(scene: Scene, t: int) -> torch.Tensor:
    """Render frame t, `(3, H, W)` uint8."""
    height, width = scene.size
    canvas = np.empty((0, 0, 3), np.float32)
    for layer in scene.layers:
        if layer.outline is None:
            canvas = _sample(layer, t, 0, 0, width, height)
            continue
        left, top, right, bottom = _box(layer, t, scene.size)
        if right <= left or bottom <= top:
            continue
        x, y = _through(layer.to_outline[t], *_grid(left, top, right, bottom))
        alpha = np.clip(layer.outline.depth(x, y) * _SUB + 0.5, 0, 1)[..., None].astype(np.float32)
        part = canvas[top * _SUB : bottom * _SUB, left * _SUB : right * _SUB]
        part += alpha * (_sample(layer, t, left, top, right, bottom) - part)
    mean = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.rint(mean.clip(0, 255)).astype(np.uint8).transpose(2, 0, 1).copy())


def _grid(left: int, top: int, right: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the sample points of a box of pixels: x `(1, w * 3)` and y `(h * 3, 1)`."""
    x = (np.arange(left * _SUB, right * _SUB) + 0.5) / _SUB - 0.5
    y = (np.arange(top * _SUB, bottom * _SUB) + 0.5) / _SUB - 0.5
    return x[None, :], y[:, None]


def _sample(layer: Layer, t: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Sample a layer's photo over a box of pixels: `(h * 3, w * 3, 3)` float32."""
    x, y = _through(layer.to_photo[t], *_grid(left, top, right, bottom))
    # Only the part of the photo that the box shows: the photo may be large, the box small.
    full_height, full_width = layer.image.shape[:2]
    x0, x1 = max(0, int(x.min()) - 3), min(full_width, int(x.max()) + 4)
    y0, y1 = max(0, int(y.min()) - 3), min(full_height, int(y.max()) + 4)
    part = torch.from_numpy(layer.image[y0:y1, x0:x1].copy()).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    # grid_sample takes exact positions; OpenCV's warps round them to 1/32 pixel.
    grid = np.stack([(x - x0 + 0.5) * 2 / (x1 - x0) - 1, (y - y0 + 0.5) * 2 / (y1 - y0) - 1], axis=-1)
    out = F.grid_sample(
        part,
        torch.from_numpy(grid[None].astype(np.float32)),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return out[0].permute(1, 2, 0).contiguous().numpy()


def _box(layer: Layer, t: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give the pixels that a cut-out may touch in frame t: left, top, right, bottom."""
    assert layer.outline is not None
    back = np.linalg.inv(layer.to_outline[t])
    x, y = back[:2, 2]
    reach = (layer.outline.reach + 1) * np.hypot(back[0, 0], back[1, 0]) + 1
    height, width = size
    left, right = max(0, int(np.floor(x - reach))), min(width, int(np.ceil(x + reach)) + 1)
    top, bottom = max(0, int(np.floor(y - reach))), min(height, int(np.ceil(y + reach)) + 1)
    return left, top, right, bottom


def _through(affine: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map points by a `(3, 3)` affine matrix, or by one for each of them, `(H, W, 3, 3)`."""
    (a, b, c), (d, e, f), _ = np.moveaxis(affine, (-2, -1), (0, 1))
    return a * x + b * y + c, d * x + e * y + f


def _front(scene: Scene, t: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Give the index of the layer in front at points of frame t."""
    front = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.int64)
    for index, layer in enumerate(scene.layers):
        if layer.outline is not None:
            front[layer.outline.depth(*_through(layer.to_outline[t], x, y)) > 0] = index
    return front


def _truth(scene: Scene, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give flow and occlusion from each frame to the next (step 1) or the one before (step -1)."""
    height, width = scene.size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    flow = np.zeros((scene.frames, 2, height, width), np.float32)
    hidden = np.ones((scene.frames, height, width), bool)
    for t in range(scene.frames):
        if not 0 <= t + step < scene.frames:
            continue
        front = _front(scene, t, x, y)
        moves = np.stack([layer.motion(t, t + step) for layer in scene.layers])[front]  # (H, W, 3, 3)
        to_x, to_y = _through(moves, x, y)
        flow[t] = np.stack([to_x - x, to_y - y])
        inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        hidden[t] = ~inside | (_front(scene, t + step, to_x, to_y) != front)
    return torch.from_numpy(flow), torch.from_numpy(hidden)
