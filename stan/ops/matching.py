"""The search of the reference: windows around predicted matches, scored and selected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .geometry import anchor, window_of
from .pixels import Grid, Images, by_query, chunks_of, patch_pixels, recomputed
from .types import Matches, RefineSpec, SearchSpec


def search_windows(
    query: Tensor,
    key: Tensor,
    displacement: Tensor,
    frames: Tensor,
    spec: SearchSpec | RefineSpec,
    grid: Grid,
) -> Matches:
    """The best candidates in windows around P predicted matches: (B, HD, T, Hq, Wq, P, 2) and (..., P)."""
    work = _Search(Images.of(query, spec.heads), Images.of(key, spec.heads), grid, spec, key.shape[1])
    windows = by_query(displacement, frames)
    with torch.no_grad():
        chunks = chunks_of(spec.window**2 * (work.numbers_per_position + 2 * frames.shape[-1]), *windows)
        found = [torch.cat(parts) for parts in zip(*(work.select(*chunk) for chunk in chunks))]
    scores, offsets, found_frames, places = found
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, displacement)):
        chunks = chunks_of(places.shape[1] * work.numbers_per_position, *windows, places)
        again = [torch.cat(parts) for parts in zip(*recomputed(work.score, chunks))]
        scores, offsets = _GradientOf.apply(scores, again[0]), _GradientOf.apply(offsets, again[1])
    matches = places.shape[1]
    return Matches(
        scores.reshape(*grid.shape, matches),
        offsets.reshape(*grid.shape, matches, 2),
        found_frames.reshape(*grid.shape, matches),
    )


@dataclass(frozen=True)
class _Search:
    """One search: where candidates lie, how they score, which are kept."""

    query: Images
    key: Images
    grid: Grid
    spec: SearchSpec | RefineSpec
    clip: int  # frames of the key

    @property
    def numbers_per_position(self) -> int:
        """Numbers held at once for each scored position: its channels, and its taps with their weights."""
        return self.key.rows.shape[1] + 8

    def select(self, number: Tensor, shift: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score all candidates of n queries and keep the best.

        Returns scores (n, K), offsets (n, K, 2), frames (n, K), and places (n, K): the candidate's index in
        order of (window, row, column), or -1 for a place left empty.
        """
        spec, side = self.spec, self.spec.window
        image, x, y = self.grid.locate(number)
        valid_frame = (frame >= 0) & (frame < self.clip)
        scores, valid, anchors = [], [], []
        columns = torch.arange(side, device=number.device)  # (ws,)
        for p in range(frame.shape[1]):
            px, in_x, begin_x = self.positions(x, shift[:, p, None, 0], columns, self.key.width)  # (n, ws)
            py, in_y, begin_y = self.positions(y, shift[:, p, None, 1], columns, self.key.height)
            searched = self.grid.searched(image, frame[:, p], self.clip)
            scored = self.similarity(
                image, x, y, searched[:, None, None], px[:, None, :], py[:, :, None], tight=True
            )
            scores.append(scored.flatten(1))  # (n, ws*ws)
            valid.append((in_y[:, :, None] & in_x[:, None, :] & valid_frame[:, p, None, None]).flatten(1))
            anchors.append(-begin_y * side - begin_x)  # (n, 1)
        places = best_places(scores, valid, anchors, spec)  # (n, K)
        best = torch.cat(scores, dim=1).gather(1, places.clamp(min=0)).masked_fill(places < 0, -math.inf)
        offsets = self.offsets(x, y, *self.positions_of(x, y, shift, places), places)
        return best, offsets, self.frames_of(frame, places).masked_fill(places < 0, -1), places

    def score(self, number: Tensor, shift: Tensor, frame: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, K) and offsets (n, K, 2) of the selected candidates, for autograd."""
        image, x, y = self.grid.locate(number)
        px, py = self.positions_of(x, y, shift, places)  # (n, K)
        searched = self.grid.searched(image[:, None], self.frames_of(frame, places), self.clip)
        scores = self.similarity(image, x, y, searched, px, py, empty=places < 0).masked_fill(places < 0, 0.0)
        return scores, self.offsets(x, y, px, py, places)

    def positions(
        self, start: Tensor, shift: Tensor, place: Tensor, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Along one axis: positions of window places, which are inside, and where the window begins."""
        step = self.spec.key_stride
        centre = anchor(start[:, None].to(shift.dtype), shift, length)  # (n, 1 or K)
        begin, low, high = window_of(centre.detach(), step, self.spec.window, length, self.spec.slide)
        steps = begin + place
        return centre + step * steps.to(centre.dtype), (steps >= low) & (steps <= high), begin

    def positions_of(self, x: Tensor, y: Tensor, shift: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Positions x and y (n, K) of candidates known by their places."""
        side = self.spec.window
        parent = places.clamp(min=0) // side**2
        chosen = shift.gather(1, parent[:, :, None].expand(-1, -1, 2))  # (n, K, 2)
        px, _, _ = self.positions(x, chosen[..., 0], places.clamp(min=0) % side, self.key.width)
        py, _, _ = self.positions(y, chosen[..., 1], places.clamp(min=0) % side**2 // side, self.key.height)
        return px, py

    def frames_of(self, frame: Tensor, places: Tensor) -> Tensor:
        return frame.gather(1, places.clamp(min=0) // self.spec.window**2)

    def offsets(self, x: Tensor, y: Tensor, px: Tensor, py: Tensor, places: Tensor) -> Tensor:
        offsets = torch.stack([px - x[:, None], py - y[:, None]], dim=-1)  # (n, K, 2)
        return offsets.masked_fill((places < 0)[..., None], 0.0)

    def similarity(
        self,
        image: Tensor,
        x: Tensor,
        y: Tensor,
        searched: Tensor,
        px: Tensor,
        py: Tensor,
        tight: bool = False,
        empty: Tensor | None = None,
    ) -> Tensor:
        """Scores (n, ...) of the key positions (px, py) for the queries (n,), over patch and channels."""
        total = px.new_zeros(())
        for shift in patch_pixels(self.spec.patch, self.spec.dilation):
            q = self.query.read(image, x + shift[0], y + shift[1])  # (n, C)
            k = self.key.sums(*self.key.taps(searched, px, py, shift, tight, empty))  # (n, ..., C)
            q = q.reshape(len(q), *[1] * (k.dim() - 2), q.shape[1])
            total = total + ((q * k).sum(-1) if self.spec.metric == "dot" else -(q - k).square().sum(-1))
        return total


def best_places(
    scores: list[Tensor], valid: list[Tensor], anchors: list[Tensor], spec: SearchSpec | RefineSpec
) -> Tensor:
    """Places (n, K) of the best candidates, as in `Matches`: from all windows together, or from each.

    `scores` and `valid` hold (n, ws*ws) for each window; `anchors` (n, 1) the place of its anchor, in the first window
    the query's own position.
    """
    each = isinstance(spec, SearchSpec) and spec.select == "each"
    self_match = spec.self_match if isinstance(spec, SearchSpec) else "keep"
    if self_match == "exclude":
        valid[0].scatter_(1, anchors[0], False)
    if not each:
        scores, valid = [torch.cat(scores, dim=1)], [torch.cat(valid, dim=1)]
    places = []
    for p, window in enumerate(zip(scores, valid)):
        leads = self_match == "anchors" or (self_match == "first" and p == 0)
        inside = _best(*window, spec.topk, anchors[p] if leads else None)
        places.append(torch.where(inside < 0, -1, inside + p * spec.window**2))
    return torch.cat(places, dim=1)


def _best(scores: Tensor, valid: Tensor, topk: int, first: Tensor | None) -> Tensor:
    """Places (n, topk) of the best of (n, M) scores, -1 where no valid one is left.

    Numbers rank above NaN, and NaN above what is not valid; ties go to the lower index, as argmax has it.
    `first` is taken before all others.
    """
    bottom = torch.finfo(scores.dtype).min
    rank = torch.where(scores.isnan(), bottom, scores.clamp(min=bottom * (1 - 2**-20)))
    rank = rank.masked_fill(~valid, -math.inf)
    places = []
    for k in range(topk):
        place = first if first is not None and k == 0 else rank.argmax(dim=1, keepdim=True)
        places.append(torch.where(rank.gather(1, place) == -math.inf, -1, place))
        rank.scatter_(1, place, -math.inf)
    return torch.cat(places, dim=1)


class _GradientOf(torch.autograd.Function):
    """The value of one tensor, with the gradient of another that equals it up to rounding."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, same: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
