"""One alignment: flow, search around it, the clean neighbour warped by what was found, and how good that is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stan import ops
from stan.experiments.alignment.sequences import Truth
from stan.experiments.cost import measured
from stan.flow import FlowPair
from stan.models.merge import LEAST_VARIANCE, SIGNIFICANT

BINS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, math.inf)
"""Edges of the classes of motion, pixels a frame."""

NEAR = 1.0
"""A match is that of the exhaustive search if it is no further from it along either axis, pixels: the shifted search's
candidates lie at fractions of a pixel, those of the exhaustive one at whole ones."""


@dataclass(frozen=True)
class Search:
    """How matches are looked for.

    Attributes:
        window: ws; 1 is the flow alone.
        patch: ps.
        stride: pixels between queries; what is found holds for the pixels around one.
        tested: take a match only where the mean squared difference falls by more than `SIGNIFICANT` variances
            of the noise, as the two-pass networks do.
        variance: of the noise, in units of the video.
    """

    window: int
    patch: int
    stride: int = 1
    tested: bool = False
    variance: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """Displacements from every frame to its neighbour: to the next (`step` 1) or the previous one (-1).

    Attributes:
        step: 1 or -1.
        offsets: `(1, 1, T, H, W, 1, 2)`.
        frames: `(1, 1, T, H, W, 1)` int32; -1 where there is no neighbour.
    """

    step: int
    offsets: Tensor
    frames: Tensor

    @property
    def valid(self) -> slice:
        """The frames that have such a neighbour."""
        return slice(0, -1) if self.step == 1 else slice(1, None)


def pairs_of(flow: FlowPair) -> list[Pairs]:
    """Both directions of `(1, T, 2, H, W)` flows as matches."""
    found = []
    for step, field in zip((1, -1), flow):
        _, t, _, h, w = field.shape
        frames = torch.arange(t, dtype=torch.int32) + step
        frames = torch.where((frames >= 0) & (frames < t), frames, -1)
        offsets = field.permute(0, 1, 3, 4, 2)[:, None, ..., None, :]
        found.append(
            Pairs(step, offsets.contiguous(), frames.view(1, 1, t, 1, 1, 1).expand(1, 1, t, h, w, 1))
        )
    return found


def searched(video: Tensor, starts: list[Pairs], search: Search) -> list[Pairs]:
    """The best match around each displacement in the next and the previous frame. No window slides, as in the paper.

    Args:
        video: `(1, T, 3, H, W)`, searched in itself; T at least 3.
        starts: where the windows lie, to the next frame and to the previous one.
        search: how.
    """
    if search.window == 1:
        return starts
    s = search.stride
    found, predicted = _moved(video, starts, search, search.window)
    if search.tested:
        stayed, _ = _moved(video, starts, search, 1)
        pixels = video.shape[2] * search.patch**2
        better = (found.scores - stayed.scores) / pixels > SIGNIFICANT * (search.variance + LEAST_VARIANCE)
        found = found._replace(offsets=torch.where(better[..., None], found.offsets, predicted))
    # (1, T, Hq, Wq, 3, 2): of the frame itself and its two neighbours
    moved = (found.offsets - predicted)[:, 0]
    ahead, behind = moved[..., 1, :], moved[..., 2, :].clone()
    behind[:, -1] = moved[:, -1, ..., 1, :]  # the last frame's only neighbour stands first
    result = []
    for start, correction in zip(starts, (ahead, behind)):
        h, w = start.offsets.shape[3:5]
        if s > 1:
            correction = correction.repeat_interleave(s, 2).repeat_interleave(s, 3)[:, :, :h, :w]
        result.append(Pairs(start.step, start.offsets + correction[:, None, ..., None, :], start.frames))
    return result


def _moved(video: Tensor, starts: list[Pairs], search: Search, window: int) -> tuple[ops.Matches, Tensor]:
    """One match in each searched frame, and the displacements around which they were searched."""
    s = search.stride
    ahead, behind = (pairs.offsets[:, 0, :, ::s, ::s, 0] for pairs in starts)  # (1, T, Hq, Wq, 2)
    none = torch.zeros_like(ahead[:, :1])
    first = torch.cat([ahead[:, :-1], behind[:, -1:]], 1)
    second = torch.cat([none, behind[:, 1:-1], none], 1)  # at the ends it is two frames away, and is not used
    displacement = torch.stack([first, second], 2).movedim(-1, 3)  # (1, T, 2, 2, Hq, Wq)
    found = ops.shifted_nls(
        video, video, displacement.contiguous(), window=window, topk=1, temporal_window=1, patch=search.patch,
        stride=s, select="each", slide=False,
    )  # fmt: skip
    predicted = torch.stack([torch.zeros_like(first), first, second], -2)[:, None]  # (1, 1, T, Hq, Wq, 3, 2)
    return found, predicted


def warped(clean: Tensor, pairs: Pairs, averaging: int) -> Tensor:
    """The neighbours of `(1, T, 3, H, W)` brought into place; with `averaging` P > 1 as overlapping P x P patches,
    whose mean is taken."""
    ones = torch.ones(pairs.frames.shape)
    return ops.gather(clean, ones, pairs.offsets, pairs.frames.contiguous(), patch=averaging)


def errors(clean: Tensor, pairs: list[Pairs], motion: list[Pairs], averaging: int) -> dict[str, Any]:
    """How far the warped neighbours are from the clean frames.

    Returns:
        `psnr`: mean over pairs of frames, dB; `squares` and `pixels`: sum of squared errors and number of values
        in each class of motion.
    """
    psnr, squares, counts = [], torch.zeros(len(BINS) - 1), torch.zeros(len(BINS) - 1)
    edges = torch.tensor(BINS[1:-1])
    for found, true in zip(pairs, motion):
        error = (warped(clean, found, averaging) - clean).square().mean(2)[0, found.valid]  # (T-1, H, W)
        psnr += (-10 * error.flatten(1).mean(1).clamp(min=1e-12).log10()).tolist()
        speed = true.offsets.norm(dim=-1)[0, 0, found.valid, ..., 0]
        place = torch.bucketize(speed, edges, right=True).flatten()
        squares.index_add_(0, place, error.flatten())
        counts.index_add_(0, place, torch.ones_like(error).flatten())
    return {"psnr": sum(psnr) / len(psnr), "squares": squares.tolist(), "pixels": counts.tolist()}


def mean_motion(motion: list[Pairs]) -> float:
    """Mean length of the displacements, pixels a frame."""
    return float(torch.cat([m.offsets.norm(dim=-1)[0, 0, m.valid] for m in motion]).mean())


def end_point_error(pairs: list[Pairs], truth: Truth) -> float:
    """Mean distance from the true place over points that are visible there, pixels."""
    distance = [
        (found.offsets - true.offsets).norm(dim=-1)[0, 0, ..., 0][seen]
        for found, true, seen in zip(pairs, pairs_of(truth.flow), truth.seen)
    ]
    return float(torch.cat(distance).mean())


def recall(pairs: list[Pairs], exhaustive: list[Pairs]) -> float:
    """Share of the queries whose match is that of the exhaustive search (see `NEAR`)."""
    hits = [
        ((a.offsets - b.offsets).abs().amax(-1) <= NEAR)[0, 0, a.valid].float()
        for a, b in zip(pairs, exhaustive)
    ]
    return float(torch.cat(hits).mean())


def measure(
    clean: Tensor,
    seen: Tensor,
    flow: FlowPair,
    motion: FlowPair,
    searches: Iterable[Search],
    *,
    averaging: int,
    truth: Truth | None = None,
    exhaustive: int = 0,
) -> list[dict[str, Any]]:
    """Figures of several searches around one flow.

    Args:
        clean: `(1, T, 3, H, W)`, what is warped.
        seen: `(1, T, 3, H, W)`, what is searched.
        flow: where the windows lie.
        motion: for the classes of motion.
        searches: windows in any order.
        averaging: side of the patches that are warped in the second of the two figures.
        truth: for the end-point error.
        exhaustive: window of the exhaustive search around no displacement, for the recall; 0: none.

    Returns:
        one row a search.
    """
    starts, real = pairs_of(flow), pairs_of(motion)
    whole: list[Pairs] = []
    rows = []
    for search in searches:
        if exhaustive and not whole:
            still = pairs_of(FlowPair(*(torch.zeros_like(f) for f in flow)))
            everywhere = Search(exhaustive, search.patch)
            whole = searched(seen, still, everywhere)
        with measured() as cost:
            found = searched(seen, starts, search)
        averaged, single = (errors(clean, found, real, patch) for patch in (averaging, 1))
        pixels = sum(single["pixels"])
        row = {
            "window": search.window,
            "psnr_averaged": averaged["psnr"],
            "psnr_single": single["psnr"],
            "motion": mean_motion(real),
            "seconds_a_megapixel": cost.seconds / pixels * 1e6 if search.window > 1 else 0.0,
            "peak_bytes_a_pixel": cost.peak / pixels if cost.peak is not None and search.window > 1 else None,
            "squares_averaged": averaged["squares"],
            "squares_single": single["squares"],
            "pixels": single["pixels"],
        }
        if truth is not None:
            row["end_point_error"] = end_point_error(found, truth)
        if whole:
            row["recall"] = recall(found, whole)
        rows.append(row)
    return rows
