"""Offset sources: where each pixel of a frame is found in the neighbouring frames, behind one interface.

``source = stan.flow.build("dis"); forward, backward = source(video)``.
"""

from __future__ import annotations

from typing import Any

from stan.flow.base import FlowPair, OffsetSource
from stan.flow.cache import CachedFlow
from stan.flow.classical import DISFlow, FarnebackFlow, PairwiseFlow, TVL1Flow, ZeroFlow
from stan.flow.learned import LearnedFlow
from stan.flow.pyramid import PyramidFlow
from stan.flow.raft import RaftFlow
from stan.flow.steady import SteadyFlow
from stan.registry import sources


def build(name: str, **settings: Any) -> OffsetSource:
    """Make the offset source `name`; see its class for the settings.

    Raises:
        ConfigError: for an unknown name or setting, with the nearest valid one.
    """
    return sources.build(name, **settings)


names = sources.names


__all__ = [
    "CachedFlow",
    "DISFlow",
    "FarnebackFlow",
    "FlowPair",
    "LearnedFlow",
    "OffsetSource",
    "PairwiseFlow",
    "PyramidFlow",
    "RaftFlow",
    "SteadyFlow",
    "TVL1Flow",
    "ZeroFlow",
    "build",
    "names",
    "sources",
]
