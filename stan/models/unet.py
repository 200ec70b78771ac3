"""A plain residual UNet over space: the part of a two-pass network that cleans, fast on any device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from stan.models.convolutions import added, conv, conv_add, conv_relu


class Unit(nn.Module):
    """Conv 3x3, ReLU, conv 3x3, + input; no norm, so that brightness and noise level pass unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        return conv_add(self.second, conv_relu(self.first, x), x)


class UNet(nn.Module):
    """Units at each level; 2x2 convolutions with stride 2 go down, transposed ones up; skips are added.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        channels: of each level, from the finest down.
        depths: units of each level; a decoder has as many as the encoder of its level.
    """

    def __init__(self, inputs: int, outputs: int, channels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.encoders = nn.ModuleList(units(c, depth) for c, depth in zip(channels, depths))
        steps = list(pairwise(channels))
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.decoders = nn.ModuleList(units(c, depth) for c, depth in zip(channels[:-1], depths))
        self.leave = nn.Conv2d(channels[0], outputs, 3, padding=1)
        self.multiple = 2 ** len(steps)
        """Heights and widths must be multiples of it."""
        start_small(self)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H, W)`."""
        return self.inner(conv(self.enter, x))

    def inner(self, x: Tensor) -> Tensor:
        """All behind the first convolution: `(N, channels[0], H, W)` to `(N, outputs, H, W)`."""
        skips = []
        for level, encoder in enumerate(self.encoders):
            if level > 0:
                x = self.downs[level - 1](x)
            x = encoder(x)
            skips.append(x)
        skips.pop()
        for level in reversed(range(len(self.ups))):
            x = self.decoders[level](added(self.ups[level](x), skips[level]))
        return conv(self.leave, x)


def units(channels: int, depth: int) -> nn.Sequential:
    """`depth` units in a row."""
    return nn.Sequential(*(Unit(channels) for _ in range(depth)))


def start_small(network: UNet) -> None:
    """PyTorch's initialisation, with weaker branches and a weak end: training starts near the skips alone."""
    for module in network.modules():
        if isinstance(module, Unit):
            module.second.weight.data.mul_(0.3)
    network.leave.weight.data.mul_(0.1)
    assert network.leave.bias is not None
    nn.init.zeros_(network.leave.bias)
