"""The STAN networks: ``build(name, **settings)`` makes one, ``load(path)`` reads a trained one."""

from __future__ import annotations

from stan.models.base import AttentionMap, Cleaned, Trained, VideoDenoiser
from stan.models.checkpoint import describe, load, load_weights, read, save
from stan.models.registry import build, names, register
from stan.models.settings import Settings
from stan.models.stan import Stan
from stan.models.two_pass import TwoPass, TwoPassSettings

__all__ = [
    "AttentionMap",
    "Cleaned",
    "Settings",
    "Stan",
    "Trained",
    "TwoPass",
    "TwoPassSettings",
    "VideoDenoiser",
    "build",
    "describe",
    "load",
    "load_weights",
    "names",
    "read",
    "register",
    "save",
]
