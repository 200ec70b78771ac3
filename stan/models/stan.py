"""STAN, the UNet-like space-time attention network of arXiv 2309.16849, and its smaller relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import stan.flow
from stan import ops
from stan.flow import FlowPair
from stan.models.aggregation import Values
from stan.models.attention import Alignment, Search, SpaceTimeAttention, attention_map
from stan.models.base import AttentionMap, VideoDenoiser
from stan.models.blocks import (
    ChannelAttention,
    ChannelNorm,
    PlainBlock,
    ResidualUnit,
    StochasticDepth,
    channels_last,
    depth_to_space,
    space_to_depth,
)
from stan.models.convolutions import conv
from stan.models.registry import register
from stan.models.settings import Settings
from stan.models.window import WindowPart
from stan.registry import aggregations, alignments
from stan.settings import plain


class AttentionBlock(nn.Module):
    """Space-time attention around a skip, then the mixer: the window part or a plain block.

    Norm, attention, channel attention, stochastic depth, + input; norm, mixer, channel attention.

    Args:
        channels: C of the features.
        heads: attention heads.
        settings: of the network.
    """

    def __init__(self, channels: int, heads: int, settings: Settings) -> None:
        super().__init__()
        s = settings
        self.attention: SpaceTimeAttention | None = None
        if s.attention != "none":
            self.norm1 = ChannelNorm(channels)
            self.attention = SpaceTimeAttention(
                channels,
                heads=heads,
                key_channels=s.key_channels,
                value_channels=s.value_channels,
                alignment=alignments.build(
                    s.attention,
                    Search(
                        heads=heads,
                        key_channels=s.key_channels,
                        window=s.window,
                        temporal_window=s.temporal_window,
                        search_matches=s.search_matches,
                        refine_window=s.refine_window,
                        patch=s.patch,
                        select=s.select,
                        causal=s.causal,
                    ),
                    **s.attention_settings,
                ),
                matches=s.matches,
                scale=s.scale,
                learn_scale=s.learn_scale,
                aggregate=aggregations.build(
                    s.aggregation,
                    Values(
                        heads=heads,
                        value_channels=s.value_channels,
                        channels=channels,
                        matches=s.matches,
                        kernel=s.aggregation_kernel,
                    ),
                    **s.aggregation_settings,
                ),
            )
            self.gate1 = ChannelAttention()
            self.drop = StochasticDepth(s.drop_path)
        self.mixer: nn.Module
        self.windowed = s.mixer == "window"
        if self.windowed:
            self.norm2 = ChannelNorm(channels)
            self.mixer = WindowPart(
                channels,
                heads=s.window_heads,
                window=s.window_size,
                groups=s.window_groups,
                mlp_ratio=s.mlp_ratio,
                causal=s.causal,
            )
            self.gate2 = ChannelAttention()
        else:
            self.mixer = PlainBlock(channels, s.block_skip)

    def forward(
        self, x: Tensor, clips: int, flow: Tensor | None, earlier: ops.Matches | None
    ) -> tuple[Tensor, ops.Matches | None, Tensor | None]:
        """`x` (N, C, H, W) with N = clips*T to the same, the matches found and their weights."""
        found = weights = None
        if self.attention is not None:
            y, found, weights = self.attention(self.norm1(x), clips, flow, earlier)
            x = x + self.drop(self.gate1(y), clips)
        if self.windowed:
            return self.gate2(self.mixer(self.norm2(x), clips)), found, weights
        return self.mixer(x), found, weights


class Stage(nn.Module):
    """One residual unit, then blocks of one kind at one resolution.

    Args:
        channels: C of the features.
        depth: blocks.
        heads: attention heads; 0 makes the blocks plain.
        settings: of the network.
    """

    def __init__(self, channels: int, depth: int, heads: int, settings: Settings) -> None:
        super().__init__()
        self.heads = heads
        self.recompute = settings.recompute
        self.unit = ResidualUnit(channels)
        self.blocks = nn.ModuleList(
            AttentionBlock(channels, heads, settings) if heads else PlainBlock(channels, settings.block_skip)
            for _ in range(depth)
        )

    def forward(
        self, x: Tensor, clips: int, flow: Tensor | None = None
    ) -> tuple[Tensor, list[tuple[ops.Matches, Tensor]]]:
        """`x` (N, C, H, W) to the same, and of each attention block the matches and weights."""
        looked: list[tuple[ops.Matches, Tensor]] = []
        earlier: ops.Matches | None = None
        x = self._run(self.unit, x)
        for block in self.blocks:
            if not self.heads:
                x = self._run(block, x)
                continue
            x, found, weights = self._run(block, x, clips, flow, earlier)
            if found is not None:
                looked.append((found, weights))
            if earlier is None and found is not None:
                earlier = ops.Matches(found.scores.detach(), found.offsets.detach(), found.frames)
        return x, looked

    def _run(self, module: Callable[..., Any], *inputs: Any) -> Any:
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)


class Stan(VideoDenoiser):
    """The network: a UNet over space whose middle (or any encoder level) attends over space and time.

    Args:
        name: of the registry.
        settings: see `Settings`.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        s = settings
        super().__init__(
            name=name,
            settings=plain(s),
            source=stan.flow.build(s.flow, **s.flow_settings),
            blind=s.blind,
            causal=s.causal,
            temporal_reach=s.temporal_window if s.attends else 0,
            multiple=s.multiple,
        )
        self.plan = s
        c = s.channels
        levels = len(c)
        self.enter = nn.Conv2d(3 * s.stem**2 + (0 if s.blind else 1), c[0], 3, padding=1)
        self.encoders = nn.ModuleList(Stage(c[i], s.depths[i], s.heads[i], s) for i in range(levels))
        self.downs = nn.ModuleList(
            nn.Conv2d(c[i], c[i + 1], 4, stride=2, padding=1) for i in range(levels - 1)
        )
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        below = c[-1]
        for i in reversed(range(levels - 1)):
            self.ups.append(nn.ConvTranspose2d(below, c[i], 2, stride=2))
            below = 2 * c[i] if s.skip == "concat" else c[i]
            self.decoders.append(Stage(below, s.depths[i], 0, s))
        self.leave = nn.Conv2d(below, 3 * s.stem**2, 3, padding=1)
        initialise(self)
        for module in self.modules():
            if isinstance(module, SpaceTimeAttention):
                module.start_from_similarity()
        nn.init.trunc_normal_(self.leave.weight, std=0.001)  # training starts near the identity

    def needs_flow(self) -> bool:
        """Only a variant that looks at the flow needs one."""
        return self.plan.attends and any(isinstance(m, Alignment) and m.uses_flow for m in self.modules())

    def forward_core(
        self, noisy: Tensor, noise_map: Tensor | None, flow: FlowPair | None, return_matches: bool = False
    ) -> tuple[Tensor, list[AttentionMap]]:
        """See `VideoDenoiser.forward_core`; this part compiles as one graph."""
        s = self.plan
        b = noisy.shape[0]
        x = space_to_depth(noisy.flatten(0, 1), s.stem)  # (N, 3*stem*stem, H/stem, W/stem)
        if noise_map is not None:
            level = F.avg_pool2d(noise_map.flatten(0, 1), s.stem) if s.stem > 1 else noise_map.flatten(0, 1)
            x = torch.cat([x, level.to(x.dtype)], dim=1)
        x = channels_last(x)
        x = F.leaky_relu(conv(self.enter, x), 0.2)

        maps: list[AttentionMap] = []
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoders):
            if i > 0:
                x = self.downs[i - 1](x)
            scale = s.stem * 2**i
            x, looked = stage(x, b, self._displacements(flow, x, s.heads[i]))
            if return_matches:
                maps += [attention_map(f"{i}.{n}", scale, *pair) for n, pair in enumerate(looked)]
            skips.append(x)
        skips.pop()
        for up, stage in zip(self.ups, self.decoders):
            x, skip = up(x), skips.pop()
            x, _ = stage(torch.cat([x, skip], dim=1) if s.skip == "concat" else x + skip, b)
        residual = depth_to_space(channels_last(conv(self.leave, x)), s.stem)
        return noisy + residual.unflatten(0, (b, -1)), maps

    def _displacements(self, flow: FlowPair | None, x: Tensor, heads: int) -> Tensor | None:
        """The flow as displacements to the searched frames at the resolution of `x`, where it is needed."""
        if not heads or flow is None or not self.needs_flow():
            return None
        size = (x.shape[-2], x.shape[-1])
        missing = 0 if self.causal else self.plan.slots - flow.forward.shape[1]
        forward, backward = (ops.rescale_flow(f, size) for f in flow)
        if missing > 0:  # frames that are none, see SpaceTimeAttention
            forward, backward = (F.pad(f, (0, 0, 0, 0, 0, 0, 0, missing)) for f in (forward, backward))
        return ops.search_flow(
            forward, backward, temporal_window=self.plan.temporal_window, causal=self.causal
        )  # (B, T, W_t-1, 2, h, w)


