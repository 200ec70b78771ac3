"""The 2-D building blocks. Frames are folded into the batch: features are `(N, C, H, W)` with N = B*T.

The network keeps its features in PyTorch's channels-last memory format: the norm over channels then reads
contiguous memory, and the convolutions of CPU and GPU libraries are at their fastest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a learned gain and bias a channel.

    Args:
        channels: C of `(N, C, H, W)` or `(N, C, T, H, W)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(N, C, ...)`."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ResidualUnit(nn.Module):
    """Conv 3x3, PReLU, conv 3x3, + input. One PReLU slope for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.PReLU()
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        return x + self.second(self.activation(self.first(x)))


class ChannelAttention(nn.Module):
    """A gate for each channel of each frame (ECA-Net, Wang et al., CVPR 2020).

    The mean over the frame, a 1-D convolution of size 3 along the channels, a sigmoid, times the input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        mean = x.mean(dim=(2, 3))  # (N, C)
        gate = self.conv(mean.unsqueeze(1)).squeeze(1).sigmoid()  # (N, C)
        return x * gate[:, :, None, None]


class StochasticDepth(nn.Module):
    """Drop a residual branch, for whole clips, while training (Huang et al., ECCV 2016).

    Draws from the generator of the tensor's device, as `nn.Dropout` does.

    Args:
        rate: probability of dropping; kept branches are divided by 1 - rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """`(N, C, H, W)` with N = clips*T, where the branch of each clip is dropped or kept."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(clips, device=x.device) >= self.rate
        factor = keep.to(x.dtype) / (1 - self.rate)
        return x * factor.repeat_interleave(x.shape[0] // clips)[:, None, None, None]

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate}"


class PlainBlock(nn.Module):
    """Norm over channels, 2 residual units, channel attention.

    Args:
        channels: C of the features.
        skip: add the input to the result.
    """

    def __init__(self, channels: int, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.norm = ChannelNorm(channels)
        self.units = nn.Sequential(ResidualUnit(channels), ResidualUnit(channels))
        self.gate = ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        y = self.gate(self.units(self.norm(x)))
        return x + y if self.skip else y


class FoldedConv3d(nn.Conv3d):
    """A 3-D convolution that spans all of its first kernel axis at once, computed as a 2-D convolution.

    The input has that axis folded into its channels, as `(N, groups*C*K, H, W)` for a kernel (K, P, P) and C
    channels a group; the output is `(N, out, H, W)`. Same weights and result as `nn.Conv3d`, several times
    faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, groups*C*K, H, W)` to `(N, out, H, W)`."""
        padding = (int(self.padding[1]), int(self.padding[2]))
        return F.conv2d(x, self.weight.flatten(1, 2), self.bias, padding=padding, groups=self.groups)


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Move `factor` x `factor` pixels into the channels; no copy for a factor of 1."""
    return F.pixel_unshuffle(x, factor) if factor > 1 else x


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    return F.pixel_shuffle(x, factor) if factor > 1 else x
