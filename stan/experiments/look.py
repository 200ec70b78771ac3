"""What attention looks at: the matches of chosen points, the windows searched, the flow, and its correction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stan import ops
from stan.errors import StanError
from stan.evaluation.measure import levels
from stan.flow import FlowPair
from stan.models import AttentionMap, Stan, VideoDenoiser
from stan.models.two_pass import TwoPass
from stan.ops.geometry import slot_frames

Picture = NDArray[np.uint8]
Point = tuple[int, int]
"""(x, y) in pixels of the video."""

COLOURS = ((255, 196, 0), (0, 200, 255), (255, 90, 160), (120, 230, 80), (190, 140, 255), (255, 130, 50))
_PAPER, _INK, _GAP, _HEAD = (250, 249, 247), (32, 30, 28), 8, 24


@dataclass(frozen=True)
class Looked:
    """Where one attention block looked.

    Attributes:
        clean: `(T, 3, H, W)`, the network's output.
        seen: weights, offsets and frames of the matches.
        predicted: `(T, W_t, h, w, 2)`, where the flow points, in pixels of the video; slot 0 is the frame itself.
        slots: of each frame, the frames searched, in the order of `predicted`.
        window: side of the search window, in pixels of the video.
    """

    clean: Tensor
    seen: AttentionMap
    predicted: Tensor
    slots: list[list[int]]
    window: float

    def matches(self, t: int, point: Point) -> Iterator[tuple[int, tuple[float, float], float]]:
        """The matches of a point of frame t, all heads: frame, place in pixels of the video, weight."""
        s = self.seen.scale
        x, y = point[0] // s, point[1] // s
        at = (0, slice(None), t, y, x)
        heads = self.seen.weights.shape[1]
        weights, frames = self.seen.weights[at].flatten(), self.seen.frames[at].flatten()
        for weight, offset, frame in zip(weights, self.seen.offsets[at].flatten(0, 1) * s, frames):
            if int(frame) >= 0:
                place = (point[0] + float(offset[0]), point[1] + float(offset[1]))
                yield int(frame), place, float(weight) / heads

    def anchors(self, t: int, point: Point) -> Iterator[tuple[int, tuple[float, float]]]:
        """Where the flow points from a point of frame t: frame and place, the middle of the searched window."""
        s = self.seen.scale
        for slot, frame in enumerate(self.slots[t]):
            if frame >= 0:
                dx, dy = self.predicted[t, slot, point[1] // s, point[0] // s].tolist()
                yield frame, (point[0] + dx, point[1] + dy)

    def fields(self, t: int) -> tuple[Tensor, Tensor]:
        """The flow to the first other frame searched and its correction by the best match there, `(h, w, 2)` each, in
        pixels of the video; first head."""
        other = self.slots[t][1]
        here = self.seen.frames[0, 0, t] == other  # (h, w, K)
        best = torch.where(here, self.seen.weights[0, 0, t], -1.0).argmax(-1)[..., None, None]
        offset = self.seen.offsets[0, 0, t].take_along_dim(best, -2)[..., 0, :] * self.seen.scale
        flow = self.predicted[t, 1]
        return flow, torch.where(here.any(-1)[..., None], offset - flow, 0.0)


def frames_needed(model: VideoDenoiser) -> int:
    """The frames of the shortest clip in which `look` can show where a network looks."""
    return max(2, model.temporal_reach + 1 if model.causal else 2 * model.temporal_reach + 1)


@torch.no_grad()
def look(model: VideoDenoiser, video: Tensor, sigma: float | None, block: str | None = None) -> Looked:
    """Run a network and say where one of its attention blocks looked.

    Args:
        model: `stan_*` or `unet_*`, in eval mode.
        video: `(T, 3, H, W)`; cut at the bottom and right to what the network takes without padding.
        sigma: noise level, 8-bit units.
        block: name of the block; None: the first.

    Raises:
        StanError: a network that does not attend, a clip that is too short or small, an unknown block.
    """
    h, w = (side // model.multiple * model.multiple for side in video.shape[-2:])
    least = frames_needed(model)
    if not h or not w or len(video) < least:
        raise StanError(
            f"the network needs {least} frames of at least {model.multiple}x{model.multiple} pixels, got {len(video)} "
            f"of {video.shape[-1]}x{video.shape[-2]}; a smaller temporal window needs fewer frames"
        )
    noisy = video[None, ..., :h, :w].contiguous()
    if isinstance(model, TwoPass):
        flow = model.source(model.flow_view(noisy, model.estimates(noisy, sigma)[0]))
    else:
        zero = torch.zeros(1, len(video), 2, h, w)
        flow = model.source(noisy) if model.needs_flow() else FlowPair(zero, zero)
    clean, maps = model(noisy, None if model.blind else sigma, flow=flow, return_matches=True)
    names = [seen.block for seen in maps]
    if not maps or (block is not None and block not in names):
        raise StanError(
            f"{model.name} has no attention block {block or ''}; it has {', '.join(names) or 'none'}"
        )
    seen = maps[names.index(block)] if block else maps[0]
    predicted, window = _predicted(model, flow, seen)
    itself = torch.zeros_like(predicted[:, :1])
    slots = slot_frames(len(video), model.temporal_reach, model.causal)
    return Looked(clean[0], seen, torch.cat([itself, predicted], 1), slots, window)


def _predicted(model: VideoDenoiser, flow: FlowPair, seen: AttentionMap) -> tuple[Tensor, float]:
    """The displacements `(T, W_t-1, h, w, 2)` around which the block searched, as the network computes them, and the
    side of its windows; both in pixels of the video."""
    s = seen.scale
    if isinstance(model, TwoPass):
        found = model.merge.follow(*flow)  # in pixels of the video already
        window = (model.settings["window"] - 1) * model.settings["key_stride"] + 1
    elif isinstance(model, Stan):
        size = (seen.weights.shape[3], seen.weights.shape[4])
        smaller = (ops.rescale_flow(f, size) for f in flow)
        found = ops.search_flow(*smaller, temporal_window=model.temporal_reach, causal=model.causal) * s
        window = model.plan.window * s
    else:
        raise StanError(f"the network {model.name} does not say where it searches: stan_* and unet_* do")
    return found[0].movedim(2, -1), window


def picture(video: Tensor, looked: Looked, t: int, points: Sequence[Point]) -> Picture:
    """Frame t and the frames it searches, with each point's matches (discs, larger for more weight), where flow points
    (cross), and the searched window (square); below, the flow and its correction in colours.

    Args:
        video: `(T, 3, H, W)`, as given to `look`.
        looked: what `look` gave.
        t: frame of the points.
        points: in pixels.
    """
    h, w = looked.clean.shape[-2:]
    zoom = max(1, min(4, 360 // w))
    frames = sorted(frame for frame in looked.slots[t] if frame >= 0)
    panels = []
    for frame in frames:
        panel = _enlarged(video[frame, :, :h, :w], zoom)
        for number, point in enumerate(points):
            _draw(panel, looked, t, frame, point, COLOURS[number % len(COLOURS)], zoom)
        panels.append(_titled(panel, f"frame {frame}" + (", the queries" if frame == t else "")))
    flow, correction = looked.fields(t)
    other = looked.slots[t][1]
    below = [_titled(_enlarged(looked.clean[t], zoom), "denoised")]
    for field, words in ((flow, f"flow to frame {other}"), (correction, "its correction")):
        largest = max(1.0, float(field.norm(dim=-1).flatten().quantile(0.99)))
        coloured = cv2.resize(colours(field, largest), (w * zoom, h * zoom), interpolation=cv2.INTER_NEAREST)
        panel = np.ascontiguousarray(coloured)
        panel[4:52, 4:52] = wheel(48)
        below.append(_titled(panel, f"{words}: rim of the wheel {largest:.1f} px"))
    return _stacked([_row(panels), _row(below)])


def colours(field: Tensor, largest: float) -> Picture:
    """Displacements `(h, w, 2)` as colours: the direction is the hue, the length the strength; white is none."""
    x, y = field.double().cpu().numpy().transpose(2, 0, 1)
    hue = (np.degrees(np.arctan2(y, x)) % 360).astype(np.float32)
    strength = np.clip(np.hypot(x, y) / largest, 0, 1).astype(np.float32)
    hsv = np.stack([hue, strength, np.ones_like(hue)], -1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round().astype(np.uint8)


def wheel(side: int) -> Picture:
    """The legend of `colours`: each place shows the colour of the displacement that points there from the middle."""
    steps = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    picture = colours(torch.stack([x, y], -1), 1.0)
    picture[(x.square() + y.square() > 1).numpy()] = _PAPER
    return picture


def default_points(size: tuple[int, int]) -> list[Point]:
    """Three points across the middle of a frame of height and width `size`."""
    h, w = size
    return [(w // 4, h // 2), (w // 2, h // 3), (3 * w // 4, 2 * h // 3)]


def _draw(
    panel: Picture, looked: Looked, t: int, frame: int, point: Point, colour: tuple[int, int, int], zoom: int
) -> None:
    def at(place: tuple[float, float]) -> tuple[int, int]:
        return round((place[0] + 0.5) * zoom), round((place[1] + 0.5) * zoom)

    for there, place in looked.anchors(t, point):
        if there == frame:
            half = looked.window / 2
            corners = [at((place[0] + sign * half, place[1] + sign * half)) for sign in (-1, 1)]
            cv2.rectangle(panel, corners[0], corners[1], colour, 1, cv2.LINE_AA)
            if frame != t:
                cv2.line(panel, at(point), at(place), colour, 1, cv2.LINE_AA)
                cv2.drawMarker(panel, at(place), colour, cv2.MARKER_TILTED_CROSS, 7, 1, cv2.LINE_AA)
    for there, place, weight in looked.matches(t, point):
        if there == frame:
            radius = max(1, round(6 * weight**0.5))
            cv2.circle(panel, at(place), radius + 1, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(panel, at(place), radius, colour, -1, cv2.LINE_AA)
    if frame == t:
        cv2.circle(panel, at(point), 11, colour, 2, cv2.LINE_AA)


def _enlarged(frame: Tensor, zoom: int) -> Picture:
    picture = levels(frame).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(picture.repeat(zoom, 0).repeat(zoom, 1))


def _titled(panel: Picture, words: str) -> Picture:
    head = np.full((_HEAD, panel.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(head, words, (2, _HEAD - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return np.concatenate([head, panel])


def _row(panels: Sequence[Picture]) -> Picture:
    gap = np.full((panels[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], 1)


def _stacked(rows: Sequence[Picture]) -> Picture:
    """Rows under each other, of one even width and height, as video wants it."""
    width = max(row.shape[1] for row in rows)
    parts = [np.pad(r, ((0, _GAP), (0, width - r.shape[1]), (0, 0)), constant_values=_PAPER[0]) for r in rows]
    whole = np.concatenate(parts)
    return np.ascontiguousarray(whole[: len(whole) // 2 * 2, : width // 2 * 2])
