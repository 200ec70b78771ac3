"""Noise: kinds by name, levels as people write them, and random numbers from keys.

noise = build("gaussian")
sigma = parse_sigma("0..50").draw(random, batch)      # 8-bit units, one a clip
noisy = noise(clean, sigma, TorchRandom(device, seed, step, rank))
"""

from __future__ import annotations

from stan.data.noise.footage import Footage as Footage
from stan.data.noise.kinds import Noise, build
from stan.data.noise.random import NumpyRandom, PerClip, Random, TorchRandom, entropy
from stan.data.noise.sigma import SigmaRange, parse_levels, parse_sigma

__all__ = [
    "Noise",
    "NumpyRandom",
    "PerClip",
    "Random",
    "SigmaRange",
    "TorchRandom",
    "build",
    "entropy",
    "parse_levels",
    "parse_sigma",
]
