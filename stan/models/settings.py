"""What defines a STAN network: a flat, frozen record of plain values, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from stan.errors import ConfigError, nearest
from stan.models.attention import alignments


@dataclass(frozen=True)
class Settings:
    """All that defines a STAN network. The defaults are the paper's network, `stan`.

    Per-level tuples run from the finest level down; the last level is the middle of the UNet.

    Attributes:
        blind: take no noise map.
        causal: no frame looks ahead.
        flow: offset source that centres the search, a name of `stan.flow`.
        flow_settings: settings of the offset source.
        stem: side of the pixel blocks that are moved into the channels first; level 0 works at 1/stem.
        channels: features of each level.
        skip: how the encoder's features join the decoder's: "concat" (twice the channels) or "add".
        block_skip: add the input of a plain block to its result.
        depths: blocks of each level; decoders have as many as the encoder of their level.
        heads: attention heads of each level; 0 makes its blocks plain. Decoders are always plain.
        key_channels: channels of query and key a head.
        value_channels: channels of the value a head.
        attention: attention variant, a name of `stan.models.attention.alignments`, or "none".
        window: ws, side of the search window in pixels of the level.
        temporal_window: wt, frames searched each side.
        patch: ps, side of the compared patches.
        select: "all" keeps the best over all frames, "each" as many for every frame.
        search_matches: K of the search (for each frame if `select` is "each").
        matches: how many of them are used.
        refine_window: wr, side of the search around each match in the later blocks of a level; 1 only scores
            anew.
        scale: factor on the scores in the softmax.
        learn_scale: learn the factor, one for each head.
        aggregation: "stack" (learned, over the matches side by side) or "sum" (plain weighted sum).
        aggregation_kernel: P of "stack", in pixels.
        mixer: second half of an attention block: "window" (3-D window attention) or "plain" (a plain block).
        window_size: frames, rows, columns of a window of the window attention.
        window_heads: its heads.
        window_groups: its groups of two layers.
        mlp_ratio: hidden channels of its MLPs as a multiple of the features.
        drop_path: rate of stochastic depth around the attention.
        recompute: recompute blocks in the backward pass instead of storing them: less memory, more time.
    """

    blind: bool = False
    causal: bool = False
    flow: str = "dis"
    flow_settings: dict[str, Any] = field(default_factory=dict)
    stem: int = 1
    channels: tuple[int, ...] = (16, 64, 192)
    skip: str = "concat"
    block_skip: bool = False
    depths: tuple[int, ...] = (1, 2, 4)
    heads: tuple[int, ...] = (0, 0, 12)
    key_channels: int = 16
    value_channels: int = 32
    attention: str = "shifted"
    window: int = 9
    temporal_window: int = 2
    patch: int = 1
    select: str = "all"
    search_matches: int = 20
    matches: int = 10
    refine_window: int = 1
    scale: float = 10.0
    learn_scale: bool = False
    aggregation: str = "stack"
    aggregation_kernel: int = 3
    mixer: str = "window"
    window_size: tuple[int, int, int] = (2, 8, 8)
    window_heads: int = 4
    window_groups: int = 2
    mlp_ratio: float = 2.0
    drop_path: float = 0.1
    recompute: bool = False

    def __post_init__(self) -> None:
        """Turn lists into tuples (YAML has no tuples) and check every value.

        Raises:
            ConfigError: names the setting and its value.
        """
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, checked(item.name, str(item.type), getattr(self, item.name)))
        self._check_levels()
        self._check_choice("skip", ["concat", "add"])
        self._check_choice("attention", [*alignments.names(), "none"])
        self._check_choice("aggregation", ["stack", "sum"])
        self._check_choice("mixer", ["window", "plain"])
        self._check_choice("select", ["all", "each"])
        for name in ("stem", "key_channels", "value_channels", "window", "refine_window", "window_heads"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("patch", "aggregation_kernel"):
            value = getattr(self, name)
            self._require(name, value >= 1 and value % 2 == 1, "odd and at least 1")
        for name in ("temporal_window", "window_groups"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("scale", 0 < self.scale < math.inf, "a number above 0")
        self._require("mlp_ratio", 0 < self.mlp_ratio < math.inf, "a number above 0")
        self._require("drop_path", 0 <= self.drop_path < 1, "in [0, 1)")
        self._require(
            "window_size", len(self.window_size) == 3 and min(self.window_size) >= 1, "3 sizes above 0"
        )
        self._check_matches()

    def _check_levels(self) -> None:
        levels = len(self.channels)
        self._require(
            "channels", levels >= 1 and min(self.channels, default=0) >= 1, "one number above 0 a level"
        )
        for name in ("depths", "heads"):
            value = getattr(self, name)
            self._require(
                name, len(value) == levels and min(value) >= 0, f"one number for each of {levels} levels"
            )
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
        self._require("search_matches", 1 <= self.search_matches <= most, f"in 1 ... {most}, the candidates")
        if self.select == "each":
            every = self.search_matches * self.slots
            self._require("matches", self.matches == every, f"{every}, all of them, as select is 'each'")
        else:
            self._require("matches", 1 <= self.matches <= self.search_matches, "in 1 ... search_matches")

    def _check_choice(self, name: str, known: list[str]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise ConfigError(f"model setting {name}={value!r} is not known; {nearest(value, known)}")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"model setting {name}={getattr(self, name)} must be {wanted}")

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

    def plain(self) -> dict[str, Any]:
        """As plain data that YAML and JSON can hold."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def checked(name: str, kind: str, value: Any) -> Any:
    """`value` as the annotated type `kind`; whole numbers pass for floats and lists for tuples."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and whole:
        return value
    if kind == "float" and (whole or isinstance(value, float)):
        return float(value)
    if kind == "str" and isinstance(value, str):
        return value
    if kind.startswith("dict") and isinstance(value, dict):
        return dict(value)
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        return tuple(checked(name, "int", item) for item in value)
    wanted = "a list of int" if kind.startswith("tuple") else kind.partition("[")[0]
    raise ConfigError(f"model setting {name}={value!r} must be of type {wanted}")
