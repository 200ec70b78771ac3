"""Draw docs/images/shipped.png: photographs under a slow camera, noisy and cleaned by the shipped weights.

python scripts/shipped_picture.py [NAME or FILE] [PICTURE]
"""

from __future__ import annotations

import sys

import numpy as np
import skimage.data
import torch

import stan
from stan.data.camera import pan
from stan.data.noise import NumpyRandom, build
from stan.evaluation.sheet import SheetRow, write_sheet


def main() -> None:
    """Draw it."""
    name, path = [*sys.argv[1:], *["stan_tiny", "docs/images/shipped.png"][len(sys.argv) - 1 :]]
    model = stan.load(name)
    rows = []
    for photo, top, left, sigma in (("chelsea", 10, 120, 25.0), ("coffee", 60, 150, 40.0)):
        picture = getattr(skimage.data, photo)()
        video = pan(picture, 7, 240, top, left, np.random.default_rng(2))  # nobody trained on these
        clean = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
        noisy = build("gaussian")(clean, sigma, NumpyRandom(3, photo, sigma))
        output = stan.denoise(model, noisy, sigma=sigma)
        rows.append(SheetRow(f"7 frames, sigma {sigma:g}", noisy[3], output[3], clean[3]))
    write_sheet(path, rows)


if __name__ == "__main__":
    main()
