"""How the values at the matches become the output of an attention block."""

from __future__ import annotations

from torch import Tensor, nn

from stan import ops
from stan.errors import ConfigError
from stan.models.blocks import FoldedConv3d


class StackAggregation(nn.Module):
    """The paper's learned aggregation: the K weighted, displaced value videos side by side, then a grouped
    convolution over (K, P, P), one group a head.

    Args:
        heads: HD.
        value_channels: C, channels of the value a head.
        channels: channels of the output, a multiple of `heads`.
        matches: K, exactly.
        kernel: P, odd.
    """

    def __init__(self, heads: int, value_channels: int, channels: int, matches: int, kernel: int) -> None:
        super().__init__()
        self.gather = ops.GatherStack(heads=heads)
        self.conv = FoldedConv3d(
            heads * value_channels,
            channels,
            (matches, kernel, kernel),
            padding=(0, kernel // 2, kernel // 2),
            groups=heads,
        )

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """`value` (B, T, HD*C, H, W), the others as from `stan.ops`, to `(B*T, channels, H, W)`."""
        stack = self.gather(value, weights, offsets, frames)  # (B, HD, K, T, C, H, W)
        stack = stack.permute(0, 3, 1, 4, 2, 5, 6)  # (B, T, HD, C, K, H, W)
        return self.conv(stack.flatten(2, 4).flatten(0, 1))


class SumAggregation(nn.Module):
    """The plain weighted sum over the matches, then a 1x1 convolution: leaner, nothing of size K*C is stored.

    Args:
        heads: HD.
        value_channels: C, channels of the value a head.
        channels: channels of the output.
    """

    def __init__(self, heads: int, value_channels: int, channels: int) -> None:
        super().__init__()
        self.gather = ops.Gather(heads=heads)
        self.conv = nn.Conv2d(heads * value_channels, channels, 1)

    def forward(self, value: Tensor, weights: Tensor, offsets: Tensor, frames: Tensor) -> Tensor:
        """`value` (B, T, HD*C, H, W), the others as from `stan.ops`, to `(B*T, channels, H, W)`."""
        return self.conv(self.gather(value, weights, offsets, frames).flatten(0, 1))


def aggregation(
    name: str, *, heads: int, value_channels: int, channels: int, matches: int, kernel: int
) -> nn.Module:
    """The aggregation called `name`: "stack" or "sum" (which has no use for `matches` and `kernel`)."""
    if name == "stack":
        return StackAggregation(heads, value_channels, channels, matches, kernel)
    if name == "sum":
        return SumAggregation(heads, value_channels, channels)
    raise ConfigError(f"aggregation={name!r} must be 'stack' or 'sum'")
