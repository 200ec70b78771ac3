"""Videos and plans for the tests of `denoise`."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from stan.inference import TilePlan

SMALL = TilePlan(frames=6, frame_overlap=2, height=32, width=40, overlap=16)


def video(t: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.rand(t, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    frames, overlap = draw(st.integers(1, 9)), draw(st.integers(0, 24))
    side = st.none() | st.integers(overlap + 1, overlap + 40)
    return TilePlan(frames, draw(st.integers(0, frames - 1)), draw(side), draw(side), overlap)
