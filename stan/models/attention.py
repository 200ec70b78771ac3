"""Space-time attention with matches from the Shifted Non-Local Search, and the variants of its alignment."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan import ops
from stan.errors import ConfigError
from stan.models.base import AttentionMap
from stan.models.blocks import channels_last
from stan.ops.geometry import slot_frames
from stan.registry import alignments
from stan.settings import above, at_least

FAR = 1e3
"""Value of the features of frames that are none: no true place is as unlike any other."""


@dataclass(frozen=True)
class Search:
    """What a network asks of an attention variant.

    Attributes:
        heads: HD.
        key_channels: channels of query and key a head.
        window: ws, side of the search window.
        temporal_window: wt, frames each side.
        search_matches: K of the first search.
        refine_window: wr, side of the window around each earlier match in the later blocks; 1 scores anew.
        patch: ps, side of the compared patches.
        select: "all" or "each", see `stan.ops.shifted_nls`.
        causal: no frame looks ahead.
    """

    heads: int
    key_channels: int
    window: int
    temporal_window: int
    search_matches: int
    refine_window: int
    patch: int
    select: Literal["all", "each"]
    causal: bool


class Alignment(nn.Module):
    """Decides where the queries of an attention block look. Only this differs between the attention variants.

    A stage of attention blocks calls it once a block. The first call gets no `earlier` matches; its result is
    handed, detached, to the later ones. A variant is registered in `stan.registry.alignments`; its keyword-only
    arguments are settings of its own, `attention_settings` of the network.

    A clip shorter than W_t comes filled up with frames whose features are `FAR` from all others, by any distance;
    what is found in them is left out afterwards. An alignment that compares otherwise has to keep off them by itself.

    Args:
        search: what the network asks for.
    """

    uses_flow = True

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.plan = search

    def forward(
        self, query: Tensor, key: Tensor, flow: Tensor | None, earlier: ops.Matches | None
    ) -> ops.Matches:
        """Find the matches, best first.

        Args:
            query: `(B, T, HD*C, H, W)`.
            key: the same.
            flow: `(B, T, W_t-1, 2, H, W)` displacements to the other searched frames, or None when the
                variant does not use them.
            earlier: what the first block of this stage found.
        """
        raise TypeError(f"{type(self).__name__} is an Alignment without a forward() method")


@alignments.register("shifted")
class Shifted(Alignment):
    """Search around where the flow points; later blocks refine what the first one found."""

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        s = search
        self.find = ops.ShiftedNLS(
            window=s.window,
            temporal_window=s.temporal_window,
            topk=s.search_matches,
            heads=s.heads,
            patch=s.patch,
            select=s.select,
            causal=s.causal,
        )
        self.refine = ops.Refine(window=s.refine_window, heads=s.heads, patch=s.patch)

    def forward(
        self, query: Tensor, key: Tensor, flow: Tensor | None, earlier: ops.Matches | None
    ) -> ops.Matches:
        """See `Alignment.forward`."""
        if earlier is not None:
            return self.refine(query, key, earlier.offsets, earlier.frames)
        return self.find(query, key, flow)


@alignments.register("unshifted")
class Unshifted(Shifted):
    """The same search around the query's own position: the plain non-local search."""

    uses_flow = False

    def forward(
        self, query: Tensor, key: Tensor, flow: Tensor | None, earlier: ops.Matches | None
    ) -> ops.Matches:
        """See `Alignment.forward`."""
        return super().forward(query, key, None, earlier)


