"""The learning rate over the steps."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, total: int, warmup: int, final: float, cosine: bool) -> float:
    """The factor on the peak learning rate at a step (counted from 0).

    Args:
        step: optimiser steps done.
        total: steps of the whole training.
        warmup: steps of linear rise; step 0 gets 1/(warmup+1), so that no step is wasted at zero.
        final: learning rate at the end as a fraction of the peak.
        cosine: half a cosine from the peak to ``final`` after the warm-up; else constant at the peak.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not cosine:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
