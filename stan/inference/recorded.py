"""How strong the noise of recorded pairs is, so that a wrong `noise.sigma` is noticed."""

from __future__ import annotations

from collections.abc import Sequence

from stan.data.clips import Clip
from stan.data.pairs import PairedClip
from stan.inference.noise_level import frame_sigma

SEQUENCES = 16


def estimated_levels(clips: Sequence[Clip]) -> str:
    """The noise levels of pairs in words, 8-bit units: "12.1 to 14.2", of the middle frames of up to 16 of them.

    Args:
        clips: pairs; others are passed over.

    Raises:
        ValueError: no pairs.
        StanError: frames smaller than 8 x 8.
    """
    pairs = [clip for clip in clips if isinstance(clip, PairedClip)]
    some = pairs[:: max(1, -(-len(pairs) // SEQUENCES))]
    levels = [frame_sigma(clip.noisy.read(len(clip) // 2, len(clip) // 2 + 1)[0]) for clip in some]
    low, high = f"{min(levels):.1f}", f"{max(levels):.1f}"
    return low if low == high else f"{low} to {high}"
