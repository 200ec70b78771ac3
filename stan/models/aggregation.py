"""How the values at the matches become the output of an attention block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from stan import ops
from stan.models.blocks import FoldedConv3d, channels_last
from stan.registry import aggregations


@dataclass(frozen=True)
class Values:
    """What an aggregation is given to work with.

    Attributes:
        heads: HD.
        value_channels: C, channels of the value a head.
        channels: channels of the output.
        matches: K.
        kernel: P, side of a kernel over neighbouring queries, odd; for those that have one.
    """

    heads: int
    value_channels: int
    channels: int
    matches: int
    kernel: int


@aggregations.register("stack")
class StackAggregation(nn.Module):
    """The paper's learned aggregation: the K weighted, displaced value videos side by side, then a grouped
    convolution over (K, P, P), one group a head.

    Args:
        values: sizes; the output channels are a multiple of the heads, and K is exact.
    """

    def __init__(self, values: Values) -> None:
        super().__init__()
        v = values
        self.gather = ops.GatherStack(heads=v.heads)
        self.conv = FoldedConv3d(
            v.heads * v.value_channels,
            v.channels,
            (v.matches, v.kernel, v.kernel),
            padding=(0, v.kernel // 2, v.kernel // 2),
            groups=v.heads,
        )

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """`value` (B, T, HD*C, H, W), the others as from `stan.ops`, to `(B*T, channels, H, W)`."""
        stack = self.gather(value, weights, offsets, frames)  # (B, HD, K, T, C, H, W)
        stack = stack.permute(0, 3, 1, 4, 2, 5, 6)  # (B, T, HD, C, K, H, W)
        # Not channels-last: on a CPU a convolution in many groups takes up to twice as long there.
        return self.conv(stack.flatten(2, 4).flatten(0, 1))


@aggregations.register("sum")
class SumAggregation(nn.Module):
    """The plain weighted sum over the matches, then a 1x1 convolution: leaner, nothing of size K*C is stored.

    Args:
        values: sizes.
    """

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.gather = ops.Gather(heads=values.heads)
        self.conv = nn.Conv2d(values.heads * values.value_channels, values.channels, 1)

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """`value` (B, T, HD*C, H, W), the others as from `stan.ops`, to `(B*T, channels, H, W)`."""
        return self.conv(channels_last(self.gather(value, weights, offsets, frames).flatten(0, 1)))
