"""From scores to attention weights."""

from __future__ import annotations

import math

from torch import Tensor

from . import checks


def weights(
    scores: Tensor,  # (B, HD, T, Hq, Wq, K)
    scale: float | Tensor = 10.0,  # number, () or (HD,)
) -> Tensor:
    """Turn scores into attention weights: softmax(scale * scores) over the K matches.

    Args:
        scores: from `shifted_nls` or `refine`. A score of -inf gets weight 0, all weights are 0 where all K
            are -inf, and the gradient is 0 there. A NaN score makes the weights of its query NaN.
        scale: inverse temperature, above 0; the paper uses 10. A tensor may hold one for each head, and may
            be learned.

    Returns:
        (B, HD, T, Hq, Wq, K), the type of `scores`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device.
    """
    checks.floating("scores", scores, 6, "(B, HD, T, Hq, Wq, K)")
    scale = checks.scale_of("scale", scale, scores.shape[1])
    if isinstance(scale, Tensor):
        checks.same_device("scores", scores, scale=scale)
        scale = scale.to(scores.dtype).reshape(-1, 1, 1, 1, 1)  # (HD, 1, 1, 1, 1)
    empty = scores == -math.inf
    logits = (scale * scores.masked_fill(empty, 0.0)).masked_fill(empty, -math.inf)
    logits = logits.masked_fill(empty.all(dim=-1, keepdim=True), 0.0)  # softmax of nothing but -inf is NaN
    return logits.softmax(dim=-1).masked_fill(empty, 0.0)
