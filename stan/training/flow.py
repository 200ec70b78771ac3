"""Trains the flow of a two-pass network by itself: in what is left of noisy clips it shall find what is in clean ones.
The gradient of the merge, by which a source learns with its network, draws flow to places between pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.config import Config
from stan.data import degradation
from stan.data.noise import PerClip, TorchRandom, build, parse_sigma
from stan.errors import ConfigError
from stan.flow import FlowPair, OffsetSource
from stan.flow.base import grey
from stan.flow.steady import warped
from stan.models.cells import CELL
from stan.models.two_pass import TwoPass
from stan.training.data_module import training_samples
from stan.training.optimizer import rate_factor

HARM = 10.0
"""Factor on the error of a match in units of the noise variance: flow is followed over several frames, so that errors
add up."""

DISTANCE = 0.1
"""Weight of the mean distance to the flow of clean frames, in pixels, which also counts where nothing is to be seen."""

LEAST_LEVEL = 1 / 255
"""Added to the noise level: with none at all every error would be without end."""


class FlowClips(NamedTuple):
    """What a step learns from.

    Attributes:
        seen: `(B, T, 3, H, W)`, the frames of which a network estimates flow between its passes.
        clean: `(B, T, 3, H, W)` in [0, 1].
        sigma: `(B,)`, level of the noise in units of the video.
        wanted: the flow of the clean frames.
    """

    seen: Tensor
    clean: Tensor
    sigma: Tensor
    wanted: FlowPair


def train_flow(
    model: TwoPass, teacher: OffsetSource, config: Config, tell: Callable[[int, float, float], None]
) -> None:
    """Train the offset source of a network; its other weights stay as they are.

    Clips, noise, steps and rate are those of the configuration (`data`, `noise`, `optimizer`, `trainer.max_steps`).
    The same configuration and weights give the same result.

    Args:
        model: the network; its source has weights.
        teacher: says what the flow of the clean frames is.
        config: see above.
        tell: hears after each step its number, from 1, the loss, and what it would be without weights: that of the flow
            that a source measures before it corrects, or else of the teacher's flow of the same frames.

    Raises:
        ConfigError: for a source without weights, or data or noise that cannot be had.
    """
    source, options, steps = model.source, config.optimizer, config.trainer.max_steps
    if not any(p.numel() for p in source.parameters()):
        raise ConfigError(f"model.flow={source.name} has no weights; steady and learned have")
    if config.data.crop % model.multiple:
        raise ConfigError(
            f"data.crop={config.data.crop} must be a multiple of {model.multiple} for {model.name}"
        )
    source.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        source.parameters(),
        options.lr,
        (options.betas[0], options.betas[1]),
        weight_decay=options.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(options, step, steps))
    plain = source if source.context else teacher
    for step, clips in enumerate(_drawn(model.eval(), teacher, config), 1):
        with torch.no_grad():
            before = plain.measured(clips.seen)
        flow = source.corrected(clips.seen, before) if source.context else source(clips.seen)
        loss = flow_loss(flow, clips)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(source.parameters(), options.clip_norm or math.inf)
        if norm.isfinite():  # else nothing changes
            optimizer.step()
        schedule.step()
        tell(step, float(loss.detach()), float(flow_loss(before, clips)))
    source.requires_grad_(source.trainable).eval()


def flow_loss(flow: FlowPair, clips: FlowClips) -> Tensor:
    """How badly flow meets the clean pictures, in mean over cells of 4 x 4 pixels.

    The mean squared difference e of what flow meets, in the clean frames, and in units of the noise variance, is what a
    match costs the merge. It counts as log(1 + `HARM` e), so that a few cells do not outweigh all others, and by
    1 / (1 + `HARM` e') where the flow of clean frames has e': what is covered in the other frame shall not be looked
    for elsewhere. `DISTANCE` times the distance from that flow is added.

    Args:
        flow: `(B, T, 2, H, W)` each.
        clips: what it was estimated of.
    """
    pictures = grey(clips.clean).unsqueeze(2)  # (B, T, 1, H, W)
    t = pictures.shape[1]
    level = (clips.sigma + LEAST_LEVEL).repeat_interleave(t - 1).view(-1, 1, 1, 1)
    total = pictures.new_zeros(())
    for found, wanted, these, there in (
        (flow.forward, clips.wanted.forward, slice(0, t - 1), slice(1, t)),
        (flow.backward, clips.wanted.backward, slice(1, t), slice(0, t - 1)),
    ):
        picture, other = (pictures[:, part].flatten(0, 1) / level for part in (these, there))
        found, wanted = found[:, these].flatten(0, 1), wanted[:, these].flatten(0, 1)
        error, least = (
            HARM * F.avg_pool2d((warped(other, f) - picture).square(), CELL) for f in (found, wanted)
        )
        distance = F.avg_pool2d(found - wanted, CELL).square().sum(1).add(0.01).sqrt()
        total = total + ((error.log1p() / (1 + least)).mean() + DISTANCE * distance.mean()) / 2
    return total


def _drawn(model: TwoPass, teacher: OffsetSource, config: Config) -> Iterator[FlowClips]:
    """The clips of all steps; those of the next one are made while a step is computed."""
    samples = training_samples(config)
    worsened = degradation.build(config.task, **config.task_settings).worsened
    noise, sigmas = build(config.noise.kind, **config.noise.settings), parse_sigma(config.noise.sigma)
    count = config.data.batch_size

    @torch.no_grad()
    def make(step: int) -> FlowClips:
        numbers = range(step * count, (step + 1) * count)
        clean = torch.stack([samples[n] for n in numbers])
        random = PerClip([TorchRandom(torch.device("cpu"), config.seed, "train flow", n) for n in numbers])
        sigma = sigmas.draw(random, count) / 255
        noisy = worsened(clean, noise, 255 * sigma, random)
        left = model.first_pass(noisy, sigma.view(-1, 1, 1, 1, 1).expand(-1, noisy.shape[1], -1, -1, -1))
        clean = clean.float() / 255
        return FlowClips(model.flow_view(noisy, left.frames), clean, sigma, teacher(clean))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, 0)
        for step in range(config.trainer.max_steps):
            clips = coming.result()
            if step + 1 < config.trainer.max_steps:
                coming = pool.submit(make, step + 1)
            yield clips
