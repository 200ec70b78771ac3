"""Noise as video files hold it: independent in luma, coarse in chroma, whose planes have half the resolution."""

from __future__ import annotations

import math
from typing import Annotated

import torch

from stan.data.noise.kinds import Noise
from stan.data.noise.random import Random
from stan.data.video.colour import chroma_to_luma_grid
from stan.errors import ConfigError
from stan.registry import noises
from stan.settings import at_least, between

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma (ITU-R BT.601)."""

LUMA_GAIN = math.hypot(*LUMA)
"""Standard deviation that white RGB noise of deviation 1 has in luma."""


@noises.register("footage")
class Footage(Noise):
    """Gaussian noise in Y', Cb and Cr, with the chroma planes at half resolution, in a part of the clips; white RGB
    noise in the others.

    A network that has seen white noise alone leaves the coloured blotches in that most noisy video files have.
    Their form depends on how chroma is brought to the pixels: it is done here as `stan` does it when it reads a file
    (`stan.data.video.colour`), with chroma on every second luma column in half of the clips and midway between two
    in the other half. Sigma is the level of white RGB noise with the same noise in luma, which is also what the level
    of a video is estimated as (`stan.inference.frame_sigma`). Noise is neither clipped nor rounded.

    Which clips get it, how strong their chroma noise is, and where chroma sits depends on the key of the random
    numbers alone.

    Args:
        share: part of the clips with noise in Y', Cb and Cr.
        least_chroma: deviation in Cb and Cr as a multiple of that in Y', at least.
        most_chroma: the same, at most.
    """

    def __init__(
        self,
        *,
        share: Annotated[float, between(0, 1)] = 0.5,
        least_chroma: Annotated[float, at_least(0)] = 0.3,
        most_chroma: Annotated[float, at_least(0)] = 1.2,
    ) -> None:
        if least_chroma > most_chroma:
            raise ConfigError(
                f"noise footage: least_chroma={least_chroma:g} is above most_chroma={most_chroma:g}"
            )
        super().__init__(share=share, least_chroma=least_chroma, most_chroma=most_chroma)
        self.share, self.least_chroma, self.most_chroma = share, least_chroma, most_chroma

    def _add(self, clean: torch.Tensor, std: torch.Tensor, random: Random) -> torch.Tensor:
        white = random.normal(clean.shape).to(clean.device)  # (..., T, 3, H, W)
        clips = clean.shape[:-4]
        coarse = (*clean.shape[:-3], 2, *(-(-side // 2) for side in clean.shape[-2:]))
        choice = random.fresh("choice")
        ratio = torch.full(clips, self.most_chroma, device=clean.device)
        if self.least_chroma < self.most_chroma:
            spread = self.most_chroma - self.least_chroma
            ratio = self.least_chroma + choice.uniform(clips).to(clean.device) * spread
        chroma = random.stream("chroma").normal(coarse).to(clean.device) * ratio.reshape(*clips, 1, 1, 1, 1)
        chosen = choice.uniform(clips).to(clean.device) < self.share
        centred = choice.uniform(clips).to(clean.device) < 0.5
        # Only for the clips that get it, and only on the grid that each has.
        white, chroma = white.reshape(-1, *white.shape[-4:]), chroma.reshape(-1, *chroma.shape[-4:])
        for grid in (True, False):
            picked = (chosen & (centred == grid)).flatten().nonzero().flatten()
            if len(picked):
                white[picked] = _coloured(white[picked], chroma[picked], grid)
        return clean + white.reshape(clean.shape) * std


def _coloured(white: torch.Tensor, chroma: torch.Tensor, centred: bool) -> torch.Tensor:
    """White RGB noise `(N, T, 3, H, W)` with its luma kept and coarse chroma `(N, T, 2, h, w)` in place of its own."""
    height, width = white.shape[-2:]
    luma = sum(plane * weight for plane, weight in zip(white.unbind(-3), LUMA))
    assert isinstance(luma, torch.Tensor)
    luma = luma / LUMA_GAIN
    cb, cr = chroma_to_luma_grid(chroma, height, width, centred).unbind(-3)
    planes = [luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb]
    return LUMA_GAIN * torch.stack(planes, -3)
