"""Space-time attention with matches from the Shifted Non-Local Search, and the variants of its alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stan import ops
from stan.models.base import AttentionMap
from stan.registry import alignments


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
            flow: displacements for the search, see `Alignment.forward`.
            earlier: matches of the first block of this stage.

        Returns:
            the attended features `(N, C, H, W)`, all matches found, and the weights of the best `matches`.
        """
        query, key, value = (
            project(x).unflatten(0, (clips, -1)) for project in (self.query, self.key, self.value)
        )  # each (B, T, HD*C, H, W)
        found = self.alignment(query, key, flow, earlier)
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
