"""The 2-D building blocks. Frames are folded into the batch: features are `(N, C, H, W)` with N = B*T.

The network keeps its features in PyTorch's channels-last memory format: the norm over channels then reads
contiguous memory, and the convolutions of CPU and GPU libraries are at their fastest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stan.models.convolutions import conv, conv_add


class _ChannelsLast(torch.autograd.Function):
    """The memory format of values going forward and of gradients coming back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


def channels_last(x: Tensor) -> Tensor:
    """`(N, C, H, W)` in the network's memory format, and its gradient too.

    Where features leave for an operation of another format, or come back from one: on a CPU the backward pass of a
    convolution takes two to three times as long when one of its tensors is in the other format (torch 2.15).
    """
    if torch.compiler.is_compiling():
        return x.contiguous(memory_format=torch.channels_last)
    return _ChannelsLast.apply(x)


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


class _OneSlope(torch.autograd.Function):
    """PReLU with one slope for all channels, made of operations that a CPU has vectorised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        below = x.clamp(max=0)
        if below.stride() == grad.stride() and grad.is_contiguous(memory_format=torch.channels_last):
            in_memory = (a.permute(0, 2, 3, 1).reshape(-1) for a in (below, grad))
            of_slope = torch.dot(*in_memory)
        else:
            of_slope = (below * grad).sum()
        of_x = torch.ops.aten.leaky_relu_backward(grad, x, slope.item(), False)
        return of_x, of_slope.to(slope.dtype).view(1)


class PReLU(nn.PReLU):
    """`nn.PReLU` with one slope, whose backward pass on a CPU takes half the time, in bfloat16 a sixth (torch 2.15)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _OneSlope.apply(x, self.weight)
        return super().forward(x)


class ResidualUnit(nn.Module):
    """Conv 3x3, PReLU, conv 3x3, + input. One PReLU slope for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = PReLU()
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        return conv_add(self.second, self.activation(conv(self.first, x)), x)


class _FrameMean(torch.autograd.Function):
    """The mean over each frame. Its gradient is one number a channel, shown over the frame and never laid out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean(dim=(2, 3))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad / (ctx.shape[2] * ctx.shape[3]))[:, :, None, None].expand(ctx.shape)


class ChannelAttention(nn.Module):
    """A gate for each channel of each frame (ECA-Net, Wang et al., CVPR 2020).

    The mean over the frame, a 1-D convolution of size 3 along the channels, a sigmoid, times the input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        mean = x.mean(dim=(2, 3)) if torch.compiler.is_compiling() else _FrameMean.apply(x)  # (N, C)
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
