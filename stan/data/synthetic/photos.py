"""Photographs that ship inside scikit-image, so that synthetic video needs no download."""

from __future__ import annotations

import functools
from importlib import resources

import cv2
import numpy as np

from stan.errors import DataError

TRAIN = {
    "astronaut": "astronaut.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
    "retina": "retina.jpg",
    "galaxies": "hubble_deep_field.jpg",
    "bricks": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
}
VAL = {
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "camera": "camera.png",
}


@functools.cache
def photo(name: str) -> np.ndarray:
    """Read a photograph of `TRAIN` or `VAL`: `(H, W, 3)` uint8 RGB, read-only; grey ones have equal channels.

    Raises:
        DataError: the installed scikit-image does not hold the file.
    """
    file = {**TRAIN, **VAL}[name]
    try:
        data = (resources.files("skimage") / "data" / file).read_bytes()
    except (ImportError, OSError):
        raise DataError(
            f"synthetic video needs {file} of scikit-image, which the installed package lacks: "
            "install scikit-image from its wheel (pip install --force-reinstall scikit-image)"
        ) from None
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise DataError(f"{file} of the installed scikit-image is damaged: install scikit-image again")
    image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    if name == "retina":  # the black corners around the eye have nothing to learn from
        image = np.ascontiguousarray(image[250:1160, 250:1160])
    image.setflags(write=False)
    return image
