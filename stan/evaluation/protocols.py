"""Named, frozen evaluation protocols: which data, how many frames, which noise.

A protocol is a promise that two tables with its name can be compared. So its records never change (a new
version gets a new number), everything that departs from one is named beside the figures
(`Protocol.departures`), and its noise depends on nothing but (protocol seed, sequence, sigma).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from stan.data.degradation import Degradation
from stan.data.noise import Noise, NumpyRandom
from stan.registry import protocols as PROTOCOLS

SEED = 2309
"""Seed of the noise of all protocols here: with one seed for all, the noise of ``quick`` is the beginning of
that of ``davis-full``."""

_PIECE = 8


@dataclass(frozen=True)
class Protocol:
    """What a named evaluation is made of.

    Attributes:
        name: as used on the command line.
        purpose: one line for a reader.
        data: layout of the data set (a kind of `stan.data.open_clips`) that the name stands for; None: any.
        split: split list of the data set; None: all sequences.
        max_frames: at most this many frames of each sequence, from the first on; None: all.
        sigmas: noise levels of published tables, 8-bit units.
        noise: kind of noise.
        border: pixels left out of the measures at each side.
        seed: seed of the noise.
        version: raised if a record had to change.
    """

    name: str
    purpose: str
    data: str | None
    split: str | None
    max_frames: int | None
    sigmas: tuple[float, ...] = (10, 20, 30, 40, 50)
    noise: str = "gaussian"
    border: int = 0
    seed: int = SEED
    version: int = 1

    def departures(
        self,
        *,
        data: str,
        split: str | None,
        max_frames: int | None,
        noise: str,
        border: int,
        seed: int,
        sequences: int | None = None,
        downscale: int = 1,
        task: str = "denoise",
    ) -> list[str]:
        """What of an evaluation is not as the protocol says, one short phrase each; empty if it can be compared.

        Its arguments are called as the attributes; and `sequences`: how many are picked by hand (None: all of
        the split), `downscale`: the factor that frames are shrunk by; `task`: what is undone beside noise.
        """
        other = self.data is not None and data != self.data
        apart = self.data == data and split != self.split
        checks = (
            (task != "denoise", f"task {task}, not denoise"),
            (other, f"data {data}, not {self.data}"),
            (apart, f"split {split or 'all sequences'}, not {self.split or 'all sequences'}"),
            (sequences is not None, f"{sequences} sequence{'s' if sequences != 1 else ''} picked by hand"),
            (max_frames != self.max_frames, f"{_frames(max_frames)}, not {_frames(self.max_frames)}"),
            (noise != self.noise, f"{noise} noise, not {self.noise}"),
            (seed != self.seed, f"noise seed {seed}, not {self.seed}"),
            (border != self.border, f"{border} pixels left out at each side, not {self.border}"),
            (downscale != 1, f"frames shrunk by {downscale}"),
        )
        return [words for differs, words in checks if differs]


for _protocol in (
    Protocol("davis-full", "every frame of DAVIS-2017 test-dev at 480p", "davis", "test-dev", None),
    Protocol(
        "davis-85", "DAVIS-2017 test-dev at 480p, first 85 frames, as most papers do", "davis", "test-dev", 85
    ),
    Protocol("set8", "the eight Set8 sequences at 960x540, every frame", "set8", None, None),
    Protocol("quick", "first 10 frames of any data, for a look; not for tables", None, "val", 10),
):
    PROTOCOLS.add(_protocol.name, _protocol, _protocol.purpose)


def get(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: an unknown name.
    """
    PROTOCOLS.component(name)
    protocol: Protocol = PROTOCOLS[name]
    return protocol


def add_noise(clean: Tensor, noise: Noise, sigma: float, *, sequence: str, seed: int = SEED) -> Tensor:
    """The noisy video of a sequence: one draw for the whole sequence, the same on every machine and device.

    The numbers come from numpy's PCG64, seeded by (seed, sequence, sigma), frame after frame, so that the
    first frames of a longer clip get the same noise. White Gaussian noise is neither clipped nor rounded.

    Args:
        clean: (T, 3, H, W) uint8.
        noise: kind of noise, see `stan.data.noise.build`.
        sigma: standard deviation in 8-bit units.
        sequence: the sequence's name.
        seed: the protocol's seed.

    Returns:
        (T, 3, H, W) float32 on the CPU.
    """
    random = NumpyRandom(seed, sequence, float(sigma))
    noisy = torch.empty(clean.shape, dtype=torch.float32)
    for start in range(0, len(clean), _PIECE):  # the draw goes on from piece to piece; memory stays small
        piece = slice(start, start + _PIECE)
        noisy[piece] = noise(to_float(clean[piece]), sigma, random).cpu()
    return noisy


def worsen(
    clean: Tensor, degradation: Degradation, noise: Noise, sigma: float, *, sequence: str, seed: int = SEED
) -> Tensor:
    """What methods get of a sequence: degraded, by numbers of (seed, sequence) alone, then noisy as `add_noise` makes
    it, then at the size of the clean video again.

    Args:
        degradation: what is undone beside noise; with that of ``denoise`` this is `add_noise`.
        clean, noise, sigma, sequence, seed: see `add_noise`.

    Returns:
        (T, 3, H, W) float32 on the CPU.
    """
    degraded = degradation(clean[None], NumpyRandom(seed, sequence, "task"))[0]
    noisy = add_noise(degraded, noise, sigma, sequence=sequence, seed=seed)
    if degradation.scale == 1:
        return noisy
    size = clean.shape[-2], clean.shape[-1]
    seen = torch.empty(clean.shape, dtype=torch.float32)
    for t, frame in enumerate(noisy):
        seen[t] = degradation.enlarged(frame[None], size)[0]
    return seen


def to_float(frames: Tensor) -> Tensor:
    """uint8 frames as float32 in [0, 1]: the value divided by 255, to the last bit, on every device."""
    return frames.float() / torch.full((1,), 255.0, device=frames.device)


def digest(video: Tensor) -> str:
    """SHA-256 of a video's values (C order, little-endian), hexadecimal: tells whether two had the same input."""
    return hashlib.sha256(video.detach().cpu().contiguous().numpy().data).hexdigest()


def _frames(cap: int | None) -> str:
    return "all frames" if cap is None else f"at most {cap} frames"