@alignments.register("deformable")
class Deformable(Alignment):
    """Guided deformable attention: a small network predicts where to look around the flow; nothing is searched.

    In each searched frame it predicts an even share of `search_matches` places (9 for 27 matches in 3 frames),
    from the query's features, the key's features where the flow points, and the flow. All of them are used.

    Args:
        search: what the network asks for.
        hidden: channels inside the small network.
        reach: how far from the flow a place may lie, in pixels of the level; null: as far as the search window does.
    """

    def __init__(
        self,
        search: Search,
        *,
        hidden: Annotated[int, at_least(1)] = 32,
        reach: Annotated[float, above(0)] | None = None,
    ) -> None:
        super().__init__(search)
        s = search
        self.points = share_of(s)
        self.reach = max(1.0, s.window // 2) if reach is None else reach
        self.rescore = ops.Refine(window=1, heads=s.heads, patch=s.patch)
        self.again = ops.Refine(window=s.refine_window, heads=s.heads, patch=s.patch)
        self.predict = nn.Sequential(
            nn.Conv2d(2 * s.heads * s.key_channels + 2, hidden, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(hidden, s.heads * self.points * 2, 3, padding=1),
        )
        # Places that begin together would have the same gradient and stay together: they begin on a square grid.
        grid = sorted(itertools.product(range(-9, 10), repeat=2), key=lambda p: (max(map(abs, p)), p))
        self.start: Tensor
        self.register_buffer("start", torch.tensor(grid[: self.points]).float(), persistent=False)  # (P, 2)

    def forward(
        self, query: Tensor, key: Tensor, flow: Tensor | None, earlier: ops.Matches | None
    ) -> ops.Matches:
        """See `Alignment.forward`."""
        if earlier is not None:
            return self.again(query, key, earlier.offsets, earlier.frames)
        b, t, _, h, w = query.shape
        s = self.plan
        slots = slot_frames(t, s.temporal_window, s.causal)
        frames = torch.tensor(slots, dtype=torch.int32, device=query.device)  # (T, W_t)
        moved = query.new_zeros(b, t, frames.shape[1], 2, h, w, dtype=torch.float32)
        if flow is not None:
            moved = torch.cat([moved[:, :, :1], flow.float()], 2)  # (B, T, W_t, 2, H, W)
        places = frames.view(1, t, 1, 1, -1).expand(b, t, h, w, -1)[:, None]  # (B, 1, T, H, W, W_t)
        ones = torch.ones_like(places, dtype=query.dtype)
        offsets = moved.permute(0, 1, 4, 5, 2, 3)[:, None]  # (B, 1, T, H, W, W_t, 2)
        there = ops.gather_stack(key, ones, offsets.contiguous(), places.contiguous(), heads=1)[:, 0]
        there = there.movedim(1, 2)  # (B, T, W_t, HD*C, H, W)
        seen = torch.cat([query[:, :, None].expand_as(there), there, moved.to(query.dtype)], 3)
        change = self.predict(seen.flatten(0, 2)).float().tanh() * self.reach  # (N, HD*P*2, H, W)
        change = change.view(b, t, -1, s.heads, self.points, 2, h, w).permute(0, 3, 1, 6, 7, 2, 4, 5)
        around = offsets[..., None, :] + self.start.clamp(-self.reach, self.reach) + change
        every = places[..., None].expand(b, s.heads, t, h, w, frames.shape[1], self.points)
        found = [
            self.rescore(query, key, around[..., i, :, :].contiguous(), every[..., i, :].contiguous())
            for i in range(frames.shape[1])
        ]
        return joined(found, s.select)


@alignments.register("deformable_shifted")
class DeformableShifted(Shifted):
    """Deformable attention whose predicted places are replaced by the best matches of a search around the flow.

    It looks at as many places of each searched frame as `deformable` does; `shifted` takes the best over all frames.
    """

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        s = search
        self.find = ops.ShiftedNLS(
            window=s.window,
            temporal_window=s.temporal_window,
            topk=share_of(s),
            heads=s.heads,
            patch=s.patch,
            select="each",
            slide=False,
            causal=s.causal,
        )

    def forward(
        self, query: Tensor, key: Tensor, flow: Tensor | None, earlier: ops.Matches | None
    ) -> ops.Matches:
        """See `Alignment.forward`."""
        found = super().forward(query, key, flow, earlier)
        return found if earlier is not None else joined([found], self.plan.select)


def share_of(search: Search) -> int:
    """Matches of each searched frame, where all frames have equally many.

    Raises:
        ConfigError: if they cannot.
    """
    s = search
    frames = s.temporal_window + 1 if s.causal else 2 * s.temporal_window + 1
    share = s.search_matches if s.select == "each" else s.search_matches // frames
    if s.select == "all" and s.search_matches % frames:
        raise ConfigError(
            f"model setting search_matches={s.search_matches} must be a multiple of the {frames} searched frames for "
            f"deformable attention, such as {max(1, share) * frames}"
        )
    most = min(s.window**2, 361)
    if share > most:
        raise ConfigError(
            f"model setting search_matches={s.search_matches} gives each frame {share} matches, at most {most} fit"
        )
    return share


def joined(found: list[ops.Matches], select: str) -> ops.Matches:
    """Matches of several frames as one: frame after frame if `select` is "each", else the best first."""
    scores, offsets, frames = (torch.cat(parts, i) for parts, i in zip(zip(*found), (-1, -2, -1)))
    if select == "all":
        order = scores.detach().argsort(dim=-1, descending=True, stable=True)
        scores, frames = scores.gather(-1, order), frames.gather(-1, order)
        offsets = offsets.gather(-2, order[..., None].expand_as(offsets))
    return ops.Matches(scores, offsets, frames)


class SpaceTimeAttention(nn.Module):
    """Queries, keys and values by 1x1 convolutions; matches from an `Alignment`; softmax; aggregation.

    Args:
        channels: C of the features.
        heads: HD.
        key_channels: channels of query and key a head.
        value_channels: channels of the value a head.
        alignment: where queries look.
        matches: K, the best matches that are used, at most what the alignment returns.
        scale: factor on the scores in the softmax.
        learn_scale: make the scale a parameter for each head (kept as a logarithm).
        aggregate: how the values at the matches become the output, see `stan.models.aggregation`.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        key_channels: int,
        value_channels: int,
        alignment: Alignment,
        matches: int,
        scale: float,
        learn_scale: bool,
        aggregate: nn.Module,
    ) -> None:
        super().__init__()
        self.matches = matches
        self.weights = ops.Weights(scale, heads=heads, learned=learn_scale)
        self.register_state_dict_post_hook(_keep_name_of_scale)
        self.register_load_state_dict_pre_hook(_find_scale)
        self.query = nn.Conv2d(channels, heads * key_channels, 1)
        self.key = nn.Conv2d(channels, heads * key_channels, 1)
        self.value = nn.Conv2d(channels, heads * value_channels, 1)
        self.alignment = alignment
        self.aggregate = aggregate

    @torch.no_grad()
    def start_from_similarity(self) -> None:
        """Give query and key the same weights: matches of fresh weights are then truly similar places."""
        self.key.weight.copy_(self.query.weight)
        if self.query.bias is not None and self.key.bias is not None:
            self.key.bias.copy_(self.query.bias)

    def forward(
        self, x: Tensor, clips: int, flow: Tensor | None, earlier: ops.Matches | None
    ) -> tuple[Tensor, ops.Matches, Tensor]:
        """Attend.

        Args:
            x: `(N, C, H, W)` with N = clips*T.
            clips: B.
            flow: displacements for the search, see `Alignment.forward`; if T < W_t it has W_t frames.
            earlier: matches of the first block of this stage.

        Returns:
            the attended features `(N, C, H, W)`, all matches found, and the weights of the best `matches`.
        """
        query, key, value = (
            channels_last(project(x)).unflatten(0, (clips, -1))
            for project in (self.query, self.key, self.value)
        )  # each (B, T, HD*C, H, W)
        t, plan = query.shape[1], self.alignment.plan
        missing = 0 if plan.causal or earlier is not None else 2 * plan.temporal_window + 1 - t
        if missing <= 0:
            found = self.alignment(query, key, flow, earlier)
        else:
            # The search wants W_t frames; those that fill a short clip up are like none of the others.
            query, key = (F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing), value=FAR) for x in (query, key))
            found = within(self.alignment(query, key, flow, earlier), t)
        scores, offsets, frames = best(found, self.matches)
        weights = self.weights(scores)
        return self.aggregate(value, weights, offsets, frames), found, weights


def _keep_name_of_scale(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """In files the learned scale has kept the name that it had as a parameter of the attention itself."""
    if f"{prefix}weights.log_scale" in state:
        state[f"{prefix}log_scale"] = state.pop(f"{prefix}weights.log_scale")


def _find_scale(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """The way back."""
    if f"{prefix}log_scale" in state:
        state[f"{prefix}weights.log_scale"] = state.pop(f"{prefix}log_scale")


def within(found: ops.Matches, frames: int) -> ops.Matches:
    """Matches of a clip's first `frames` in each other; those in later ones are none."""
    scores, offsets, places = (
        found.scores[:, :, :frames],
        found.offsets[:, :, :frames],
        found.frames[:, :, :frames],
    )
    none = places >= frames
    return ops.Matches(
        scores.masked_fill(none, -torch.inf),
        offsets.masked_fill(none.unsqueeze(-1), 0),
        places.masked_fill(none, -1),
    )


def best(found: ops.Matches, matches: int) -> ops.Matches:
    """The first `matches` of matches that are sorted best first."""
    if found.scores.shape[-1] == matches:
        return found
    return ops.Matches(
        found.scores[..., :matches], found.offsets[..., :matches, :], found.frames[..., :matches]
    )


def attention_map(block: str, scale: int, found: ops.Matches, weights: Tensor) -> AttentionMap:
    """The record of where a block looked."""
    used = best(found, weights.shape[-1])
    return AttentionMap(block, scale, weights.detach(), used.offsets.detach(), used.frames)
