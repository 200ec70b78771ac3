"""The pictures of a report, small enough to lie inside the page."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from stan.evaluation.results import Results
from stan.evaluation.sheet import ERROR_RANGE, Picture, error_picture

BUDGET = 20 * 2**20
"""Characters of picture data in a page. Noise levels are taken from the middle one outwards until it is used up."""
QUALITY = 90


class Gallery:
    """Pictures of every sequence, for as many noise levels as the page's budget allows; at least one.

    Attributes:
        pictures: for each sequence and noise level the pictures by name, as ``data:`` addresses: ``noisy``,
            ``clean``, ``m|METHOD``, ``e|METHOD`` (error), and ``...|slice`` of all but the errors.
        remark: one sentence on what is shown.
    """

    def __init__(self, results: Results, budget: int = BUDGET) -> None:
        self.pictures: dict[str, dict[str, dict[str, str]]] = {}
        sigmas = results.sigmas
        middle = len(sigmas) // 2
        used, shown = 0, 0
        for sigma in sorted(sigmas, key=lambda s: (abs(sigmas.index(s) - middle), s)):
            level = _level(results, sigma)
            size = sum(len(text) for files in level.values() for text in files.values())
            if shown and used + size > budget:
                break
            used, shown = used + size, shown + 1
            for name, files in level.items():
                self.pictures.setdefault(name, {})[f"{sigma:g}"] = files
        missing = len(sigmas) - shown
        left_out = f" Pictures of {missing} noise levels are left out." if missing else ""
        self.remark = (
            "Pictures show the middle frame, cropped to where most detail moves, as JPEG of high quality; "
            "figures are of the originals. Errors are drawn from black (none) to white "
            f"({ERROR_RANGE:g} grey levels, root mean square over channels).{left_out}"
        )


def _level(results: Results, sigma: float) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for (method, name, level), path in results.pieces.items():
        if level != sigma:
            continue
        arrays = results.parts.pictures(path)
        files = found.setdefault(name, {})
        videos = {"clean": "clean", "noisy": "noisy"} if not files else {}
        if method != "noisy":
            videos[f"m|{method}"] = "output"
            files[f"e|{method}"] = data_address(error_picture(arrays["clean"], arrays["output"]))
        for key, video in videos.items():
            files[key] = data_address(arrays[video])
            files[f"{key}|slice"] = data_address(arrays[f"{video}_slice"])
    return found


def data_address(picture: Picture) -> str:
    """An RGB picture as a ``data:`` address."""
    bgr = np.ascontiguousarray(picture[..., ::-1])
    # Full colour resolution: pictures with halved colour, as WebP has them, lose most of the colour noise.
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", bgr, options)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} could not be coded")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
