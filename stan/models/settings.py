"""What defines a STAN network: a flat, frozen record of plain values, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from stan.errors import ConfigError, short
from stan.registry import aggregations, alignments, sources
from stan.settings import ODD, Count, Natural, above, below, between, complete


@dataclass(frozen=True)
class Settings:
    """All that defines a STAN network. The defaults are the paper's network, `stan`.

    Per-level tuples run from the finest level down; the last level is the middle of the UNet.

    Attributes:
        blind: take no noise map.
        causal: no frame looks ahead.
        flow: offset source that centres the search.
        flow_settings: settings of the offset source.
        stem: side of the pixel blocks that are moved into the channels first; level 0 works at 1/stem.
        channels: features of each level.
        skip: how the encoder's features join the decoder's: concat has twice the channels.
        block_skip: add the input of a plain block to its result.
        depths: blocks of each level; decoders have as many as the encoder of their level.
        heads: attention heads of each level; 0 makes its blocks plain. Decoders are always plain.
        key_channels: channels of query and key a head.
        value_channels: channels of the value a head.
        attention: attention variant, which decides where queries look.
        attention_settings: settings of the attention variant.
        window: ws, side of the search window in pixels of the level.
        temporal_window: wt, frames searched each side.
        patch: ps, side of the compared patches.
        select: all keeps the best over all frames, each as many for every frame.
        search_matches: K of the search (for each frame if `select` is each).
        matches: how many of them are used.
        refine_window: wr, side of the search around each match in the later blocks of a level; 1 only scores
            anew.
        scale: factor on the scores in the softmax.
        learn_scale: learn the factor, one for each head.
        aggregation: how the values at the matches become the output.
        aggregation_settings: settings of the aggregation.
        aggregation_kernel: P of stack, in pixels.
        mixer: second half of an attention block, 3-D window attention or a plain block.
        window_size: frames, rows, columns of a window of the window attention.
        window_heads: its heads.
        window_groups: its groups of two layers.
        mlp_ratio: hidden channels of its MLPs as a multiple of the features.
        drop_path: rate of stochastic depth around the attention.
        recompute: recompute blocks in the backward pass instead of storing them: less memory, more time.
    """

    blind: bool = False
    causal: bool = False
    flow: Annotated[str, sources] = "dis"
    flow_settings: dict[str, Any] = field(default_factory=dict)
    stem: Count = 1
    channels: tuple[Count, ...] = (16, 64, 192)
    skip: Literal["concat", "add"] = "concat"
    block_skip: bool = False
    depths: tuple[Annotated[int, between(0, 256)], ...] = (1, 2, 4)
    heads: tuple[Natural, ...] = (0, 0, 12)
    key_channels: Count = 16
    value_channels: Count = 32
    attention: Annotated[str, alignments] | Literal["none"] = "shifted"
    attention_settings: dict[str, Any] = field(default_factory=dict)
    window: Annotated[int, between(1, 255)] = 9
    temporal_window: Annotated[int, between(0, 64)] = 2
    patch: Annotated[int, ODD, between(1, 255)] = 1
    select: Literal["all", "each"] = "all"
    search_matches: Count = 20
    matches: Count = 10
    refine_window: Annotated[int, between(1, 255)] = 1
    scale: Annotated[float, above(0)] = 10.0
    learn_scale: bool = False
    aggregation: Annotated[str, aggregations] = "stack"
    aggregation_settings: dict[str, Any] = field(default_factory=dict)
    aggregation_kernel: Annotated[int, ODD] = 3
    mixer: Literal["window", "plain"] = "window"
    window_size: tuple[Count, Count, Count] = (2, 8, 8)
    window_heads: Count = 4
    window_groups: Natural = 2
    mlp_ratio: Annotated[float, above(0)] = 2.0
    drop_path: Annotated[float, below(0, 1)] = 0.1
    recompute: bool = False

    def __post_init__(self) -> None:
        """Turn lists into tuples (YAML has no tuples), fill in the settings of the parts, and check all values.

        Raises:
            ConfigError: names the setting and its value.
        """
        for name, value in complete(Settings, vars(self), "the network", prefix="model setting ").items():
            object.__setattr__(self, name, value)
        self._check_levels()
        self._check_matches()
        self._check_learning()

    def _check_levels(self) -> None:
        levels = len(self.channels)
        self._require("channels", 1 <= levels <= 8, "one number a level, of which there are 1 to 8")
        for name in ("depths", "heads"):
            self._require(name, len(getattr(self, name)) == levels, f"one number for each of {levels} levels")
        for channels, heads in zip(self.channels, self.heads):
            if heads and self.aggregation == "stack" and self.attention != "none":
                self._require(
                    "heads", channels % heads == 0, f"divisors of the channels {list(self.channels)}"
                )
            if heads and self.mixer == "window":
                self._require(
                    "window_heads", channels % self.window_heads == 0, f"a divisor of {channels} channels"
                )

    def _check_matches(self) -> None:
        frames = self.slots if self.select == "all" else 1
        most = frames * self.window**2
        self._require("search_matches", self.search_matches <= most, f"in 1 ... {most}, the candidates")
        if self.select == "each":
            every = self.search_matches * self.slots
            self._require("matches", self.matches == every, f"{every}, all of them, as select is 'each'")
        else:
            self._require("matches", self.matches <= self.search_matches, "in 1 ... search_matches")

    def _check_learning(self) -> None:
        looks = self.attends and getattr(alignments[self.attention], "uses_flow", True)
        if learns(self.flow) and not (looks and self.slots > 1):
            why = (
                f"attention={self.attention!r} looks at no flow"
                if self.attends and self.slots > 1
                else "the network looks at no other frame"
            )
            raise ConfigError(
                f"model setting flow={self.flow!r} would never learn: {why}; take flow=zero, or attention=shifted "
                "with heads in a level and a temporal_window"
            )

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"model setting {name}={short(getattr(self, name))} must be {wanted}")

    @property
    def slots(self) -> int:
        """W_t, the searched frames."""
        return self.temporal_window + 1 if self.causal else 2 * self.temporal_window + 1

    @property
    def attends(self) -> bool:
        """Whether there is any space-time attention."""
        return self.attention != "none" and any(h > 0 and d > 0 for h, d in zip(self.heads, self.depths))

    @property
    def multiple(self) -> int:
        """Pixels of which the height and width must be multiples."""
        side = self.stem * 2 ** (len(self.channels) - 1)
        for level, heads in enumerate(self.heads):
            if heads and self.mixer == "window":
                scale = self.stem * 2**level
                side = math.lcm(side, *(scale * window for window in self.window_size[1:]))
        return side


def learns(flow: str) -> bool:
    """Whether the offset source `flow` has weights that are trained with the network."""
    return bool(getattr(sources[flow], "trainable", False))
