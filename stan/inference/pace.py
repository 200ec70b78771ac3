"""How far a chunk is while it is computed, so that progress moves from the first seconds on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Tell = Callable[[float], None]
"""Told the part of the work that is done, in [0, 1]."""


class Pace:
    """Tells how far a chunk is: first its flow, then tile after tile, and within a tile by the modules of the
    network that have ended.

    At what part of the time the flow and each module end is taken from the chunk and the tile before.

    Args:
        model: the network.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.known = False
        """Whether there was a tile before."""
        self._leaves = [module for module in model.modules() if not any(module.children())]
        self._ends: list[float] = []  # of the modules, as parts of a tile's time
        self._share = 0.0  # the flow's part of a chunk's time
        self._tell: Tell | None = None
        self._modules = True
        self._began = self._flow_ended = 0.0

    def begin(self, tell: Tell | None, modules: bool = True) -> None:
        """A chunk begins; without `tell` nothing is measured either. `modules`: look inside of tiles."""
        self._tell, self._modules = tell, modules
        self._began = self._flow_ended = time.perf_counter()
        if tell:
            tell(0.0)

    def flow(self, part: float) -> None:
        """A part of the flow is estimated."""
        self._flow_ended = time.perf_counter()
        if self._tell:
            self._tell(self._share * part)

    @contextmanager
    def tile(self, start: float = 0.0, size: float = 1.0) -> Iterator[None]:
        """The network runs in this block, on the tile that is the parts `start` to `start + size` of all."""
        tell, share = self._tell, self._share
        if tell is None:
            yield
            return
        times: list[float] = []
        began = time.perf_counter()

        def ended(*_: object) -> None:
            times.append(time.perf_counter() - began)
            if len(times) < len(self._ends):
                tell(share + (1 - share) * (start + size * self._ends[len(times) - 1]))

        hooks = [leaf.register_forward_hook(ended) for leaf in self._leaves if self._modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        now = time.perf_counter()
        self._ends = [t / (now - began) for t in times]
        self.known = True
        if start + size > 1 - 1e-9:
            self._share = (self._flow_ended - self._began) / (now - self._began)
            share, start, size = 0.0, 1.0, 0.0
        tell(share + (1 - share) * (start + size))
