"""What networks learn to undo beside noise, by the name of the task: blur, low resolution, compression.

degradation = build("deblur", blur="0.8..2.4")
degraded = degradation(clean, random)                          # uint8 in, uint8 out
seen = degradation.worsened(clean, noise, sigma, random)       # what the network gets, at the size of the clean clip
"""

from __future__ import annotations

from stan.data.degradation.base import Degradation as Degradation
from stan.data.degradation.base import build as build
from stan.data.degradation.blur import Deblur as Deblur
from stan.data.degradation.compression import Compression as Compression
from stan.data.degradation.resolution import SuperResolution as SuperResolution

__all__ = ["Compression", "Deblur", "Degradation", "SuperResolution", "build"]
