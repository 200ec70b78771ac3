"""The STAN networks: ``build(name, **settings)`` makes one, ``load(path)`` reads a trained one."""

from __future__ import annotations

from stan.models.base import AttentionMap, Trained, VideoDenoiser
from stan.models.checkpoint import describe, load, load_weights, read, save
from stan.models.registry import build, names, register
from stan.models.settings import Settings
from stan.models.stan import Stan

__all__ = [
    "AttentionMap",
    "Settings",
    "Stan",
    "Trained",
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
