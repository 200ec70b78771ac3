"""Flow that is steadied: by the flow of the frames around, by its way back, by smoother flow, by the pictures."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan.errors import ConfigError
from stan.flow.base import FlowPair, OffsetSource, bordered, enlarged, grey, smoothed
from stan.registry import sources
from stan.settings import Count, named

REDUCED = 2
"""How much smaller the pictures are in which flow is compared."""

CELL = 2
"""Side of the squares of reduced pixels that are corrected together."""

NEAR, WIDE = 3, 9
"""Sides of the squares of cells over which flow is averaged, and slopes are added."""

DILATIONS = (1, 2, 4)
"""Of the convolutions: a correction sees 15 x 15 cells, 60 x 60 pixels."""

FARTHEST = 8.0
"""Reduced pixels by which a proposal may differ from the flow."""

LONGEST_STEP = 1.0
"""Reduced pixels of a step by brightness: farther, a slope says nothing."""

LEAST = 1e-6
"""Added to squares of grey values, before their logarithm is taken or they divide."""

STEADINESS = 0.02
"""Share of the slopes in all directions that holds a step back in each of them."""

KEPT = 3.0
"""Where a fresh source begins: the flow as it is weighs e to this power times as much as each proposal."""


DEFAULTS: dict[str, Any] = {}
"""Settings that are all as declared."""


@sources.register("steady")
class SteadyFlow(OffsetSource):
    """The flow of another source, corrected by a small network that has seen how noise misleads it.

    What cleaning has left of the noise misleads flow, in each pair of frames in another way. So the flow of a pair is
    compared with what else is known of the same motion: the flow back, the flow of the pairs before and after, the
    flow around, and a step by the brightness of the two frames. For each cell of 4 x 4 pixels a network of three
    convolutions takes a weighted mean of these proposals, and adds a small correction. It sees the proposals relative
    to the flow, how well flow and proposals meet the pictures, and the slopes of the picture: one motion is as good as
    another.

    Its weights are trained by themselves, in half an hour (`scripts/train_flow.py`), and are part of the network that
    it serves. Training that network leaves them as they are; fresh ones are no better than the base alone.

    Args:
        base: the offset source whose flow is corrected; without weights, and of two frames at a time.
        base_settings: its settings.
        channels: features inside the network.

    Raises:
        ConfigError: for a base that learns, or looks at more than two frames.
    """

    needs_training = True
    pairwise = True
    context = 1
    torch_only = False

    PROPOSALS = 7
    """The way back turned round, the flow before, the flow after, two steps by brightness, two means."""

    SEEN = 2 * PROPOSALS + 4 + 3 + 2
    """Proposals, errors of four flows, slopes, and whether there are frames before and after."""

    def __init__(
        self,
        *,
        base: Annotated[str, sources] = "dis",
        base_settings: dict[str, Any] = DEFAULTS,
        channels: Count = 16,
    ) -> None:
        super().__init__(**named(locals()))
        self.base: OffsetSource = sources.build(base, **self.settings["base_settings"])
        if [*self.base.parameters()] or not self.base.pairwise or self.base.context:
            raise ConfigError(
                f"offset source 'steady' corrects flow of two frames without weights, not base={base!r}"
            )
        # The other weights of a network are drawn as they would be beside a source without weights.
        with torch.random.fork_rng(devices=[]):
            self.layers = nn.ModuleList(
                nn.Conv2d(channels if n else self.SEEN, channels, 3, padding=d, dilation=d)
                for n, d in enumerate(DILATIONS)
            )
            last = nn.Conv2d(channels, 1 + self.PROPOSALS + 2, 1)
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                last.bias[0] = KEPT
            self.last = last
        self.requires_grad_(False)

    @property
    def version(self) -> str:
        """That of the base, and a sum of the weights."""
        digest = hashlib.sha256()
        for parameter in self.parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return f"{self.base.version}, weights {digest.hexdigest()[:16]}"

    def estimate(self, video: Tensor) -> FlowPair:
        """The flow of the base, corrected."""
        return self.corrected(video, self.base.estimate(video))

    def measured(self, video: Tensor) -> FlowPair:
        """See `OffsetSource.measured`."""
        return self.base(video)

    def corrected(self, video: Tensor, flow: FlowPair) -> FlowPair:
        """See `OffsetSource.corrected`."""
        t, height, width = video.shape[1], *video.shape[3:]
        if t == 1:
            return flow
        with torch.autocast(video.device.type, enabled=False):
            pictures = reduced(grey(video).unsqueeze(2))  # (B, T, 1, h, w)
            ahead, back = (reduced(f.detach().float()) / REDUCED for f in flow)
            there = self._corrections(pictures, ahead, back, reverse=False)
            here = self._corrections(pictures.flip(1), back.flip(1), ahead.flip(1), reverse=True)
            moves = [
                enlarged(f, REDUCED * CELL)[..., :height, :width]
                / CELL  # it counts cells, which are half as many
                for f in (there, here.flip(1))
            ]
            forward = torch.cat([flow.forward[:, :-1] + moves[0], flow.forward[:, -1:]], 1)
            backward = torch.cat([flow.backward[:, :1], flow.backward[:, 1:] + moves[1]], 1)
        return FlowPair(forward, backward)

    def _corrections(self, pictures: Tensor, ahead: Tensor, back: Tensor, reverse: bool) -> Tensor:
        """What is added to the flow from each frame but the last to the next one, `(B, T-1, 2, h', w')` by cell, in
        reduced pixels.

        Args:
            pictures: `(B, T, 1, h, w)`.
            ahead: `(B, T, 2, h, w)`, the flow to the next frame.
            back: the same to the frame before.
            reverse: the frames are in the reverse of their order.
        """
        b, pairs = pictures.shape[0], pictures.shape[1] - 1
        known = pictures.new_ones(b, pairs, 2)  # are there frames before and after the pair?
        known[:, 0, 0] = known[:, -1, 1] = 0
        if self.causal:  # none before in time, if what is wanted is the flow back in time
            known[:, :, 0 if reverse else 1] = 0
        given = [
            x.flatten(0, 1)
            for x in (
                pictures[:, :-1],
                pictures[:, 1:],
                ahead[:, :-1],
                back[:, 1:],
                back[:, :-1],
                ahead[:, 1:],
                known,
            )
        ]
        if torch.is_grad_enabled() and self.last.weight.requires_grad:
            made = self._correction(*given)
        else:  # one by one they stay in the cache
            made = torch.cat([self._correction(*one) for one in zip(*(x.split(1) for x in given))])
        return made.unflatten(0, (b, pairs))

    def _correction(
        self,
        here: Tensor,
        there: Tensor,
        flow: Tensor,
        back: Tensor,
        before: Tensor,
        after: Tensor,
        known: Tensor,
    ) -> Tensor:
        """What is added to the flow of N pairs of frames, `(N, 2, h', w')` by cell.

        Args:
            here, there: the frames of each pair, `(N, 1, h, w)`.
            flow: from here to there, `(N, 2, h, w)`.
            back: from there to here.
            before: from here to the frame before.
            after: from there to the frame after.
            known: `(N, 2)`, whether there are such frames, 0 or 1.
        """
        moved = warped(torch.cat([back, after, there], 1), flow)
        known = known[:, :, None, None]
        alike = [
            -moved[:, :2],
            torch.where(known[:, :1] > 0, -before, flow),
            torch.where(known[:, 1:] > 0, moved[:, 2:4], flow),
        ]
        met = [moved[:, 4:], *(warped(there, f) for f in alike)]
        errors = [smoothed(by_cell((picture - here).square()), NEAR).add(LEAST).log() for picture in met]
        slopes = slopes_of(here, met[0])
        coarse = by_cell(flow)
        moves = [by_cell(f) - coarse for f in alike]
        moves += [step(smoothed(slopes, side)) for side in (NEAR, WIDE)]
        moves += [smoothed(coarse, side) - coarse for side in (NEAR, WIDE)]
        moves = [move.clamp(-FARTHEST, FARTHEST) for move in moves]
        xx, xy, yy = smoothed(slopes[:, :3], NEAR).split(1, 1)
        seen = [move / (1 + move.abs()) for move in moves]
        seen += [errors[0] / 2 + 4, *(error - errors[0] for error in errors[1:])]
        seen += [(x + LEAST).log() / 2 + 4 for x in (xx, yy)]
        seen += [xy / (xx + yy + LEAST), known.expand(-1, -1, *coarse.shape[2:])]
        x = torch.cat(seen, 1)
        for layer in self.layers:
            x = F.relu(layer(x))
        x = self.last(x)
        weights, correction = x[:, : 1 + self.PROPOSALS].softmax(1), x[:, 1 + self.PROPOSALS :]
        for n, move in enumerate(moves):
            correction = torch.addcmul(correction, weights[:, 1 + n : 2 + n], move)
        return correction


def slopes_of(here: Tensor, met: Tensor) -> Tensor:
    """Means over cells of the products of the slopes (x, y) of the picture and its change d from `here` to what the
    flow meets: xx, xy, yy, xd, yd; `(N, 5, h', w')`."""
    wide = F.pad((here + met) / 2, (1, 1, 1, 1), mode="replicate")
    x = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    y = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    change = met - here
    return by_cell(torch.cat([x * x, x * y, y * y, x * change, y * change], 1))


def step(slopes: Tensor) -> Tensor:
    """The step that makes up for a change of brightness, `(N, 2, h, w)`, from sums `(N, 5, h, w)` as of `slopes_of`."""
    xx, xy, yy, xd, yd = slopes.split(1, 1)
    hold = STEADINESS * (xx + yy) + 10 * LEAST
    xx, yy = xx + hold, yy + hold
    both = torch.cat([xy * yd - yy * xd, xy * xd - xx * yd], 1) / (xx * yy - xy * xy)
    return both.clamp(-LONGEST_STEP, LONGEST_STEP)


def reduced(x: Tensor) -> Tensor:
    """`(B, T, C, H, W)` at a `REDUCED` part of the size, in whole cells; the border repeats."""
    whole = bordered(x.flatten(0, 1), REDUCED * CELL)
    return by_cell(whole).unflatten(0, x.shape[:2])  # both are 2


def by_cell(x: Tensor) -> Tensor:
    """Means over cells: `avg_pool2d`, in a third of the time."""
    return F.interpolate(x, scale_factor=1 / CELL, mode="bilinear")


def warped(x: Tensor, flow: Tensor) -> Tensor:
    """`x` `(N, C, h, w)` where `flow` `(N, 2, h, w)` points, bilinearly; edges repeat."""
    h, w = x.shape[-2:]
    places = [
        (f + torch.arange(side, dtype=f.dtype, device=f.device).view(shape)) * (2 / max(1, side - 1)) - 1
        for f, side, shape in zip(flow.unbind(1), (w, h), ((1, -1), (-1, 1)))
    ]
    return F.grid_sample(x, torch.stack(places, -1), padding_mode="border", align_corners=True)