def initialise(model: VideoDenoiser) -> None:
    """The paper's initialisation: truncated normal of standard deviation 0.02 for linear and 2-D convolution
    weights and position biases, zero biases. Everything else keeps PyTorch's, and the offset source its own."""
    source = set(model.source.modules())
    for module in model.modules():
        if module in source:
            continue
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if (
            isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d))
            and module.bias is not None
        ):
            nn.init.zeros_(module.bias)


@register("stan", declares=Settings)
def stan_paper(**settings: Any) -> Stan:
    """The paper's network, 12.07 M parameters."""
    return Stan("stan", Settings(**settings))


SMALL: dict[str, Any] = {
    "stem": 2,
    "channels": (48, 96, 128),
    "skip": "add",
    "depths": (1, 2, 2),
    "heads": (0, 6, 0),
    "value_channels": 16,
    "aggregation": "sum",
    "learn_scale": True,
    "mixer": "plain",
    "drop_path": 0.0,
}

TINY: dict[str, Any] = {
    "stem": 2,
    "channels": (32, 64),
    "skip": "add",
    "block_skip": True,
    "depths": (1, 1),
    "heads": (1, 0),
    "window": 3,
    "search_matches": 5,
    "matches": 5,
    "aggregation": "sum",
    "learn_scale": True,
    "mixer": "plain",
    "drop_path": 0.0,
}


@register("unet_small", declares=Settings, preset=SMALL)
def unet_small(**settings: Any) -> Stan:
    """The paper's network with 3.8 M parameters."""
    return Stan("unet_small", Settings(**settings))


@register("unet_tiny", declares=Settings, preset=TINY)
def unet_tiny(**settings: Any) -> Stan:
    """The paper's network with 0.4 M parameters, for experiments on a CPU."""
    return Stan("unet_tiny", Settings(**settings))
