"""Published figures that a result may be laid beside: RGB PSNR, sigma 10 to 50.

They were collected from the methods' papers; each used its own noise draw, and some cut sequences at 85
frames, so differences below about 0.05 dB mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIGMAS = (10, 20, 30, 40, 50)


@dataclass(frozen=True)
class Published:
    """Figures of one method.

    Attributes:
        name: the method.
        parameters: millions; None where it is not learned or not known.
        davis: PSNR on DAVIS-2017 test-dev at `SIGMAS`, dB.
        set8: PSNR on Set8, dB; None where not published.
    """

    name: str
    parameters: float | None
    davis: tuple[float, ...]
    set8: tuple[float, ...] | None


PUBLISHED = (
    Published("VNLB", None, (38.85, 35.68, 33.73, 32.32, 31.13), (37.26, 33.72, 31.74, 30.39, 29.24)),
    Published("FastDVDnet", 2.5, (38.71, 35.77, 34.04, 32.82, 31.86), (36.44, 33.43, 31.68, 30.46, 29.53)),
    Published("PaCNet", 2.9, (39.97, 36.82, 34.79, 33.34, 32.20), (37.06, 33.94, 32.05, 30.70, 29.66)),
    Published("UDVD", None, (39.17, 35.94, 34.09, 32.79, 31.80), (36.36, 33.53, 31.88, 30.72, 29.81)),
    Published("FloRNN", 11.8, (40.16, 37.52, 35.89, 34.66, 33.67), (37.57, 34.67, 32.97, 31.75, 30.80)),
    Published("Shift-Net-s", 3.7, (40.55, 37.84, 36.25, 35.11, 34.20), None),
    Published("RVRT", 12.8, (40.57, 38.05, 36.57, 35.47, 34.57), (37.53, 34.83, 33.30, 32.21, 31.33)),
    Published("VRT", 18.3, (40.82, 38.15, 36.52, 35.32, 34.36), (37.88, 35.02, 33.35, 32.15, 31.22)),
    Published("Shift-Net+", 12.7, (40.91, 38.34, 36.83, 35.71, 34.82), None),
)


def comparable(settings: Mapping[str, Any]) -> list[tuple[Published, tuple[float, ...]]]:
    """The published rows that may stand beside a result with these settings; none if it departs from its protocol."""
    protocol = settings["protocol"]
    if settings["departures"] or protocol not in ("davis-full", "davis-85", "set8"):
        return []
    rows = [(p, p.set8 if protocol == "set8" else p.davis) for p in PUBLISHED]
    return [(p, values) for p, values in rows if values is not None]


def value_at(values: tuple[float, ...], sigma: float) -> float | None:
    """The published figure at a noise level; None where there is none."""
    return next((value for level, value in zip(SIGMAS, values) if level == sigma), None)
