"""The 3-D window attention part of the attention blocks: self-attention inside small space-time windows.

After Video Swin Transformer (Liu et al., CVPR 2022): windows of 2 x 8 x 8 pixels, every second layer shifted
by half a window, learned relative position bias.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan.models.blocks import ChannelNorm, FoldedConv3d

Size = tuple[int, int, int]
"""A number of (frames, rows, columns)."""


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a relative position bias.

    Args:
        channels: C, a multiple of `heads`.
        heads: attention heads.
        window: (frames, rows, columns) of a window.
    """

    def __init__(self, channels: int, heads: int, window: Size) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.projection = nn.Linear(channels, channels)
        distances = [2 * side - 1 for side in window]
        self.bias = nn.Parameter(torch.zeros(distances[0] * distances[1] * distances[2], heads))
        self.register_buffer("relative", relative_index(window), persistent=False)
        self.relative: Tensor

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows.

        Args:
            x: `(B, windows, N, C)`, N pixels a window.
            mask: `(N, N)` bool, which keys (last axis) each query sees; None: all.
        """
        b, windows, n, c = x.shape
        qkv = self.qkv(x).reshape(b * windows, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B*windows, heads, N, C/heads)
        bias = self.bias[self.relative.flatten()].reshape(n, n, self.heads).permute(2, 0, 1)  # (heads, N, N)
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        added = bias.to(q.dtype).expand(b * windows, -1, -1, -1)  # there once for all windows
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
        return self.projection(out.transpose(1, 2).reshape(b, windows, n, c))


class WindowLayer(nn.Module):
    """Norm, window attention, + input; norm, MLP, + input.

    Args:
        channels: C.
        heads: attention heads.
        window: (frames, rows, columns) of a window.
        shifted: shift the windows by half their size.
        mlp_ratio: hidden channels of the MLP as a multiple of C.
        causal: hide later frames of a window from earlier ones.
    """

    def __init__(
        self, channels: int, heads: int, window: Size, *, shifted: bool, mlp_ratio: float, causal: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.shifted = shifted
        self.causal = causal
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Mix within windows.

        Args:
            x: `(B, T, H, W, C)`; T, H and W are multiples of the window.
            frames: the first `frames` of T are real, the others padding that no real frame looks at.
        """
        size = (x.shape[1], x.shape[2], x.shape[3])
        # As in Swin, a side that one window covers is not shifted.
        shift = [w // 2 if self.shifted and s > w else 0 for s, w in zip(size, self.window)]
        grid, kinds = window_masks(size, self.window, shift, frames, self.causal, x.device)
        y = torch.roll(self.norm1(x), [-s for s in shift], dims=(1, 2, 3)) if any(shift) else self.norm1(x)
        y = split_windows(y, self.window).unflatten(1, grid)  # (B, *grid, N, C)
        parts = [self.attention(y[:, t, h, w].flatten(1, 3), mask) for (t, h, w), mask in kinds]
        y = torch.empty_like(y, dtype=parts[0].dtype)
        for ((t, h, w), _), part in zip(kinds, parts):
            y[:, t, h, w] = part.view_as(y[:, t, h, w])
        y = merge_windows(y.flatten(1, 3), size, self.window)
        x = x + (torch.roll(y, shift, dims=(1, 2, 3)) if any(shift) else y)
        return x + self.mlp(self.norm2(x))


class WindowGroup(nn.Module):
    """Two window layers, the second with shifted windows, closed by a linear layer, + input."""

    def __init__(self, channels: int, heads: int, window: Size, *, mlp_ratio: float, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            WindowLayer(channels, heads, window, shifted=shifted, mlp_ratio=mlp_ratio, causal=causal)
            for shifted in (False, True)
        )
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """As `WindowLayer`."""
        y = x
        for layer in self.layers:
            y = layer(y, frames)
        return x + self.linear(y)


class WindowPart(nn.Module):
    """Conv3d 1x3x3, norm, groups of window layers, norm: the second half of an attention block.

    Args:
        channels: C, a multiple of `heads`.
        heads: attention heads.
        window: (frames, rows, columns) of a window; H and W must be multiples of it, T is padded.
        groups: window groups.
        mlp_ratio: hidden channels of the MLPs as a multiple of C.
        causal: no frame looks ahead.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        window: Size = (2, 8, 8),
        groups: int = 2,
        mlp_ratio: float = 2.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.window = window
        self.conv = FoldedConv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        self.norm1 = nn.LayerNorm(channels)
        self.groups = nn.ModuleList(
            WindowGroup(channels, heads, window, mlp_ratio=mlp_ratio, causal=causal) for _ in range(groups)
        )
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """`x` (N, C, H, W) with N = clips*T to the same."""
        x = self.conv(x).unflatten(0, (clips, -1)).movedim(2, -1)  # (B, T, H, W, C)
        t = x.shape[1]
        extra = -t % self.window[0]
        if extra:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, extra))
        x = self.norm1(x)
        for group in self.groups:
            x = group(x, t)
        return self.norm2(x[:, :t].flatten(0, 1).movedim(-1, 1))  # (N, C, H, W)


def split_windows(x: Tensor, window: Size) -> Tensor:
    """`(B, T, H, W, C)` to `(B, windows, N, C)`, the N pixels of each window together."""
    b, t, h, w, c = x.shape
    wt, wh, ww = window
    x = x.reshape(b, t // wt, wt, h // wh, wh, w // ww, ww, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, wt * wh * ww, c)


def merge_windows(x: Tensor, size: Size, window: Size) -> Tensor:
    """The inverse of `split_windows` for `size` = (T, H, W)."""
    (t, h, w), (wt, wh, ww) = size, window
    x = x.reshape(x.shape[0], t // wt, h // wh, w // ww, wt, wh, ww, x.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape[0], t, h, w, x.shape[-1])


def relative_index(window: Size) -> Tensor:
    """`(N, N)` index into the bias table by the displacement from query (rows) to key (columns)."""
    axes = torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], dim=-1)  # (N, 3)
    shift = places[:, None] - places[None] + torch.tensor(window) - 1  # (N, N, 3), each in [0, 2*side-2]
    _, rows, columns = (2 * side - 1 for side in window)
    return (shift[..., 0] * rows + shift[..., 1]) * columns + shift[..., 2]


class Masks(NamedTuple):
    """What the queries of windows see, by kind of window, of which there are at most twelve.

    Attributes:
        grid: windows along (T, H, W).
        kinds: where in the grid the windows of a kind lie, and their mask `(N, N)` bool, which keys (last axis) each
            query sees; None: all.
    """

    grid: Size
    kinds: list[tuple[tuple[slice, slice, slice], Tensor | None]]


def window_masks(
    size: Size, window: Size, shift: list[int], frames: int, causal: bool, device: torch.device
) -> Masks:
    """The masks of all windows of a video.

    Only the last windows of an axis can differ from the others: that is where a rolled video brings opposite borders
    together, and where padding is (in the last two, if a shifted window is long). So the masks are those of a video of
    few windows an axis, the first of which stands for all ordinary ones.

    Args:
        size, window, shift, frames, causal, device: see `window_mask`.
    """
    n = [length // side for length, side in zip(size, window)]
    ends = (frames, size[1], size[2])
    ordinary = [
        max(0, end - s) // side for end, s, side in zip(ends, shift, window)
    ]  # windows before the end
    first = [max(0, o - 1) for o in ordinary]  # window `k` of the few is window `first + k`
    few = [c - f for c, f in zip(n, first)]
    padding = size[0] - frames
    small = (few[0] * window[0], few[1] * window[1], few[2] * window[2])
    masks = window_mask(small, window, shift, small[0] - padding, causal, device).unflatten(0, few)
    kinds: list[tuple[tuple[slice, slice, slice], Tensor | None]] = []
    for kind in itertools.product(*(range(c) for c in few)):
        t, h, w = (slice(f + k if k or not o else 0, f + k + 1) for k, f, o in zip(kind, first, ordinary))
        plain = not causal and all(f + k < o for k, f, o in zip(kind, first, ordinary))
        kinds.append(((t, h, w), None if plain else masks[kind]))
    return Masks((n[0], n[1], n[2]), kinds)


def window_mask(
    size: Size, window: Size, shift: list[int], frames: int, causal: bool, device: torch.device
) -> Tensor:
    """Which keys (last axis) each query of a window sees, `(windows, N, N)` bool.

    A rolled video brings opposite borders into one window: pixels from beyond a border do not see each other.

    Args:
        size: (T, H, W) of the padded video.
        window: (frames, rows, columns) of a window.
        shift: how far the video was rolled back on each axis.
        frames: real frames; later ones are padding, hidden from the real ones.
        causal: hide later frames from earlier ones.
        device: where the mask is needed.
    """
    places = [torch.arange(length, device=device) + s for length, s in zip(size, shift)]
    wrapped = [place >= length for place, length in zip(places, size)]
    region = (
        wrapped[0].int()[:, None, None] * 4 + wrapped[1].int()[:, None] * 2 + wrapped[2].int()
    )  # (T, H, W)
    time = (places[0] % size[0])[:, None, None].expand(size)  # (T, H, W)
    region, time = (
        split_windows(x[None, ..., None], window)[0, ..., 0] for x in (region, time)
    )  # (windows, N)
    query, key = time[:, :, None], time[:, None, :]
    seen = (region[:, :, None] == region[:, None, :]) & ((key < frames) | (query >= frames))
    return seen & (key <= query) if causal else seen
