"""Clean clips to validate on, and the score of a network on one of them under fixed noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stan.config import Config
from stan.data.clips import Clip
from stan.data.noise import Noise, NumpyRandom
from stan.metrics import psnr, ssim
from stan.models import VideoDenoiser


class ValidationClip(NamedTuple):
    """The part of a sequence that is validated on."""

    name: str
    clean: Tensor  # uint8 (T, 3, H, W)


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
        clean = clip.read(0, min(self.frames or len(clip), len(clip)))
        height, width = clean.shape[-2:]
        if self.crop:
            top, left = max(0, (height - self.crop) // 2), max(0, (width - self.crop) // 2)
            clean = clean[..., top : top + self.crop, left : left + self.crop]
        return ValidationClip(clip.name, clean.contiguous())


class Score(NamedTuple):
    """Means over the frames of a clip, and the frames themselves for pictures."""

    psnr: float  # dB
    ssim: float
    psnr_noisy: float  # dB
    noisy: Tensor  # (T, 3, H, W) on the CPU
    denoised: Tensor  # (T, 3, H, W) in [0, 1], on the CPU


@torch.no_grad()
def score(
    model: VideoDenoiser, clip: ValidationClip, sigma: float, noise: Noise, seed: int, device: torch.device
) -> Score:
    """Denoise a clip whose noise is a pure function of (seed, name, sigma).

    Args:
        model: a network in eval mode on ``device``.
        clip: clean frames.
        sigma: noise level, 8-bit units.
        noise: the kind of noise.
        seed: first part of the noise key.
        device: where the network runs.
    """
    clean = clip.clean.float() / 255
    noisy = noise(clean, sigma, NumpyRandom(seed, "validation", clip.name, float(sigma)))
    denoised = model(noisy[None].to(device), sigma=None if model.blind else sigma)[0]
    denoised = denoised.float().clamp(0, 1).cpu()
    return Score(
        float(psnr(clean, denoised).mean()),
        float(ssim(clean, denoised).mean()),
        float(psnr(clean, noisy).mean()),
        noisy,
        denoised,
    )


def validation_sigmas(config: Config, low: float, high: float) -> list[float]:
    """The levels to validate at: those of the configuration, else the middle of the trained range."""
    return list(config.validation.sigmas or [round((low + high) / 2, 3)])
