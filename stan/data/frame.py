"""`Frame`: one picture with all that belongs to it, on its way from reader to writer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class Frame:
    """One picture on its way. The reader fills in what the file says, and each stage adds what it finds out.

    Attributes:
        rgb: (3, H, W) float32, nominally in [0, 1], not clipped; videos given from Python may be uint8. Noisy
            as it is read, denoised behind the network.
        alpha: (H, W) in [0, 1], or None.
        pts: time of presentation in units of the source's ``time_base``.
        duration: in the same units; 0 is not known.
        name: the file name of a picture, without its ending.
        damaged: whether the decoder had to make up a part of it.
        begins_scene: whether no frame before belongs to the same scene.
        sigma: standard deviation of its noise in 8-bit units: a number, or a map (1, H, W) or (H, W); None is
            not known, or not needed.
        noisy: ``rgb`` as it was before the network; None until then.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    pts: int = 0
    duration: int = 0
    name: str = ""
    damaged: bool = False
    begins_scene: bool = False
    sigma: float | Tensor | None = None
    noisy: Tensor | None = None
