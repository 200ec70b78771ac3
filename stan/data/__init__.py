"""Data sets, cache, sampling and noise. Nothing here needs a configuration: all takes plain arguments."""

from __future__ import annotations

from stan.data.cache import MappedClip, cached
from stan.data.clips import Clip, FrameClip, TensorClip
from stan.data.pairs import PairedClip
from stan.data.sampling import StepSampler, TrainingClips, TrainingPairs
from stan.data.sources import open_clips

__all__ = [
    "Clip",
    "FrameClip",
    "MappedClip",
    "PairedClip",
    "StepSampler",
    "TensorClip",
    "TrainingClips",
    "TrainingPairs",
    "cached",
    "open_clips",
]
