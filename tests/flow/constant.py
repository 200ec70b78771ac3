"""An offset source of one's own, the smallest that learns."""

from __future__ import annotations

import torch
from torch import Tensor

from stan.flow import FlowPair, OffsetSource


class Constant(OffsetSource):
    """One motion of all pixels, learned."""

    name = "constant"
    trainable = True

    def __init__(self) -> None:
        super().__init__()
        self.motion = torch.nn.Parameter(torch.zeros(2))

    def estimate(self, video: Tensor) -> FlowPair:
        b, t, _, h, w = video.shape
        flow = self.motion.view(2, 1, 1).expand(b, t, 2, h, w)
        return FlowPair(flow, -flow)
