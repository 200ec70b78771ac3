"""Clean clips to validate on, and the score of a network on one of them under fixed noise."""

from __future__ import annotations

from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stan.config import Config
from stan.data.cache import cached
from stan.data.clips import Clip
from stan.data.degradation import Degradation
from stan.data.noise import Noise, NumpyRandom
from stan.data.pairs import PairedClip
from stan.data.sources import open_clips
from stan.metrics import psnr, ssim
from stan.models import VideoDenoiser
from stan.training.module import DenoisingModule, StepCallback


class ValidationClip(NamedTuple):
    """The part of a sequence that is validated on."""

    name: str
    clean: Tensor  # uint8 (T, 3, H, W)
    noisy: Tensor | None = None  # as recorded, uint8 (T, 3, H, W); None: noise is to be added


class ValidationClips(Dataset[ValidationClip]):
    """The first frames and the central square of each clip.

    Args:
        clips: the sequences.
        frames: frames that are used, 0 for all.
        crop: side of the square in pixels, 0 for the whole frame; smaller frames are used whole.
        sequences: clips that are used, 0 for all.
    """

    def __init__(self, clips: list[Clip], *, frames: int = 0, crop: int = 0, sequences: int = 0) -> None:
        self.clips = clips[: sequences or None]
        self.frames, self.crop = frames, crop

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ValidationClip:
        clip = self.clips[index]
        noisy = self._cut(clip.noisy) if isinstance(clip, PairedClip) else None
        return ValidationClip(clip.name, self._cut(clip), noisy)

    def _cut(self, clip: Clip) -> Tensor:
        return central_square(clip.read(0, min(self.frames or len(clip), len(clip))), self.crop)


def central_square(frames: Tensor, side: int) -> Tensor:
    """The middle `side` x `side` pixels of `(..., H, W)`, or as many as there are; 0: all."""
    if side:
        top, left = (max(0, (length - side) // 2) for length in frames.shape[-2:])
        frames = frames[..., top : top + side, left : left + side]
    return frames.contiguous()


def open_validation_clips(config: Config) -> ValidationClips:
    """The part of the validation sequences that is used."""
    data = config.data
    root, noisy = data.root, data.noisy
    if data.validation_root:
        root, noisy = data.validation_root, data.validation_noisy
    clips = open_clips(data.kind, root, data.validation_split, noisy)
    clips = cached(clips, data.cache, downscale=data.downscale)
    options = config.validation
    return ValidationClips(clips, frames=options.frames, crop=options.crop, sequences=options.sequences)


class Score(NamedTuple):
    """Means over the frames of a clip, and the frames themselves for pictures."""

    psnr: float  # dB
    ssim: float
    psnr_noisy: float  # dB
    noisy: Tensor  # (T, 3, H, W) on the CPU
    denoised: Tensor  # (T, 3, H, W) in [0, 1], on the CPU


@torch.no_grad()
def score(
    model: VideoDenoiser,
    clip: ValidationClip,
    sigma: float,
    noise: Noise,
    degradation: Degradation,
    seed: int,
    device: torch.device,
) -> Score:
    """Restore a clip whose noise is recorded, or else its degradation and noise a pure function of (seed, name, sigma).

    Args:
        model: a network in eval mode on ``device``.
        clip: clean frames, and the noisy ones of a pair.
        sigma: noise level, 8-bit units.
        noise: the kind of noise.
        degradation: what is done to the clip before.
        seed: first part of the noise key.
        device: where the network runs.
    """
    clean = clip.clean.float() / 255
    if clip.noisy is None:
        random = NumpyRandom(seed, "validation", clip.name, float(sigma))
        noisy = degradation.worsened(clip.clean[None], noise, sigma, random)[0]
    else:
        noisy = clip.noisy.float() / 255
    denoised = model(noisy[None].to(device), sigma=None if model.blind else sigma)[0]
    denoised = denoised.float().clamp(0, 1).cpu()
    return Score(
        float(psnr(clean, denoised).mean()),
        float(ssim(clean, denoised).mean()),
        float(psnr(clean, noisy).mean()),
        noisy,
        denoised,
    )


class Validated(NamedTuple):
    """What one validation found: means over all clips and levels, of all processes."""

    step: int
    psnr: float  # dB
    ssim: float
    psnr_noisy: float  # dB
    shown: list[tuple[ValidationClip, float, Score]]  # of the first clips, for pictures


class Validation(StepCallback):
    """Scores the averaged network every so many steps and after the last one.

    The clips are shared out over the processes, which need not get equally many.

    Args:
        every: optimiser steps between validations; 0: never.

    Attributes:
        result: what was found after the step at hand; None if it was not validated.
    """

    SHOWN_CLIPS = 2

    def __init__(self, every: int) -> None:
        self.every = every
        self.result: Validated | None = None
        self._clips: ValidationClips | None = None

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Validate where it is due."""
        self.result = None
        step = trainer.global_step
        if self.every and ends_step and (step % self.every == 0 or step == trainer.max_steps):
            self.result = self._run(trainer, module)

    def _run(self, trainer: pl.Trainer, module: DenoisingModule) -> Validated:
        if self._clips is None:
            self._clips = open_validation_clips(module.config)
        network = module.best_network
        training, seed = network.training, module.config.seed
        network.eval()
        shown: list[tuple[ValidationClip, float, Score]] = []
        sums = torch.zeros(4, dtype=torch.float64)
        mine = range(trainer.global_rank, len(self._clips), trainer.world_size)
        with trainer.precision_plugin.val_step_context():
            for place, index in enumerate(mine):
                clip = self._clips[index]
                for sigma in module.validation_sigmas:
                    found = score(network, clip, sigma, module.noise, module.degradation, seed, module.device)
                    sums += torch.tensor([found.psnr, found.ssim, found.psnr_noisy, 1.0], dtype=sums.dtype)
                    if place < self.SHOWN_CLIPS:
                        shown.append((clip, sigma, found))
        network.train(training)
        if trainer.world_size > 1:
            device = sums.float().to(module.device)
            sums = torch.as_tensor(trainer.strategy.reduce(device, reduce_op="sum")).double().cpu()
        psnr, ssim, noisy, count = sums.tolist()
        return Validated(trainer.global_step, psnr / count, ssim / count, noisy / count, shown)
