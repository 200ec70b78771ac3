"""The problems that `stan bench op` times: sizes, settings, and the work each one holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One search problem. Shapes: query, key (B, T, HD*C, H, W); flow (B, T, W_t-1, 2, H, W).

    `flow` names the displacement field: "random" draws every pixel's flow on its own (no two neighbours
    look at the same keys: the worst case for a tile of queries), "smooth" varies over some 16 pixels as
    optical flow does. Both are fractional and of a few pixels.
    """

    name: str
    height: int = 128
    width: int = 128
    frames: int = 5
    channels: int = 16
    heads: int = 1
    window: int = 9
    temporal_window: int = 1
    topk: int = 10
    patch: int = 1
    metric: Literal["l2", "dot"] = "l2"
    flow: str = "random"
    dtype: str = "float32"
    batch: int = 1

    @property
    def searched(self) -> int:
        """W_t, the number of frames each query searches."""
        return 2 * self.temporal_window + 1

    @property
    def queries(self) -> int:
        """Number of queries, over batch, heads, frames and pixels."""
        return self.batch * self.heads * self.frames * self.height * self.width

    @property
    def size(self) -> str:
        """Frame size as HxW."""
        return f"{self.height}x{self.width}"

    def settings(self) -> str:
        """What is searched for, in one short phrase."""
        text = f"C{self.channels} ws{self.window} wt{self.temporal_window} K{self.topk}"
        text += f" HD{self.heads}" if self.heads > 1 else ""
        text += f" ps{self.patch}" if self.patch > 1 else ""
        text += " dot" if self.metric == "dot" else ""
        text += " smooth" if self.flow == "smooth" else ""
        return text + (f" {self.dtype}" if self.dtype != "float32" else "")

    def inputs(self, device: str | torch.device, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Query, key, flow and the cotangent of the scores, drawn from `seed` on the CPU."""
        draw = torch.Generator().manual_seed(seed)
        b, t, h, w = self.batch, self.frames, self.height, self.width
        shape = (b, t, self.heads * self.channels, h, w)
        query = torch.randn(shape, generator=draw)
        key = torch.randn(shape, generator=draw)
        if self.flow == "smooth":
            coarse = torch.randn(b * t * (self.searched - 1), 2, h // 16 + 2, w // 16 + 2, generator=draw)
            flow = F.interpolate(4 * coarse, size=(h, w), mode="bicubic", align_corners=True)
        else:
            flow = 2 * torch.randn(b * t * (self.searched - 1), 2, h, w, generator=draw)
        flow = flow.view(b, t, self.searched - 1, 2, h, w)
        cotangent = torch.randn(b, self.heads, t, h, w, self.topk, generator=draw)
        dtype = DTYPES[self.dtype]
        return query.to(device, dtype), key.to(device, dtype), flow.to(device), cotangent.to(device)

    def forward_flops(self) -> float:
        """Fewest floating-point operations of the forward search (an addition or a product is one).

        With a whole grid step all candidates of a query and frame share one fractional phase, so that
        (ws+1)^2 whole-pixel products serve ws^2 candidates, each then interpolated from 4 of them.
        """
        products = (self.window + 1) ** 2 * self.channels * self.patch**2 * 2
        return float(self.queries * self.searched * (products + self.window**2 * 8))

    def backward_flops(self) -> float:
        """The same for the backward: each of the K keys is sampled again, then come the three gradients."""
        per_channel = 8 + 2 + 8 + 8  # sample 4 taps; d query; d key to 4 taps; d flow, 2 directions
        return float(self.queries * self.topk * self.channels * self.patch**2 * per_channel)

    def forward_bytes(self) -> float:
        """Fewest bytes moved: every input read once, every output written once."""
        size = torch.finfo(DTYPES[self.dtype]).bits // 8
        inputs = (
            2 * self.queries * self.channels * size + self.queries // self.heads * (self.searched - 1) * 2 * 4
        )
        return float(inputs + self.output_bytes())

    def backward_bytes(self) -> float:
        """The same for the backward: inputs, matches and cotangents read, three gradients written."""
        size = torch.finfo(DTYPES[self.dtype]).bits // 8
        flow = self.queries // self.heads * (self.searched - 1) * 2 * 4
        return float(4 * self.queries * self.channels * size + 2 * flow + self.output_bytes())

    def output_bytes(self) -> int:
        """Bytes of scores and offsets (float32) and frames (int32)."""
        return self.queries * self.topk * (4 + 8 + 4)

    def volume_bytes(self) -> int:
        """Bytes of a stored score volume: score, offset (x, y), frame, for every candidate of every query."""
        return self.queries * self.searched * self.window**2 * 28


GOAL = Case("goal")
P480 = Case("480p", 480, 854)


def table(device: str, quick: bool = False) -> list[Case]:
    """The default table: cost over size first, then over channels, heads, matches and the rest.

    That of "cuda" adds low precision and the larger heads. Quick: a few small rows, for a look in well under a minute.
    """
    small = replace(GOAL, name="64x64", height=64, width=64)
    if quick:
        return [small, replace(small, name="C32", channels=32), replace(small, name="dot", metric="dot")]
    cases = [
        GOAL,
        small,
        replace(GOAL, name="256x256", height=256, width=256),
        P480,
        replace(P480, name="480p smooth", flow="smooth"),
        replace(GOAL, name="smooth", flow="smooth"),
        replace(GOAL, name="C8", channels=8),
        replace(GOAL, name="C32", channels=32),
        replace(GOAL, name="C64", channels=64),
        replace(small, name="HD4", heads=4),
        replace(small, name="HD12", heads=12),
        replace(GOAL, name="K1", topk=1),
        replace(GOAL, name="K20 wt2", topk=20, temporal_window=2),
        replace(GOAL, name="ws15", window=15),
        replace(GOAL, name="dot", metric="dot"),
        replace(small, name="ps3", patch=3),
        replace(GOAL, name="bf16", dtype="bfloat16"),
    ]
    if device != "cpu":
        cases += [
            replace(P480, name="480p bf16", dtype="bfloat16"),
            replace(P480, name="480p bf16 smooth", dtype="bfloat16", flow="smooth"),
            replace(P480, name="480p fp16", dtype="float16"),
            replace(P480, name="480p dot", metric="dot"),
            replace(P480, name="480p HD4", heads=4),
        ]
    return cases
