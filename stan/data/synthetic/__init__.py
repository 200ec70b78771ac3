"""Synthetic video with known motion, made from photographs that ship inside scikit-image."""

from __future__ import annotations

from stan.data.synthetic.dataset import read_flow, synthetic_clips, write_synthetic
from stan.data.synthetic.render import SyntheticClip

__all__ = ["SyntheticClip", "read_flow", "synthetic_clips", "write_synthetic"]
