"""A trained network on real video: any size and length, in bounded memory, with the noise level found by
itself."""

from __future__ import annotations

from stan.inference.clip import ClipRunner
from stan.inference.denoise import denoise, denoise_chunks
from stan.inference.levels import SigmaRangeWarning
from stan.inference.memory import format_size, free_memory, parse_size
from stan.inference.noise_level import NoiseTracker, estimate_sigma, frame_sigma
from stan.inference.options import Options, Progress
from stan.inference.planning import plan_tiles
from stan.inference.scenes import find_scenes, mark_scenes
from stan.inference.tiling import TilePlan

__all__ = [
    "ClipRunner",
    "NoiseTracker",
    "Options",
    "Progress",
    "SigmaRangeWarning",
    "TilePlan",
    "denoise",
    "denoise_chunks",
    "estimate_sigma",
    "find_scenes",
    "format_size",
    "frame_sigma",
    "free_memory",
    "mark_scenes",
    "parse_size",
    "plan_tiles",
]
